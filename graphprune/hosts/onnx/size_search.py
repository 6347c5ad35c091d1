"""Sizes to try where a model leaves its own open: until it runs, only running shows which it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod

import onnx_ir as ir

from ...ir.graph import Value
from .node import standard

_LEVELS = ((32, 8), (64, 16), (224, 56), (256, 64), (128, 32), (512, 128), (320, 256), (640, 512))
"""Heights and widths of images, and lengths of all else; smaller ones first."""
_FRAMES = (1024, 2048, 4096, 8192, 16000, 16384, 32768, 48000)
"""Lengths of what is longer: samples of sound, up to a second of them."""
_INDICES = 512
"""The most positions that integers are tried at: tables of positions end there."""
_CHANNELS = 2
"""Of sound, at most; what has more is no longer than ``_FEATURES``."""
_FEATURES = 2048
_STRIDES = 1 << 16
"""The largest stride of which multiples are tried."""


def candidates(holes: Sequence[Value], bound: Mapping[str, int], stride: int = 1) -> Iterator[dict[str, int]]:
    """Every open size in numbers, likelier ones first; ``bound`` are those known, and likely on the same axis of other
    inputs of as many axes. ``stride``: what a length may have to be a multiple of. One candidate where nothing is
    open."""
    leading = {str(hole.shape[0]) for hole in holes if hole.shape and isinstance(hole.shape[0], str)}
    beside = {symbol for hole in holes if (symbol := _alone(hole)) is not None} - leading - set(bound)
    seen: list[dict[str, int]] = []
    given = {
        (len(hole.shape or ()), axis): bound[n]
        for hole in holes
        for axis, n in enumerate(hole.shape or ())
        if isinstance(n, str) and n in bound
    }
    likes = (given, {}) if given else ({},)
    turned = (False, True) if leading and beside else (False,)  # states whose batch is on another axis
    for like, (image, length), batch, states in product(likes, _levels(stride), (2, 1), turned):
        sizes = dict(bound)
        for hole in holes:
            rank, most = len(hole.shape or ()), _longest(hole)
            for axis, n in enumerate(hole.shape or ()):
                if isinstance(n, str):
                    size = min(image, 640) if rank > 3 else min(length, most)
                    same = axis == 0 or (states and n in beside)
                    sizes.setdefault(n, like.get((rank, axis), batch if same else size))
        if sizes not in seen:
            seen.append(sizes)
            yield sizes


def _levels(stride: int) -> Iterator[tuple[int, int]]:
    yield from _LEVELS
    longer = [stride * k for k in (1, 2, 4)] if 1 < stride <= _STRIDES else []
    yield from ((n, n) for n in sorted({*longer, *_FRAMES}))


def _alone(hole: Value) -> str | None:
    """The only open size of an input, where that is not its first axis: of a state, the batch."""
    found = [n for n in hole.shape or () if isinstance(n, str)]
    return found[0] if len(found) == 1 and found[0] != (hole.shape or ())[0] else None


def _longest(hole: Value) -> int:
    if "float" not in hole.dtype:
        return _INDICES
    return _FRAMES[-1] if prod(n for n in hole.shape or () if isinstance(n, int)) <= _CHANNELS else _FEATURES


def largest_stride(model: ir.Model) -> int:
    """The most that convolutions and pools on one way through a model come to shrink an axis."""
    strides: dict[ir.Value, int] = {}
    for node in model.graph:
        own = node.attributes.get("strides")
        shrinks = own is not None and standard(node) and node.op_type in ("Conv", "MaxPool", "AveragePool", "LpPool")
        before = max((strides.get(value, 1) for value in node.inputs if value is not None), default=1)
        after = before * max(own.value, default=1) if shrinks and own is not None else before
        strides.update(dict.fromkeys(node.outputs, int(after)))
    return max(strides.values(), default=1)
