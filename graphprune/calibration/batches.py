"""Calibration data: from a file, an array, a mapping or any iterable of batches to checked batches.

What comes from an iterable is read once, batch by batch, and beyond ``LIMIT_BYTES`` kept in temporary files: every
pass over the data then sees the same samples, shuffled loader or not, and no more than one batch is held.
"""

from __future__ import annotations

import copy
import itertools
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..ir.graph import Value
from ..ir.host import Array, Batch
from .files import CHUNK, Folder, arrays_of, chunk, read_npz, samples_of, shapes_of
from .images import Images
from .losses import labels_of

LIMIT_BYTES = 1 << 30
"""What is held in memory of an iterable's samples; the rest is in temporary files."""


def batches(
    data: Any,
    inputs: Sequence[Value],
    fixed: Sequence[str] = (),
    sizes: Mapping[str, int] | None = None,
    images: Images | None = None,
) -> Sequence[Batch]:
    """``data`` as batches of one array per input.

    Takes an ``.npz`` or ``.npy`` path, a folder of ``.npy`` files or images (read as they are needed, see
    files.Folder) or of ``.npz`` files (a sample each, one array per input), an array, a mapping of input name to
    array, a sequence of arrays (one per input), or an iterable of such (a generator, a torch DataLoader; read
    once). Samples are on axis 0; an array without that axis is one sample, so that sequences of different length
    are a list of arrays, or an ``.npz`` with one array a sample. Samples of one shape are put together in batches
    of the model's size, a rest that does not fill one is dropped.

    ``fixed``: inputs that are the same for every sample (a state, a sample rate). So are those, unasked, whose
    array is what the model declares while others have another number of samples: the ``Batches`` say which.
    ``sizes``: of the open axes, what images are resized to; ``images``: what becomes of them. Arrays of a file that
    are called ``labels`` (``y``, ``targets``), and are no input, are left out. Raises DataError naming the
    input, its shape and what was expected.
    """
    if _is_folder(data):
        return _folder(Path(data), inputs, sizes, images)
    if images not in (None, Images()):
        raise DataError(
            "mean, std, layout and resize are for a folder of images, which the data is not",
            "arrays are taken as they are: normalise them before they are saved",
        )
    order: dict[str, None] = {}
    found = _kept(_parts(data, inputs, 0, fixed, order), inputs, 0, fixed)[0]
    found.order = tuple(order)
    return found


def _is_folder(data: Any) -> bool:
    """Of single arrays or images."""
    return isinstance(data, (str, Path)) and Path(data).is_dir() and not samples_of(Path(data))


def _folder(path: Path, inputs: Sequence[Value], sizes: Mapping[str, int] | None, images: Images | None) -> Folder:
    size, check = batch_size(inputs), partial(_checked, inputs=inputs)
    return Folder(path, inputs, size, size is not None, check, sizes or {}, images or Images())


def first(
    data: Any, inputs: Sequence[Value], fixed: Sequence[str] = (), images: Images | None = None
) -> tuple[Batch, Any]:
    """The first item of the data, checked, and the data as it was. Raises DataError."""
    if _is_folder(data):
        check = partial(_checked, inputs=inputs)
        return Folder(Path(data), inputs, 1, False, check, {}, images or Images())[0], data
    if not (isinstance(data, (str, Path, Mapping, list, tuple)) or _is_array(data)):  # what can be read but once
        items = iter(data) if isinstance(data, Iterable) else iter(())
        ahead = list(itertools.islice(items, 1))
        data = itertools.chain(ahead, items)
        arrays = next(_parts(ahead, inputs, 0, fixed))
    else:
        arrays = next(_parts(data, inputs, 0, fixed))
    return _checked(arrays, inputs), data


def with_rest(
    data: Any,
    inputs: Sequence[Value],
    fixed: Sequence[str] = (),
    sizes: Mapping[str, int] | None = None,
    images: Images | None = None,
) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """As ``batches``, and per batch what each item of ``data`` has beside the inputs (labels), cut alike:
    ``(images, labels)`` or an iterable of such pairs; of a file, or each of a folder's, what is called ``labels``; of
    a folder of images the number of the folder that each is in, one a class, in the order of their names. Raises
    DataError where there is nothing beside."""
    if _is_folder(data):
        folder = _folder(Path(data), inputs, sizes, images)
        return folder, [[numbers] for numbers in folder.classes()]
    try:
        order: dict[str, None] = {}
        found, rest = _kept(_parts(data, inputs, 1, fixed, order), inputs, 1, fixed)
        found.order = tuple(order)
        return found, rest
    except _NothingBeside as error:
        raise DataError(
            "the loss wants more than the model's inputs, and the calibration data has no more",
            "an .npz with `labels` beside the inputs; in Python data=(images, labels), or a DataLoader of such pairs",
        ) from error


