"""Calibration data: from a file, an array, a mapping or any iterable of batches to checked batches.

What comes from an iterable is read once, batch by batch, and beyond ``LIMIT_BYTES`` kept in temporary files: every
pass over the data then sees the same samples, shuffled loader or not, and no more than one batch is held.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..ir.graph import Value
from ..ir.host import Array, Batch
from .files import Folder, arrays_of, read_npz

CHUNK = 64
"""Samples a batch where the model takes any number."""
LIMIT_BYTES = 1 << 30
"""What is held in memory of an iterable's samples; the rest is in temporary files."""


def batches(data: Any, inputs: Sequence[Value]) -> Sequence[Batch]:
    """``data`` as batches of one array per input.

    Takes an ``.npz`` or ``.npy`` path, a folder of ``.npy`` files or images (read as they are needed, see
    datafiles.Folder), an array, a mapping of input name to array, a sequence of arrays (one per input),
    or an iterable of such (a generator, a torch DataLoader; read once). Samples are on axis 0; they are
    put together in batches of the model's size, a rest that does not fill one is dropped. Raises
    DataError naming the input, its shape and what was expected.
    """
    if isinstance(data, (str, Path)) and Path(data).is_dir():
        size = batch_size(inputs)
        return Folder(Path(data), inputs, size or CHUNK, size is not None, lambda arrays: _checked(arrays, inputs))
    return _kept(_parts(data, inputs, 0), inputs, 0)[0]


def with_rest(data: Any, inputs: Sequence[Value]) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """As ``batches``, and per batch what each item of ``data`` has beside the inputs (labels), cut alike:
    ``(images, labels)`` or an iterable of such pairs. Raises DataError where there is nothing beside."""
    try:
        return _kept(_parts(data, inputs, 1), inputs, 1)
    except _NothingBeside as error:
        raise DataError(
            "the loss wants more than the model's inputs, and the calibration data has no more",
            "data=(images, labels), or a DataLoader of such pairs",
        ) from error


class _NothingBeside(Exception):
    """An item of the data has the model's inputs and no more."""


class Spool(Sequence[Batch]):
    """Batches in the order in which they were put in, in temporary files beyond ``LIMIT_BYTES``. The files
    go when nobody has the spool any more."""

    def __init__(self) -> None:
        self._held: list[Batch | Path] = []
        self._bytes = 0
        self._folder: Path | None = None

    def append(self, batch: Batch) -> None:
        self._bytes += sum(array.nbytes for array in batch)
        if self._bytes <= LIMIT_BYTES:
            self._held.append(batch)
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="graphprune-"))
            weakref.finalize(self, shutil.rmtree, self._folder, True)
        path = self._folder / f"{len(self._held)}.npz"
        np.savez(path, *batch)
        self._held.append(path)

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            some = copy.copy(self)
            some._held = self._held[number]
            some._whole = self  # type: ignore[attr-defined]  # as long as there is a part the files stay
            return some
        held = self._held[number]
        return arrays_of(held) if isinstance(held, Path) else held


def _kept(items: Iterable[Sequence[Array]], inputs: Sequence[Value], more: int) -> tuple[Spool, Spool]:
    found, rest = Spool(), Spool()
    for batch in _cut(items, inputs):
        found.append(batch[: len(inputs)])
        if more:
            rest.append(batch[len(inputs) :])
    return found, rest


def _parts(data: Any, inputs: Sequence[Value], more: int) -> Iterator[list[Array]]:
    """The arrays of each item of the data: one per input, and what there is beside where ``more``."""
    if isinstance(data, (str, Path)):
        data = read_npz(Path(data), batch_size(inputs) or CHUNK) if Path(data).suffix == ".npz" else _npy(Path(data))
    if _is_array(data) or isinstance(data, Mapping):
        data = [data]
    elif isinstance(data, (list, tuple)) and all(map(_is_array, data)):
        together = len(data) > len(inputs) if more else len(data) == len(inputs)
        data = [data] if data and together else data
    empty = True
    for item in data if isinstance(data, Iterable) else ():
        empty = False
        if isinstance(item, Mapping):
            arrays = _by_name(item, inputs)
        elif not isinstance(item, Sequence) and not _is_array(item):
            raise DataError(f"a batch of the calibration data is {type(item).__name__}, not arrays")
        else:
            arrays = [_array(part) for part in ([item] if _is_array(item) else item)]
        if more and len(arrays) <= len(inputs):
            raise _NothingBeside
        yield arrays if more else arrays[: len(inputs)]
    if empty:
        raise DataError("the calibration data is empty")


