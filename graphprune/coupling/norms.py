"""Norms that are written out in sums and square roots, found as what they are.

RMSNorm, LayerNorm, L2 and global response normalisation divide an axis by a statistic of that axis. As the layers of
those names do, they mix its positions: what is pruned no longer counts, and the masked model is no reference.
"""

from __future__ import annotations

from ..axes.dim import Dim, find
from ..ir.graph import Graph, Op, Value

_SCALES = ("sqrt", "rsqrt")
_SPREADS = ("norm", "var")
_MEANS = ("mean", "sum")
_DEPTH = 12  # ops between a statistic and what it divides


def statistics(graph: Graph) -> frozenset[str]:
    """The names of the ``reduce`` ops that are a norm's: what they reduce is divided by what comes of them, or has
    its mean taken away where it is also divided so."""
    scaled: dict[str, set[Dim]] = {}
    centred: dict[str, set[Dim]] = {}
    for op in graph.ops:
        if op.kind == "reduce" and op.attrs.get("function") in (*_MEANS, *_SPREADS):
            for axis in _gone(op):
                kinds = _ends(graph, op, axis)
                dim = find(op.inputs[0].dims[axis])  # type: ignore[union-attr]
                for end, found in (("scale", scaled), ("centre", centred)):
                    if end in kinds:
                        found.setdefault(op.name, set()).add(dim)
    divided = {dim for dims in scaled.values() for dim in dims}
    return frozenset((*scaled, *(name for name, dims in centred.items() if dims & divided)))


def _gone(op: Op) -> list[int]:
    x = op.inputs[0]
    rank = len(x.dims) if x is not None else 0
    return [axis % rank for axis in op.attrs["axes"]] if op.attrs.get("keepdim") or rank == 0 else []


def _ends(graph: Graph, op: Op, axis: int) -> set[str]:
    """What becomes of a statistic along the axis that it was taken of: ``scale``, ``centre``."""
    whole = find(op.inputs[0].dims[axis])  # type: ignore[union-attr]
    root = op.attrs["function"] in _SPREADS
    stack = [(value, root, 0) for value in op.outputs]
    seen: set[tuple[str, bool]] = set()
    ends: set[str] = set()
    while stack:
        value, rooted, depth = stack.pop()
        if (value.name, rooted) in seen or depth > _DEPTH:
            continue
        seen.add((value.name, rooted))
        for user in graph.users(value):
            if user.kind not in ("pointwise", "expand"):
                continue
            function = user.attrs.get("function")
            meets = any(_has(other, axis, whole) for other in user.inputs if other is not None and other is not value)
            divides = function == "div" and user.inputs[0] is not value
            if meets and (divides or (function == "mul" and rooted)):
                ends.add("scale")
            elif meets and function == "sub" and user.inputs[0] is not value:
                ends.add("centre")
            elif not meets or function is None:
                stack += ((out, rooted or function in _SCALES, depth + 1) for out in user.outputs)
    return ends


def _has(value: Value, axis: int, whole: Dim) -> bool:
    """Whether a value has the axis in full, in the same place."""
    return len(value.dims) > axis and find(value.dims[axis]) is whole