def unread(data: Any, inputs: Sequence[Value]) -> str:
    """A remark on arrays by a name that no input has, beside those that have one; else nothing."""
    if isinstance(data, (str, Path)) and Path(data).suffix == ".npz":
        names = [*shapes_of(Path(data))]
    else:
        names = [*map(str, data)] if isinstance(data, Mapping) else []
    taken = [value.name for value in inputs]
    labels = labels_of(names, taken)
    if names and _each_a_sample(
        {name: (0,) * len(inputs[0].shape or ()) for name in names if name not in labels}, inputs
    ):
        return f"calibration: {len(names)} arrays by other names are all taken as samples of `{taken[0]}`"
    more = [name for name in names if name not in taken] if set(taken) <= set(names) else labels
    if not more:
        return ""
    loss = "; labels are read by a loss (--loss)" if labels else ""
    return f"calibration: no input reads {', '.join(f'`{name}`' for name in more)} of the data{loss}"


class _NothingBeside(Exception):
    """An item of the data has the model's inputs and no more."""


class Spool(Sequence[Batch]):
    """Batches in the order in which they were put in, in temporary files beyond ``LIMIT_BYTES``. The files
    go when nobody has the spool any more."""

    def __init__(self) -> None:
        self.fixed: tuple[str, ...] = ()  # the inputs that are the same for every sample
        self.order: tuple[str, ...] = ()  # which arrays were taken as which inputs, where no name said so
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


def _kept(
    items: Iterable[Sequence[Array]], inputs: Sequence[Value], more: int, fixed: Sequence[str]
) -> tuple[Spool, Spool]:
    found, rest = Spool(), Spool()
    for batch in _Cutter(inputs, fixed, found).cut(items):
        found.append(batch[: len(inputs)])
        if more:
            rest.append(batch[len(inputs) :])
    return found, rest


def _parts(
    data: Any, inputs: Sequence[Value], more: int, fixed: Sequence[str], order: dict[str, None] | None = None
) -> Iterator[list[Array]]:
    """The arrays of each item of the data: one per input, and what there is beside where ``more``. ``order`` is told
    which were taken as which where no name said so."""
    if isinstance(data, (str, Path)):
        data = _file(Path(data), inputs, fixed)
    data = _by_sample(data, inputs)
    if isinstance(data, Mapping) and _each_a_sample({name: np.shape(item) for name, item in data.items()}, inputs):
        data = list(data.values())
    alone = _is_array(data) or isinstance(data, Mapping)
    if alone:
        data = [data]
    elif isinstance(data, (list, tuple)) and all(map(_is_array, data)):
        together = len(data) > len(inputs) if more else len(data) == len(inputs)
        data = [data] if data and together else data
    empty = True
    for item in data if isinstance(data, Iterable) else ():
        empty = False
        if isinstance(item, Mapping):
            labels = labels_of([*item], [value.name for value in inputs])
            named = {name: array for name, array in item.items() if name not in labels}
            arrays = _by_name(named, inputs, {} if order is None else order, labels)
            arrays += [_array(item[name]) for name in labels if more]
        elif not isinstance(item, Sequence) and not _is_array(item):
            raise DataError(f"a batch of the calibration data is {type(item).__name__}, not arrays")
        else:
            arrays = [_array(part) for part in ([item] if _is_array(item) else item)]
        if more and len(arrays) <= len(inputs):
            raise _NothingBeside
        if not alone:  # some samples, or one
            ranks = [len(value.shape or ()) for value in inputs]
            one = [0 < a.ndim == n - 1 for a, n in zip(arrays, ranks, strict=False)]
            one += [any(one) and isinstance(item, Mapping)] * (len(arrays) - len(one))
            arrays = [a[None] if single else a for a, single in zip(arrays, one, strict=True)]
        yield arrays if more else arrays[: len(inputs)]
    if empty:
        raise DataError("the calibration data is empty", "give a few hundred samples; no labels are needed")


