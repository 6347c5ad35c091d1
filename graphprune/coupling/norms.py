"""Norms that are written out in sums and square roots, found as what they are.

RMSNorm, LayerNorm, L2 and global response normalisation divide an axis by a statistic of that axis. Where what is
pruned is zero in the masked model, a sum or an L2 norm does not notice that it goes. A mean over n of d positions is
d / n times what it was, which a weight and an eps take up, if nothing but products and powers lies between: so RMSNorm
(power -1/2) and global response normalisation (power -1) are pruned with a proof, however they are spelt. What is
centred, as in LayerNorm, is not zero where it was masked: it mixes positions, and the masked model is no reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..axes.dim import Dim, find
from ..ir.graph import Graph, Op, Value, WrittenNorm

_SCALES = ("sqrt", "rsqrt")
_SPREADS = ("norm", "var")
_MEANS = ("mean", "sum")
CASTS = ("same", "cast")
_POWERS = {"same": 1.0, "cast": 1.0, "square": 2.0, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}
_PLACES = ("expand", "reshape", "transpose")  # where numbers stay what they are
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


def means(graph: Graph) -> dict[str, WrittenNorm]:
    """By the name of the op that takes the mean, the means whose share a weight of their own makes up for: what comes
    of them is multiplied and raised to powers alone, and one number may be added, until that weight scales it."""
    courses = [course for op in graph.ops if (course := _course(graph, op, ("mean",))) is not None]
    alike: dict[str, set[tuple[Dim, float, float]]] = {}
    for course in courses:
        norm = course.norm
        alike.setdefault(norm.weight, set()).add((find(norm.dim), norm.power, norm.shift))
    return {
        course.norm.mean: course.norm
        for course in courses
        if len(alike[course.norm.weight]) == 1 and _own(graph, courses, course)
    }


@dataclass(frozen=True)
class Written:
    """A LayerNorm or RMSNorm of ``x`` along ``axis`` that is written out: ``op`` applies the weight, ``last`` adds
    the bias, where there is one."""

    kind: str  # layer_norm or rms_norm
    x: Value
    axis: int
    norm: WrittenNorm
    op: Op
    last: Op
    bias: Value | None = None

    @property
    def out(self) -> Value:
        return self.last.outputs[0]


def written_norms(graph: Graph) -> list[Written]:
    """The layers x / sqrt(mean(x^2) + eps) * weight, and those of x less its mean, with a weight of norms alone."""
    courses = [course for op in graph.ops if (course := _course(graph, op, ("mean", "var"))) is not None]
    found = (_layer(graph, course) for course in courses if _own(graph, courses, course))
    return [one for one in found if one is not None]


@dataclass(frozen=True)
class _Course:
    """What becomes of the statistic that ``op`` takes: ``met`` is what else it is multiplied with, or divides."""

    op: Op
    norm: WrittenNorm
    last: Op
    met: tuple[Value, ...]


def _course(graph: Graph, op: Op, functions: Sequence[str]) -> _Course | None:
    """Follow a statistic along one axis to the weight that scales it. Times s, it makes what comes out s^power times
    as large, and the number that is added on the way is to be s^eps_power times as large."""
    x = op.inputs[0] if op.inputs else None
    if op.kind != "reduce" or op.attrs.get("function") not in functions or len(op.attrs["axes"]) != 1 or x is None:
        return None
    axis = op.attrs["axes"][0] % len(x.dims)
    dim, value, met = find(x.dims[axis]), op.outputs[0], list[Value]()
    eps, at, power = "", 1.0, 1.0
    while (user := graph.only_user(value)) is not None and user.kind in ("pointwise", *_PLACES):
        function = str(user.attrs.get("function"))
        factors = user.inputs[1:] if function == "addcmul" else user.inputs
        others = [other for other in factors if other is not None and other is not value]
        if user.kind in _PLACES or function in _POWERS:
            power *= _POWERS.get(function, 1.0)
        elif "plus" in user.attrs and not eps:
            eps, at = user.name, power
        elif function in ("mul", "div", "addcmul") and value in factors and len(others) <= 1:
            below = function == "div" and user.inputs[0] is not value
            power = -power if below else power
            scale = _scale(graph, user, others[0], dim) if others and (below or function != "div") else None
            if scale is not None:
                weight, shift, last = scale
                norm = WrittenNorm(dim, op.name, eps, weight.name, last.name, shift, power, at)
                return _Course(op, norm, last, tuple(met))
            met += [other for other in others if not _number(other)]
        else:
            return None
        value = user.outputs[0]
    return None


def _scale(graph: Graph, op: Op, value: Value, dim: Dim) -> tuple[Value, float, Op] | None:
    """The parameter along a dim that a factor of an op is, or has as a factor where none but this op reads it; the
    number that is added to it before; and the op that multiplies with it."""
    weight, shift = _shifted(graph, value)
    if weight is not None and weight.name in graph.parameters and _along(weight, dim):
        return weight, shift, op
    maker = graph.maker(value)
    if maker is None or maker.attrs.get("function") != "mul" or value.constant or graph.only_user(value) is not op:
        return None
    return next((found for one in maker.inputs if one and (found := _scale(graph, maker, one, dim))), None)


def _own(graph: Graph, courses: Iterable[_Course], course: _Course) -> bool:
    """Whether its weight scales what such statistics make, and nothing else."""
    weight = course.norm.weight
    return _readers(graph, graph.parameters[weight]) == {one.last for one in courses if one.norm.weight == weight}


def _layer(graph: Graph, course: _Course) -> Written | None:
    op, norm = course.op, course.norm
    x, less = _squared(graph, op) if op.attrs["function"] == "mean" else _varied(graph, op)
    plain = norm.power == -0.5 and norm.eps_power == 1 and course.last.attrs.get("function") == "mul"
    if x is None or not plain or [_centred(graph, one, norm.dim) for one in course.met] != [(x, less)]:
        return None
    axis, out = op.attrs["axes"][0] % len(x.dims), course.last.outputs[0]
    if not less:
        return Written("rms_norm", x, axis, norm, course.last, course.last)
    last = graph.only_user(out)
    if last is not None and last.attrs.get("function") == "add":
        bias = next((_stored(graph, one) for one in last.inputs if one is not out), None)
        if bias is not None and bias.name in graph.parameters and _along(bias, norm.dim):
            return Written("layer_norm", x, axis, norm, course.last, last, bias)
    return Written("layer_norm", x, axis, norm, course.last, course.last)


def _squared(graph: Graph, op: Op) -> tuple[Value | None, bool]:
    """What an op reads the squares of, and whether these are of that less its mean."""
    dim = op.inputs[0].dims[op.attrs["axes"][0]]  # type: ignore[union-attr]
    maker = graph.maker(_plain(graph, op.inputs[0]))  # type: ignore[arg-type]
    function = maker.attrs.get("function") if maker is not None else None
    roots = {_centred(graph, one, dim) for one in maker.inputs if one is not None} if maker is not None else set()
    square = len(roots) == 1 and maker is not None and (function, len(maker.inputs)) in (("square", 1), ("mul", 2))
    return roots.pop() if square else (None, False)


def _varied(graph: Graph, op: Op) -> tuple[Value | None, bool]:
    """What an op takes the variance of, all positions a population."""
    x = op.inputs[0] if op.attrs.get("population") else None
    return (_centred(graph, x, x.dims[op.attrs["axes"][0]])[0], True) if x is not None else (None, False)


def _centred(graph: Graph, value: Value, dim: Dim) -> tuple[Value, bool]:
    """What a value is a cast of, or that of which it is the rest when its mean along a dim is taken away."""
    value = _plain(graph, value) or value
    maker = graph.maker(value)
    if maker is None or maker.attrs.get("function") != "sub" or len(maker.inputs) != 2:
        return value, False
    x, mean = (_plain(graph, one) for one in maker.inputs)
    by = graph.maker(mean) if mean is not None else None
    if by is None or x is None or by.kind != "reduce" or len(by.attrs["axes"]) != 1 or not by.attrs.get("keepdim"):
        return value, False
    taken = by.attrs.get("function") == "mean" or (by.attrs.get("function") == "var" and mean is by.outputs[-1])
    read = _plain(graph, by.inputs[0])
    same = taken and read is x and len(by.outputs) == (1 if by.attrs["function"] == "mean" else 2)
    return (x, True) if same and find(x.dims[by.attrs["axes"][0]]) is find(dim) else (value, False)


def _shifted(graph: Graph, value: Value | None) -> tuple[Value | None, float]:
    """The parameter that a value is, in any place and of any dtype, or that and a number."""
    value = _stored(graph, value)
    maker = graph.maker(value) if value is not None else None
    if maker is None or "plus" not in maker.attrs:
        return value, 0.0
    return _stored(graph, next((other for other in maker.inputs if not _number(other)), None)), maker.attrs["plus"]


def _stored(graph: Graph, value: Value | None) -> Value | None:
    """What a constant is a cast of, or has axes of size one more or less than."""
    while value is not None and value.constant and (maker := graph.maker(value)) is not None and _same(maker):
        value = maker.inputs[0]
    return value


def _same(op: Op) -> bool:
    return op.kind == "reshape" or op.attrs.get("function") in CASTS


def _along(value: Value, dim: Dim) -> bool:
    """Whether a dim is the only axis of a value, but for some of size one."""
    return [find(one) for one in value.dims if find(one).size != 1] == [find(dim)]


def _number(value: Value | None) -> bool:
    return value is None or (value.constant and not any(n != 1 for n in value.shape or ()))


def _plain(graph: Graph, value: Value | None) -> Value | None:
    """What a value is a cast of."""
    while value is not None and (maker := graph.maker(value)) is not None and maker.attrs.get("function") in CASTS:
        value = maker.inputs[0]
    return value


def _readers(graph: Graph, value: Value) -> set[Op]:
    """The ops that read a value, see ``_shifted``."""
    found: set[Op] = set()
    for user in graph.users(value):
        on = _same(user) or "plus" in user.attrs
        found |= {reader for out in user.outputs for reader in _readers(graph, out)} if on else {user}
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