def _npy(path: Path) -> Array:
    (array,) = arrays_of(path)
    return array


def _is_array(item: Any) -> bool:
    return hasattr(item, "shape") and hasattr(item, "dtype")


def _array(item: Any) -> Array:
    return np.asarray(item.detach().cpu() if hasattr(item, "detach") else item)


def _by_name(data: Mapping[str, Any], inputs: Sequence[Value]) -> list[Array]:
    """Arrays in input order: by name, or in file order where no name is an input's."""
    names = [value.name for value in inputs]
    if all(name in data for name in names):
        return [_array(data[name]) for name in names]
    if not set(names) & set(data) and len(data) == len(names):
        return [_array(item) for item in data.values()]
    missing = [name for name in names if name not in data]
    raise DataError(
        f"the calibration data has {', '.join(sorted(data)) or 'nothing'}, the model takes {', '.join(names)}",
        f"no array for {', '.join(missing)}",
    )


def batch_size(inputs: Sequence[Value]) -> int | None:
    """The number of samples that the model is bound to, if it is."""
    fixed = [value.shape[0] for value in inputs if value.shape and isinstance(value.shape[0], int)]
    return int(fixed[0]) if fixed else None


def samples(batch: Batch) -> int:
    """How many samples a batch has."""
    return max((len(array) for array in batch if array.ndim), default=1)


def _cut(items: Iterable[Sequence[Array]], inputs: Sequence[Value]) -> Iterator[Batch]:
    """Batches of the model's size, or of up to CHUNK samples, across items as far as their shapes are alike."""
    fixed = batch_size(inputs)
    size = fixed or CHUNK
    waiting: list[Array] = []
    total, cut = 0, 0
    for item in items:
        arrays = [*_checked(item[: len(inputs)], inputs), *item[len(inputs) :]]
        count = _samples(arrays, inputs)
        if count is None:  # nothing has a batch axis
            cut += 1
            yield arrays
            continue
        total += count
        if waiting and not all(a.shape[1:] == b.shape[1:] for a, b in zip(waiting, arrays, strict=True)):
            if not fixed:
                cut += 1
                yield waiting
            waiting = []
        joined = (
            [np.concatenate([a, b]) if b.ndim else b for a, b in zip(waiting, arrays, strict=True)]
            if waiting
            else arrays
        )
        whole = samples(joined)
        stop = whole - whole % size
        for k in range(0, stop, size):
            cut += 1
            yield [array[k : k + size] if array.ndim else array for array in joined]
        waiting = [array[stop:] if array.ndim else array for array in joined] if stop < whole else []
    if waiting and not fixed:
        cut += 1
        yield waiting
    if not cut:
        raise DataError(f"{total} calibration samples do not fill one batch of {size}")


def _checked(arrays: Sequence[Array], inputs: Sequence[Value]) -> list[Array]:
    if len(arrays) != len(inputs):
        raise DataError(f"the calibration data has {len(arrays)} arrays, the model takes {len(inputs)} inputs")
    return [_check(array, value) for array, value in zip(arrays, inputs, strict=True)]


def _samples(arrays: Sequence[Array], inputs: Sequence[Value]) -> int | None:
    counts = {len(array) for array, value in zip(arrays, inputs, strict=False) if value.shape}
    if len(counts) > 1:
        raise DataError(f"the calibration arrays have different numbers of samples: {sorted(counts)}")
    return counts.pop() if counts else None


def _check(array: Array, value: Value) -> Array:
    want = value.shape or ()
    if array.ndim != len(want) or any(
        isinstance(n, int) and n != m for n, m in zip(want[1:], array.shape[1:], strict=True)
    ):
        shape = "x".join(["N", *map(str, want[1:])]) if want else "a scalar"
        raise DataError(
            f"input `{value.name}` takes {shape}, the calibration array is {'x'.join(map(str, array.shape))}"
        )
    floating = "float" in value.dtype
    if floating != (array.dtype.kind == "f"):
        raise DataError(
            f"input `{value.name}` is {value.dtype}, the calibration array is {array.dtype}",
            "convert (and normalise) it as the model expects",
        )
    if floating and not np.isfinite(array).all():
        raise DataError(
            f"the calibration array of `{value.name}` has {int((~np.isfinite(array)).sum())} NaN or infinite values"
        )
    cast = array.astype(value.dtype if value.dtype != "bfloat16" else np.float32, copy=False)
    if not floating and not np.array_equal(cast, array):
        raise DataError(f"the calibration array of `{value.name}` has numbers that {value.dtype} cannot hold")
    return cast