def _by_sample(data: Any, inputs: Sequence[Value]) -> Any:
    """Lists of one array a sample, by input name or a tuple with one for each input, as one item a sample: sequences of
    different length are no array. Raises DataError."""
    names = [value.name for value in inputs]
    if isinstance(data, Mapping):
        columns = dict(data)
    elif isinstance(data, tuple) and len(data) >= len(inputs) and all(isinstance(one, list) for one in data):
        columns = dict(zip([*names, *map(str, range(len(data) - len(inputs)))], data, strict=True))
    else:
        return data
    lists = {name: one for name, one in columns.items() if isinstance(one, (list, tuple)) and all(map(_is_array, one))}
    if not any(lists.values()) or (isinstance(data, tuple) and all(len(one) == len(inputs) for one in data)):
        return data  # of a tuple of lists of one array for each input, every list is an item
    counts = {name: len(one) for name, one in columns.items() if name in lists or (_is_array(one) and one.ndim)}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"of the calibration data, {', '.join(f'`{name}` has {n}' for name, n in counts.items())} samples",
            "one array for each sample in every list",
        )
    ranks = {value.name: len(value.shape or ()) for value in inputs}
    batched = any(one[0].ndim == ranks.get(name) for name, one in lists.items())
    items = [
        {name: one[k] if name in lists or not batched else one[k : k + 1] for name, one in columns.items()}
        for k in range(next(iter(counts.values())))
    ]
    return items if isinstance(data, Mapping) else [tuple(item.values()) for item in items]


def _file(path: Path, inputs: Sequence[Value], fixed: Sequence[str]) -> Any:
    """What is in a file, an array or items of arrays by name; and in each of a folder's."""
    if path.is_dir():
        return (item for file in samples_of(path) for item in _file(file, inputs, fixed))
    if path.suffix != ".npz":
        return _npy(path)
    every = shapes_of(path)
    labels = labels_of([*every], [value.name for value in inputs])
    shapes = {name: shape for name, shape in every.items() if name not in labels}
    if _each_a_sample(shapes, inputs) and not labels:
        return arrays_of(path)
    if set(shapes) & {value.name for value in inputs}:
        known = [shapes.get(value.name, ()) for value in inputs]
    else:
        known = [*shapes.values()]
    same = same_for_all(known, inputs, fixed) if len(known) == len(inputs) else frozenset[int]()
    names = [value.name if value.name in shapes else list(shapes)[k] for k, value in enumerate(inputs) if k in same]
    varying = [value for k, value in enumerate(inputs) if k not in same]
    return read_npz(path, batch_size(varying) or CHUNK, names)


def _each_a_sample(shapes: Mapping[str, Sequence[int]], inputs: Sequence[Value]) -> bool:
    """Whether the arrays of a mapping, whose names are no input's, are one sample each of the only input."""
    if len(inputs) != 1 or len(shapes) < 2 or inputs[0].name in shapes:
        return False
    rank = len(inputs[0].shape or ())
    return all(len(shape) in (rank, rank - 1) for shape in shapes.values())


def same_for_all(shapes: Sequence[Sequence[int]], inputs: Sequence[Value], fixed: Sequence[str] = ()) -> frozenset[int]:
    """The places of the inputs that are the same for every sample, by the shapes of their arrays: those named, and
    those that have the declared first size where others have another number of samples. Raises DataError."""
    names = [value.name for value in inputs]
    if unknown := [name for name in fixed if name not in names]:
        raise DataError(f"no input `{unknown[0]}` to be fixed", f"the model takes {', '.join(names)}")
    named = {k for k, name in enumerate(names) if name in fixed}
    batched = [k for k, shape in enumerate(shapes) if k not in named and inputs[k].shape and shape]
    whole = {k for k in batched if list(shapes[k][:1]) == list((inputs[k].shape or ())[:1])}
    counts = {shapes[k][0] for k in batched if k not in whole} or {shapes[k][0] for k in batched[:1]}
    return frozenset(named | {k for k in whole if len(counts) == 1 and shapes[k][0] not in counts})


def _npy(path: Path) -> Array:
    (array,) = arrays_of(path)
    return array


def _is_array(item: Any) -> bool:
    return hasattr(item, "shape") and hasattr(item, "dtype")


def _array(item: Any) -> Array:
    """A tensor of floating point numbers that numpy has not (bfloat16, float8) as float32."""
    if not hasattr(item, "detach"):
        return np.asarray(item)
    tensor = item.detach().cpu()
    return np.asarray(tensor.float() if str(tensor.dtype).startswith(("torch.bfloat16", "torch.float8")) else tensor)


