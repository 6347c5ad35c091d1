"""What an onnx_ir Model is fed: its inputs as they are declared, and the examples that a caller gives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from ...axes.dim import Size
from ...errors import DataError, ModelError
from ...ir.graph import Value
from ...ir.host import Array
from ..example import fits, shape_text

_LARGEST_INPUT = 2**31  # elements


def holes(model: ir.Model) -> list[Value]:
    """The inputs a caller has to give (initializers listed as inputs are not), as they are declared: open sizes by
    symbol, None where the rank is not declared."""
    out = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise ModelError(f"input `{value.name}` is not a tensor but a {type(value.type).__name__}")
        if value.dtype is None:
            raise ModelError(f"input `{value.name}` declares no element type")
        if value.dtype == ir.DataType.STRING:
            raise ModelError(f"input `{value.name}` is text", "take what turns text into numbers out of the model")
        sizes = None if value.shape is None else tuple(_symbol(value, k) for k in range(len(value.shape)))
        if sizes is not None and 0 in sizes:
            raise ModelError(f"input `{value.name}` has shape {shape_text(sizes)}: an axis of size zero")
        if sizes is not None and prod(n for n in sizes if isinstance(n, int)) > _LARGEST_INPUT:
            raise ModelError(f"input `{value.name}` has shape {shape_text(sizes)}, which no memory holds")
        out.append(Value(str(value.name), sizes, dtype_name(value.dtype)))
    return out


def _symbol(value: ir.Value, axis: int) -> Size:
    """The size of an axis, or what an open one is called. Paddle writes -1 or ``?`` for one without a name."""
    assert value.shape is not None
    size = value.shape[axis]
    if isinstance(size, int):
        return size if size >= 0 else _plain(f"{value.name}_{axis}")
    return _plain(size.value if size.value and re.search(r"\w", size.value) else f"{value.name}_{axis}")


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)


def dtype_name(dtype: ir.DataType | None) -> str:
    """numpy's spelling: ``float32``, ``bfloat16``, ``int64``."""
    return "float32" if dtype is None else {"FLOAT": "float32", "DOUBLE": "float64"}.get(dtype.name, dtype.name.lower())


def bfloat16_bits(array: Array) -> Array:
    """The bits of an array rounded to bfloat16 (to nearest, ties to even), which numpy has no type for."""
    wide = np.ascontiguousarray(array, np.float32).view(np.uint32)
    bits: Array = ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(np.uint16)
    return bits


def bfloat16_values(array: Array) -> Array:
    """An array rounded to bfloat16, as float32."""
    return (bfloat16_bits(array).astype(np.uint32) << 16).view(np.float32)


def some(model: ir.Model, samples: Sequence[Array], count: int) -> list[Array]:
    """As many samples of each input as it declares, ``count`` where that is open: those there are, over again."""
    out = []
    for hole, array in zip(holes(model), samples, strict=True):
        first = hole.shape[0] if hole.shape else None
        rows = first if isinstance(first, int) else count
        out.append(array if array.ndim == 0 else np.take(array, np.arange(rows) % len(array), 0))
    return out


def feed(model: ir.Model, batch: Sequence[Array]) -> dict[str, Array]:
    """A batch by input name, in the declared dtypes. Raises DataError where it does not fit."""
    wanted = holes(model)
    if len(batch) != len(wanted):
        raise DataError(f"{len(batch)} arrays for {len(wanted)} inputs ({', '.join(hole.name for hole in wanted)})")
    out = {}
    for hole, one in zip(wanted, batch, strict=True):
        array = np.asarray(one)
        if not fits(hole.shape, array.shape):
            raise DataError(
                f"input `{hole.name}` has shape {shape_text(hole.shape or ())}, the data {shape_text(array.shape)}"
            )
        if hole.dtype == "bfloat16":
            raise DataError(f"input `{hole.name}` is bfloat16, which ONNX Runtime cannot take on a CPU")
        if not np.can_cast(array.dtype, hole.dtype, "same_kind"):
            raise DataError(f"input `{hole.name}` is {hole.dtype}, the data {array.dtype}")
        out[hole.name] = np.asarray(array, hole.dtype, order="C")
    return out
