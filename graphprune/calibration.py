"""Calibration data: from a file, an array, a mapping or any iterable of batches to checked batches."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .ir import Array, Batch, Value

CHUNK = 64
"""Samples a batch where the model takes any number."""


def batches(data: Any, inputs: Sequence[Value]) -> Sequence[Batch]:
    """``data`` as batches of one array per input.

    Takes an ``.npz`` or ``.npy`` path, a folder of ``.npy`` files or images (read as they are needed, see
    Folder), an array, a mapping of input name to array, a sequence of arrays (one per input), or an
    iterable of such (a torch DataLoader). Arrays carry samples on axis 0; they are cut into chunks of
    the model's batch size, a rest that does not fill one is dropped. Raises DataError naming the input,
    its shape and what was expected.
    """
    if isinstance(data, (str, Path)):
        if Path(data).is_dir():
            return Folder(Path(data), inputs)
        data = _read(Path(data))
    if _is_array(data):
        data = [data]
    if isinstance(data, Mapping):
        return tuple(_chunks(_by_name(data, inputs), inputs))
    items = list(data) if isinstance(data, Iterable) else []
    if not items:
        raise DataError("the calibration data is empty")
    if len(items) == len(inputs) and all(map(_is_array, items)):
        return tuple(_chunks([_array(item) for item in items], inputs))
    out: list[Batch] = []
    for item in items:
        if isinstance(item, Mapping):
            arrays = _by_name(item, inputs)
        elif not isinstance(item, Sequence) and not _is_array(item):
            raise DataError(f"a batch of the calibration data is {type(item).__name__}, not arrays")
        else:
            arrays = [_array(part) for part in ([item] if _is_array(item) else list(item)[: len(inputs)])]
        out += _chunks(arrays, inputs)
    return tuple(out)


def with_rest(data: Any, inputs: Sequence[Value]) -> tuple[Sequence[Batch], tuple[Batch, ...]]:
    """As ``batches``, and per batch what each item of ``data`` has beside the inputs (labels), cut alike:
    ``(images, labels)`` or an iterable of such pairs. Raises DataError where there is nothing beside."""
    items = data if _is_arrays(data) else None
    if items is None and isinstance(data, Iterable) and not isinstance(data, (str, Path, Mapping)):
        items = None
        found: list[Batch] = []
        rest: list[Batch] = []
        for item in data:
            if not isinstance(item, Sequence) or len(item) <= len(inputs):
                break
            more, extra = _paired([_array(part) for part in item], inputs)
            found, rest = found + more, rest + extra
        if found:
            return tuple(found), tuple(rest)
    if items is None or len(items) <= len(inputs):
        raise DataError(
            "the loss wants more than the model's inputs, and the calibration data has no more",
            "data=(images, labels), or a DataLoader of such pairs",
        )
    found, rest = _paired([_array(item) for item in items], inputs)
    return tuple(found), tuple(rest)


def _is_arrays(data: Any) -> bool:
    return isinstance(data, (list, tuple)) and bool(data) and all(map(_is_array, data))


def _paired(arrays: Sequence[Array], inputs: Sequence[Value]) -> tuple[list[Batch], list[Batch]]:
    found = _chunks(arrays[: len(inputs)], inputs)
    starts = np.cumsum([0, *(len(batch[0]) for batch in found)]).tolist()
    rest: list[Batch] = [[a[i:j] for a in arrays[len(inputs) :]] for i, j in pairwise(starts)]
    return found, rest


def _read(path: Path) -> dict[str, Array] | Array:
    try:
        loaded = np.load(path, allow_pickle=False)
        return {name: loaded[name] for name in loaded.files} if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not an .npz or .npy file of plain arrays ({error})", "write it with numpy.savez"
        ) from error


class Folder(Sequence[Batch]):
    """The files of a folder in order of their names, read when a batch is asked for, so that no more than
    one batch is held. ``.npy``: one sample each (without the batch axis). Images: RGB (or grey, where the
    model takes one channel), resized to the model's size, floats from 0 to 1; normalisation is the model's
    own, or write ``.npy`` files. For models of one input."""

    IMAGES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp"))

    def __init__(self, path: Path, inputs: Sequence[Value]) -> None:
        if len(inputs) != 1:
            raise DataError(f"{path}: a folder feeds one input, the model takes {len(inputs)}", "write an .npz")
        self.value = inputs[0]
        files = [file for file in path.rglob("*") if file.suffix.lower() in {".npy", *self.IMAGES}]
        shape = self.value.shape or ()
        fixed = shape[0] if shape and isinstance(shape[0], int) else None
        self.size = fixed or CHUNK
        self.files = sorted(files)[: len(files) // fixed * fixed if fixed else None]
        if not self.files:
            raise DataError(f"{path}: {len(files)} .npy files or images do not fill a batch of {self.size}")
        self[0]  # what does not fit is said now

    def __len__(self) -> int:
        return -(-len(self.files) // self.size)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        files = self.files[number * self.size : (number + 1) * self.size]
        samples = [self._sample(file) for file in files]
        odd = next((f for f, sample in zip(files, samples, strict=True) if sample.shape != samples[0].shape), None)
        if odd is not None:
            raise DataError(f"{odd}: not of the shape of {files[0].name}")
        return _chunks([np.stack(samples)], [self.value])[0]

    def _sample(self, file: Path) -> Array:
        if file.suffix.lower() == ".npy":
            read = _read(file)
            assert isinstance(read, np.ndarray)
            return read
        from PIL import Image

        shape = self.value.shape or ()
        if len(shape) != 4 or not all(isinstance(n, int) for n in shape[1:]) or shape[1] not in (1, 3):
            raise DataError(f"{file}: the model takes no images of a fixed size", "write .npy files")
        try:
            with Image.open(file) as image:
                fitted = image.convert("RGB" if shape[1] == 3 else "L").resize((int(shape[3]), int(shape[2])))
        except OSError as error:
            raise DataError(f"{file}: not an image ({error})") from error
        pixels = np.asarray(fitted, np.float32) / 255
        return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]


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


def _chunks(arrays: Sequence[Array], inputs: Sequence[Value]) -> list[Batch]:
    if len(arrays) != len(inputs):
        raise DataError(f"the calibration data has {len(arrays)} arrays, the model takes {len(inputs)} inputs")
    checked = [_check(array, value) for array, value in zip(arrays, inputs, strict=True)]
    counts = {len(array) for array, value in zip(checked, inputs, strict=True) if value.shape}
    if not counts:
        return [checked]
    if len(counts) > 1:
        raise DataError(f"the calibration arrays have different numbers of samples: {sorted(counts)}")
    fixed = [value.shape[0] for value in inputs if value.shape and isinstance(value.shape[0], int)]
    total, size = counts.pop(), fixed[0] if fixed else CHUNK
    if total < (fixed[0] if fixed else 1):
        raise DataError(f"{total} calibration samples do not fill one batch of {size}")
    stop = total - total % size if fixed else total
    return [[array[k : k + size] if array.ndim else array for array in checked] for k in range(0, stop, size)]


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
    cast = array.astype(value.dtype if value.dtype != "bfloat16" else np.float32)
    if not floating and not np.array_equal(cast, array):
        raise DataError(f"the calibration array of `{value.name}` has numbers that {value.dtype} cannot hold")
    return cast