def _by_name(
    data: Mapping[str, Any], inputs: Sequence[Value], order: dict[str, None], labels: Sequence[str]
) -> list[Array]:
    """Arrays in input order: by name, or in file order where no name is an input's and no other order fits."""
    names = [value.name for value in inputs]
    if all(name in data for name in names):
        return [_array(data[name]) for name in names]
    if not set(names) & set(data) and len(data) == len(names):
        arrays = [_array(item) for item in data.values()]
        if len(names) > 1:
            order.update(dict.fromkeys(f"`{given}` as `{name}`" for given, name in zip(data, names, strict=True)))
            _check_order(list(data), arrays, inputs)
        return arrays
    missing = [name for name in names if name not in data]
    has = ", ".join(sorted(data)) or " ".join(["nothing", *(f"but labels (`{name}`)" for name in labels[:1])])
    raise DataError(
        f"the calibration data has {has}, the model takes {', '.join(names)}",
        f"no array for {', '.join(missing)}: numpy.savez(file, {', '.join(f'{name}=...' for name in names)})",
    )


def _check_order(given: Sequence[str], arrays: Sequence[Array], inputs: Sequence[Value]) -> None:
    """Raises DataError where two arrays whose names say nothing might be each other's."""

    def fits(array: Array, value: Value) -> bool:
        shape = value.shape or ()
        sizes = zip(array.shape[::-1], shape[::-1], strict=False)
        inner = [(n, m) for n, m in sizes][: max(len(shape) - 1, 0)]  # samples are on the first
        kinds = [
            np.dtype(kind).kind in "iub" for kind in (array.dtype, value.dtype if value.dtype != "bfloat16" else "f4")
        ]
        return (
            array.ndim in (len(shape), len(shape) - 1)
            and kinds[0] == kinds[1]
            and all(n == m or isinstance(m, str) for n, m in inner)
        )

    for i, j in itertools.combinations(range(len(arrays)), 2):
        if all(fits(arrays[a], inputs[b]) for a, b in ((i, i), (j, j), (i, j), (j, i))):
            names = [value.name for value in inputs]
            raise DataError(
                f"of the calibration data, `{given[i]}` and `{given[j]}` may each be `{names[i]}` or `{names[j]}`",
                f"name the arrays as the inputs: {', '.join(names)}",
            )


def batch_size(inputs: Sequence[Value]) -> int | None:
    """The number of samples that the model is bound to, if it is."""
    fixed = [value.shape[0] for value in inputs if value.shape and isinstance(value.shape[0], int)]
    return int(fixed[0]) if fixed else None


Axes = Sequence[Sequence[int]]
"""Per array of a batch, on which of its axes the samples are."""


def sample_axes(data: Iterable[Batch], inputs: Sequence[Value]) -> Axes:
    """Of the batches of ``data``: the first axis, but of an input that is the same for every sample (``data.fixed``)
    those that are as open as the others' first, if any."""
    same = frozenset(k for k, value in enumerate(inputs) if value.name in getattr(data, "fixed", ()))
    along = _along_batch(inputs, same)
    return [[axis for j, axis in along if j == k] if k in same else [0] for k in range(len(inputs))]


def samples(batch: Batch, axes: Axes | None = None) -> int:
    """How many samples a batch has. ``axes``: as of ``sample_axes``; without, on the first of every array."""
    counted = (x for k, x in enumerate(batch) if x.ndim and (axes is None or 0 in axes[k]))
    return max(map(len, counted), default=1)


def rows(batch: Batch, at: Any, axes: Axes | None = None) -> Batch:
    """Of a batch the samples ``at`` (a slice or numbers); what is the same for every sample stays whole."""
    count = samples(batch, axes)

    def cut(x: Array, axis: int) -> Array:
        return x[(slice(None),) * axis + (at,)] if axis < x.ndim and x.shape[axis] == count else x

    return [reduce(cut, axes[k] if axes is not None else [0], x) for k, x in enumerate(batch)]


def bound(data: Iterable[Batch], inputs: Sequence[Value]) -> int | None:
    """The number of samples that the model is bound to, as ``batch_size`` of the inputs that ``data`` varies."""
    return batch_size([value for value in inputs if value.name not in getattr(data, "fixed", ())])


def fewer(data: Sequence[Batch], inputs: Sequence[Value], most: int) -> Sequence[Batch]:
    """The samples in batches of at most ``most``; as they are where the model is bound to a number of samples, or none
    has more."""
    axes = sample_axes(data, inputs)
    if not data or bound(data, inputs) is not None or samples(data[0], axes) <= most:
        return data
    parts = ((batch, k) for batch in data for k in range(0, samples(batch, axes), most))
    return [rows(batch, slice(k, k + most), axes) for batch, k in parts]


