"""Norms that are written out in sums and square roots, found as what they are.

RMSNorm, LayerNorm, L2 and global response normalisation divide an axis by a statistic of that axis. As the layers of
those names do, they mix its positions: what is pruned no longer counts, and the masked model is no reference. But of
an RMSNorm with a weight and an eps of its own it is, as of the layer of that name: see the rule of ``rms_norm``.
"""

from __future__ import annotations

from ..axes.dim import Dim, find
from ..ir.graph import Graph, Op, Value, WrittenNorm

_SCALES = ("sqrt", "rsqrt")
_SPREADS = ("norm", "var")
_MEANS = ("mean", "sum")
CASTS = ("same", "cast")
_POWERS = {"same": 1.0, "cast": 1.0, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}
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


def rms_norms(graph: Graph) -> dict[str, tuple[Value, WrittenNorm]]:
    """By the name of the op that takes the mean, the RMS norms whose weight scales norms alone, and what they norm."""
    found = {}
    scales: dict[str, set[Op]] = {}
    for op in graph.ops:
        if op.kind == "reduce" and op.attrs.get("function") == "mean":
            norm = _rms(graph, op)
            if norm is not None:
                x, written, last = norm
                found[op.name] = x, written
                scales.setdefault(written.weight, set()).add(last)
    own = {name for name, ops in scales.items() if _readers(graph, graph.parameters[name]) == ops}
    return {name: one for name, one in found.items() if one[1].weight in own}


def _rms(graph: Graph, op: Op) -> tuple[Value, WrittenNorm, Op] | None:
    """x / sqrt(mean(x^2) + eps) * weight: x, the norm, and the op that applies the weight."""
    gone = _gone(op)
    x = _squared(graph, op) if len(gone) == 1 else None
    plus = graph.only_user(op.outputs[0])
    if x is None or plus is None or "plus" not in plus.attrs:
        return None
    power, value = 1.0, plus.outputs[0]  # what power of mean(x^2) + eps that is
    while (user := graph.only_user(value)) is not None and user.kind in ("pointwise", "expand"):
        function = user.attrs.get("function")
        if any(_plain(graph, other) is x for other in user.inputs if other is not value):
            divides = function == "div" and user.inputs[1] is value
            exact = power == 0.5 if divides else power == -0.5 and function == "mul"
            scale = _scale(graph, user, x.dims[gone[0]], len(x.dims) - gone[0]) if exact else None
            if scale is None:
                return None
            weight, shift, last = scale
            return x, WrittenNorm(x.dims[gone[0]], op.name, plus.name, weight.name, last.name, shift), last
        numbers = all(other is value or _number(other) for other in user.inputs)
        step = 1.0 if user.kind == "expand" else _POWERS.get(str(function))
        if function in ("mul", "div") and numbers:  # a factor that all have
            step = -1.0 if function == "div" and user.inputs[0] is not value else 1.0
        if step is None:
            return None
        power, value = power * step, user.outputs[0]
    return None


def _squared(graph: Graph, op: Op) -> Value | None:
    """What an op reads the squares of."""
    maker = graph.maker(_plain(graph, op.inputs[0]))  # type: ignore[arg-type]
    roots = [_plain(graph, value) for value in maker.inputs] if maker is not None and maker.kind == "pointwise" else []
    function = maker.attrs.get("function") if maker is not None else None
    square = (function == "square" and len(roots) == 1) or (function == "mul" and len({id(x) for x in roots}) == 1)
    return roots[0] if square else None


def _scale(graph: Graph, op: Op, dim: Dim, last: int) -> tuple[Value, float, Op] | None:
    """The parameter that scales what an op makes along a dim, its ``last`` axis from the end, the number that is added
    to it before, and the op in which it scales."""
    value = op.outputs[0]
    while (user := graph.only_user(value)) is not None and user.kind == "pointwise":
        if user.attrs.get("function") == "mul":
            weight, shift = _shifted(graph, next(other for other in user.inputs if other is not value))
            if weight is None or weight.name not in graph.parameters or len(weight.dims) < last:
                return None
            return (weight, shift, user) if find(weight.dims[-last]) is find(dim) else None
        if user.attrs.get("function") not in CASTS:
            return None
        value = user.outputs[0]
    return None


def _shifted(graph: Graph, value: Value | None) -> tuple[Value | None, float]:
    """What a value is a cast of, or that and a number."""
    value = _plain(graph, value)
    maker = graph.maker(value) if value is not None else None
    if maker is None or "plus" not in maker.attrs:
        return value, 0.0
    return _plain(graph, next((other for other in maker.inputs if not _number(other)), None)), maker.attrs["plus"]


def _number(value: Value | None) -> bool:
    return value is None or (value.constant and not any(n != 1 for n in value.shape or ()))


def _plain(graph: Graph, value: Value | None) -> Value | None:
    """What a value is a cast of."""
    while value is not None and (maker := graph.maker(value)) is not None and maker.attrs.get("function") in CASTS:
        value = maker.inputs[0]
    return value


def _readers(graph: Graph, value: Value) -> set[Op]:
    """The ops that read a value, a cast of it, or it and a number."""
    found: set[Op] = set()
    for user in graph.users(value):
        cast = user.attrs.get("function") in CASTS or "plus" in user.attrs
        found |= {reader for out in user.outputs for reader in _readers(graph, out)} if cast else {user}
    return found


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
