"""Calibration data: from a file, an array, a mapping or any iterable of batches to checked batches."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .ir import Array, Batch, Value

CHUNK = 64
"""Samples a batch where the model takes any number."""


def batches(data: Any, inputs: Sequence[Value]) -> tuple[Batch, ...]:
    """``data`` as batches of one array per input.

    Takes an ``.npz`` or ``.npy`` path, an array, a mapping of input name to array, a sequence of
    arrays (one per input), or an iterable of such (a torch DataLoader). Arrays carry samples on
    axis 0; they are cut into chunks of the model's batch size, a rest that does not fill one is
    dropped. Raises DataError naming the input, its shape and what was expected.
    """
    if isinstance(data, (str, Path)):
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
