"""Example inputs as a caller gives them: arrays, or their sizes alone, in order or by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from ..axes.dim import Size
from ..errors import DataError
from ..ir.graph import Value
from ..ir.host import Array

Given = Mapping[str, Array | tuple[int, ...]]
"""What is known of an example, by the name of an input: the array, or its sizes alone."""


def given(inputs: Sequence[Value], example: Any) -> Given:
    """An example as a caller gives it: an array or sizes (a tuple of integers) per input, in order or by name,
    by name for some of them alone; or ``{"args": ..., "kwargs": ...}``. By name a number is the value of an input
    whose sizes are declared, and the size of one with a single open axis. Raises DataError."""
    items = _by_name(example, inputs) if isinstance(example, Mapping) else _in_order(example, inputs)
    return {hole.name: _item(hole, items[hole.name]) for hole in inputs if hole.name in items}


def _by_name(example: Mapping[str, Any], wanted: Sequence[Value]) -> dict[str, Any]:
    names = [hole.name for hole in wanted]
    left: list[Any] = []
    if set(example) == {"args", "kwargs"} and not {"args", "kwargs"} & set(names):
        left, example = list(example["args"]), example["kwargs"]
    items, positional = dict(example), len(left)
    for name in names:
        if left and name not in items:
            items[name] = left.pop(0)
    unknown = [name for name in items if name not in names]
    if left or unknown:
        what = f"no input `{unknown[0]}`" if unknown else f"{positional} example inputs more than the model has"
        near = get_close_matches(unknown[0], names, 1) if unknown else []
        hint = f"did you mean `{near[0]}`?" if near else f"its inputs: {', '.join(names) or 'none'}"
        raise DataError(f"example inputs: {what}", hint)
    return items


def _in_order(example: Any, wanted: Sequence[Value]) -> dict[str, Any]:
    alone = not isinstance(example, (tuple, list)) or (len(wanted) == 1 and _sizes(example))
    items = [example] if alone else list(example)
    if len(items) != len(wanted):
        raise DataError(f"{len(items)} example inputs for {len(wanted)} ({', '.join(hole.name for hole in wanted)})")
    return {hole.name: item for hole, item in zip(wanted, items, strict=True)}


def _sizes(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and bool(item) and all(type(n) is int for n in item)


SIZES = "sizes that are letters may be any, the others are the model's own"


def _item(hole: Value, item: Any) -> Array | tuple[int, ...]:
    shape = hole.shape
    if _sizes(item) or (type(item) is int and shape is not None and len(shape) == 1 and isinstance(shape[0], str)):
        sizes = tuple(item) if _sizes(item) else (item,)
        if min(sizes) < 1 or not fits(shape, sizes):
            raise DataError(
                f"input `{hole.name}` has shape {shape_text(shape)}, the example {shape_text(sizes)}", SIZES
            )
        return sizes
    if isinstance(item, (bool, int, float)):
        sizes = tuple(n for n in shape or () if isinstance(n, int))
        if shape is None or len(sizes) < len(shape):
            raise DataError(f"input `{hole.name}` has open sizes, {item} is a number", "give its sizes, or an array")
        return np.full(sizes, item, np.float32 if hole.dtype == "bfloat16" else hole.dtype)
    array = as_array(item)
    if not fits(shape, array.shape):
        raise DataError(
            f"input `{hole.name}` has shape {shape_text(shape)}, the example {shape_text(array.shape)}", SIZES
        )
    return array


def fits(declared: Sequence[Size] | None, sizes: Sequence[int]) -> bool:
    return declared is None or (
        len(declared) == len(sizes)
        and all(isinstance(want, str) or want == got for want, got in zip(declared, sizes, strict=True))
    )


def as_array(given: Any) -> Array:
    """A tensor of either framework as numpy has it."""
    return np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)


def shape_text(shape: Sequence[Size] | None) -> str:
    return f"({', '.join(map(str, shape or ()))})"