def some(batches: Iterable[Batch], inputs: Sequence[Value], count: int, limit_bytes: float = math.inf) -> list[Batch]:
    """The first ``count`` samples of the data, or as many whole batches as have them where the model is bound to a
    batch size; and no further batch once they take ``limit_bytes``."""
    out: list[Batch] = []
    left, size, whole, axes = count, 0, bound(batches, inputs) is not None, sample_axes(batches, inputs)
    for batch in batches:
        have = samples(batch, axes)
        out.append(rows(batch, slice(left), axes) if not whole and have > left else batch)
        left, size = left - have, size + sum(array.nbytes for array in out[-1])
        if left <= 0 or size >= limit_bytes:
            break
    return out


class _Cutter:
    """Cuts items into batches of the model's size, or as ``chunk`` says, across items as far as their shapes
    are alike. ``found`` is told which inputs are the same for every sample."""

    def __init__(self, inputs: Sequence[Value], fixed: Sequence[str], found: Spool) -> None:
        self.inputs, self.named, self.found = inputs, fixed, found

    def cut(self, items: Iterable[Sequence[Array]]) -> Iterator[Batch]:
        waiting: list[Array] = []
        total, made, bound, size = 0, 0, None, CHUNK
        for item in items:
            arrays = [*_checked(item[: len(self.inputs)], self.inputs), *item[len(self.inputs) :]]
            same = same_for_all([array.shape for array in arrays[: len(self.inputs)]], self.inputs, self.named)
            self._check_fixed(arrays)
            self.found.fixed = tuple(self.inputs[k].name for k in sorted(same))
            count = _samples(arrays, self.inputs, same)
            _paired(item[len(self.inputs) :], count)
            if count is None:  # nothing has a batch axis
                made += 1
                yield arrays
                continue
            total += count
            bound = self._bound(arrays, same)
            size = bound or chunk(sum(a.nbytes for k, a in enumerate(arrays) if k not in same) // max(count, 1))
            if waiting and not self._alike(waiting, arrays, same):
                if not bound:
                    made += 1
                    yield self._spread(waiting, same)
                waiting = []
            joined = [
                a if k in same or not a.ndim else np.concatenate([*waiting[k : k + 1], a]) for k, a in enumerate(arrays)
            ]
            whole = max(len(array) for k, array in enumerate(joined) if array.ndim and k not in same)
            stop = whole - whole % size
            for start in range(0, stop, size):
                made += 1
                yield self._spread(self._rows(joined, same, start, start + size), same)
            waiting = self._rows(joined, same, stop, whole) if stop < whole else []
        if waiting and not bound:
            made += 1
            yield self._spread(waiting, same)
        if not made:
            raise DataError(
                f"{total} calibration samples do not fill one batch of {size}, which the model is bound to",
                "give more, or a model whose batch axis is open",
            )

    def _check_fixed(self, arrays: Sequence[Array]) -> None:
        """Raises DataError where an input that is to be the same for every sample has samples that differ."""
        firsts = [(value.shape or (None,))[0] for value in self.inputs]
        for value, first, array in zip(self.inputs, firsts, arrays, strict=False):
            samples = isinstance(first, str) and (firsts.count(first) > 1 or len(firsts) == 1)
            if value.name in self.named and samples and len(array) > 1 and (array != array[:1]).any():
                raise DataError(
                    f"input `{value.name}` is to be the same for every sample, and its {len(array)} samples differ",
                    f"leave `{value.name}` out of --fixed, or give one of them",
                )

    @staticmethod
    def _rows(arrays: Sequence[Array], same: frozenset[int], start: int, stop: int) -> list[Array]:
        return [a[start:stop] if a.ndim and k not in same else a for k, a in enumerate(arrays)]

    @staticmethod
    def _alike(waiting: Sequence[Array], arrays: Sequence[Array], same: frozenset[int]) -> bool:
        return all(
            np.array_equal(a, b) if k in same else a.shape[1:] == b.shape[1:]
            for k, (a, b) in enumerate(zip(waiting, arrays, strict=True))
        )

    def _bound(self, arrays: Sequence[Array], same: frozenset[int]) -> int | None:
        """The samples of a batch, where the model or an array that is the same for all of them says it."""
        size = batch_size([value for k, value in enumerate(self.inputs) if k not in same])
        axes = [arrays[k].shape[axis] for k, axis in _along_batch(self.inputs, same) if arrays[k].shape[axis] > 1]
        return size or (axes[0] if axes else None)

    def _spread(self, batch: list[Array], same: frozenset[int]) -> list[Array]:
        """Each sample of the batch gets what is the same for all."""
        count = max(len(a) for k, a in enumerate(batch[: len(self.inputs)]) if a.ndim and k not in same)
        for k, axis in _along_batch(self.inputs, same):
            if batch[k].shape[axis] == 1:
                batch[k] = np.repeat(batch[k], count, axis)
        return batch


def _along_batch(inputs: Sequence[Value], same: frozenset[int]) -> list[tuple[int, int]]:
    """The axes, by input and number, on which an input that is the same for every sample has the samples."""
    firsts = {value.shape[0] for k, value in enumerate(inputs) if value.shape and k not in same}
    opened = {n for n in firsts if isinstance(n, str)}
    return [(k, axis) for k in sorted(same) for axis, n in enumerate(inputs[k].shape or ()) if n in opened]


def _checked(arrays: Sequence[Array], inputs: Sequence[Value]) -> list[Array]:
    if len(arrays) != len(inputs):
        names = ", ".join(value.name for value in inputs)
        raise DataError(
            f"the calibration data has {len(arrays)} arrays, the model takes {len(inputs)} inputs: {names}",
            "give an .npz with one array per input, by its name",
        )
    return [_check(array, value) for array, value in zip(arrays, inputs, strict=True)]


def _samples(arrays: Sequence[Array], inputs: Sequence[Value], same: frozenset[int]) -> int | None:
    counts = {
        len(array)
        for k, (array, value) in enumerate(zip(arrays, inputs, strict=False))
        if value.shape and k not in same
    }
    if len(counts) > 1:
        raise DataError(
            f"the calibration arrays have different numbers of samples: {sorted(counts)}",
            "name an input that is the same for every sample: --fixed NAME, gp.load(..., fixed=[NAME])",
        )
    return counts.pop() if counts else None


def _paired(rest: Sequence[Array], count: int | None) -> None:
    """Raises DataError where what a loss compares with is not one for each sample."""
    counts = {len(array) for array in rest if array.ndim}
    if count is not None and counts - {count}:
        raise DataError(
            f"of {count} samples the labels are {', '.join(map(str, sorted(counts)))}", "give one label for each sample"
        )


def _check(array: Array, value: Value) -> Array:
    want, floating = value.shape or (), "float" in value.dtype
    if floating != (array.dtype.kind == "f") or array.dtype.kind not in "fiubc":
        raise DataError(
            f"input `{value.name}` is {value.dtype}, the calibration array is {array.dtype}",
            "convert (and normalise) it as the model expects"
            if floating
            else f"it takes whole numbers, such as tokens: array.astype('{value.dtype}')",
        )
    if array.ndim != len(want) or any(
        isinstance(n, int) and n != m for n, m in zip(want[1:], array.shape[1:], strict=True)
    ):
        shape = "x".join(["N", *map(str, want[1:])]) if want else "a scalar"
        given = "x".join(map(str, array.shape)) or "a scalar"
        raise DataError(
            f"input `{value.name}` takes {shape}, the calibration array is {given}",
            _other_layout(want, array.shape),
        )
    if floating and not np.isfinite(array).all():
        raise DataError(
            f"the calibration array of `{value.name}` has {int((~np.isfinite(array)).sum())} NaN or infinite values",
            "leave these samples out",
        )
    cast = array.astype(value.dtype if value.dtype != "bfloat16" else np.float32, copy=False)
    if not floating and not np.array_equal(cast, array):
        raise DataError(
            f"the calibration array of `{value.name}` has numbers that {value.dtype} cannot hold: "
            f"{array.min()} to {array.max()}",
            "convert it as the model expects",
        )
    return cast


def _other_layout(want: Sequence[object], have: Sequence[int]) -> str:
    """What to do about a shape that does not fit."""
    if len(want) == len(have) == 4:
        for what, order in (("NHWC (channels last)", (0, 3, 1, 2)), ("NCHW (channels first)", (0, 2, 3, 1))):
            turned = [have[k] for k in order]
            if all(n == m or not isinstance(n, int) for n, m in zip(want[1:], turned[1:], strict=True)):
                return f"it looks like {what}: turn it round with numpy.transpose(x, {order})"
    return (
        "samples are on axis 0, the rest is as the model declares it; --input says other sizes, and dynamic_shapes of "
        "gp.load leaves an axis of a torch module open"
    )
