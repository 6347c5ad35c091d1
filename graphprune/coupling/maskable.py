"""How an axis is masked: which parameters to zero so that a channel counts for nothing.

Usually those that read it. Where two activations are contracted (queries with keys), nothing stored
reads the axis, and what *writes* one of the two is zeroed instead. Where neither can be had, the axis
is frozen: there would be no masked model to compare the pruned one with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..axes.dim import Dim, freeze, leaves, mix
from ..axes.notation import fed
from ..ir.graph import Graph, Masker, Op, Value, WrittenNorm
from ..ops.traits import traits
from .norms import rms_norms, statistics

Axes = frozenset[tuple[str, int]]
"""Parameter axes: (name, axis number)."""

_DEPTH = 200  # ops to look back through; further away nothing is tried


def settle(graph: Graph) -> None:
    """Freeze what cannot be masked, and note in ``graph.maskers`` what masks a contraction."""
    search, norms, written = _Search(graph), statistics(graph), rms_norms(graph)
    for op in graph.ops:
        relation = graph.relations[op.name]
        if op.kind == "reindex":
            _reindex(op, relation.dims["i"], search)
            continue
        if op.kind == "rms_norm" and "c" in relation.dims:
            _norm(op, relation.dims["c"], search)
        for name, dim in relation.dims.items():
            if name in relation.outputs:
                continue
            operands = [value for k, _ in relation.inputs[name] if (value := op.inputs[k]) is not None]
            constants = [value for value in operands if value.constant]
            if len(constants) == len(operands) and not fed(name):
                freeze(dim, f"{op.where} reduces over it")
            elif constants:
                _reader(op, dim, constants, search)
            elif len({id(value) for value in operands}) > 1:
                _contraction(op, dim, operands, search)
            elif op.name in written:
                _written_norm(op, *written[op.name], search)
            elif op.name in norms:
                mix(dim, op.where)
            else:
                freeze(dim, f"{op.where} reduces over it")


def maskable(graph: Graph, value: Value, leaf: Dim) -> bool:
    """Whether zeros in parameters can make ``value`` zero at a position of ``leaf``."""
    return _Search(graph)(value, leaf) is not None


def silencers(graph: Graph, value: Value) -> tuple[int, dict[tuple[str, int], Dim]]:
    """An axis of a value, and the parameter axes that, zeroed where they have a leaf of it, make all of the value
    zero; with each the axis that it has part in. None where nothing makes the whole of it zero."""
    search = _Search(graph)
    for axis, dim in enumerate(value.dims):
        found = [search(value, leaf) for leaf in leaves(dim)]
        if all(isinstance(leaf.size, int) for leaf in leaves(dim)) and all(found):
            return axis, {at: dim for axes in found if axes for at in sorted(axes)}
    return 0, {}


def _reader(op: Op, dim: Dim, weights: Sequence[Value], search: _Search) -> None:
    """A weight that is computed must be zero where the parameters it is computed from are."""
    for value in weights:
        for leaf in leaves(dim):
            maker = search.graph.maker(value)
            if maker is not None and (leaf.outside or not leaf.frozen) and search(value, leaf) is None:
                freeze(leaf, f"{op.where} reads it with a weight that is not zero where {maker.where} gets zeros")


def _reindex(op: Op, dim: Dim, search: _Search) -> None:
    """What is left out is not read further on; what is filled up must be zero in the masked model."""
    if op.attrs["fills"]:
        _contraction(op, dim, [value for value in op.inputs if value is not None], search)


def _norm(op: Op, dim: Dim, search: _Search) -> None:
    """What an RMS norm no longer sees must be zero in the masked model, and its weight, which is scaled, its own."""
    x, weight = op.inputs[0], op.inputs[1]
    assert x is not None and weight is not None
    own = weight.name in search.graph.parameters and all(
        user.kind == "rms_norm" and user.inputs[0] is not weight for user in search.graph.users(weight)
    )
    _across(op, x if own else None, dim, search)


def _written_norm(op: Op, x: Value, norm: WrittenNorm, search: _Search) -> None:
    _across(op, x, norm.dim, search)
    if not any(leaf.mixed for leaf in leaves(norm.dim)):
        search.graph.norms.append(norm)


def _across(op: Op, x: Value | None, dim: Dim, search: _Search) -> None:
    """What makes ``x`` zero at the positions of a dim that an op takes a mean over; where nothing does, it mixes."""
    for leaf in leaves(dim):
        found = search(x, leaf) if x is not None and not leaf.frozen and not leaf.mixed else None
        if found is None:
            mix(leaf, op.where)
        else:
            search.graph.maskers += [Masker(leaf, name, axis, op.name, across=True) for name, axis in sorted(found)]


def _contraction(op: Op, dim: Dim, operands: Iterable[Value], search: _Search) -> None:
    for leaf in leaves(dim):
        found = None if leaf.frozen else next((axes for v in operands if (axes := search(v, leaf))), None)
        if found is None:
            freeze(leaf, f"{op.where} contracts it between activations")
        else:
            search.graph.maskers += [Masker(leaf, name, axis, op.name) for name, axis in sorted(found)]


@dataclass
class _Search:
    """Finds the parameter axes that, zeroed at a position of a leaf, make a value zero there."""

    graph: Graph
    _known: dict[tuple[str, int], Axes | None] = field(default_factory=dict)

    def __call__(self, value: Value, leaf: Dim, depth: int = 0) -> Axes | None:
        key = (value.name, id(leaf))
        if key not in self._known:
            self._known[key] = self._find(value, leaf, depth) if depth < _DEPTH else None
        return self._known[key]

    def _find(self, value: Value, leaf: Dim, depth: int) -> Axes | None:
        if not _has(value, leaf):
            return None
        op = self.graph.maker(value)
        if op is None:
            own = value.name in self.graph.parameters
            return frozenset((value.name, k) for k, dim in enumerate(value.dims) if _in(dim, leaf)) if own else None
        operands = [operand for operand in op.inputs if operand is not None]
        match traits(op).zeros:
            case "declared":
                return self._declared(op, operands, leaf, depth)
            case "first":
                return self(operands[0], leaf, depth + 1)
            case "moved":
                return self._all([operand for operand in operands if _has(operand, leaf)], leaf, depth)
            case "scaled" if op.inputs[1] is not None and op.inputs[2] is not None:
                return self._all([op.inputs[1], op.inputs[2]], leaf, depth)
            case "written":
                return self._written(op, leaf, depth)
        return None

    def _declared(self, op: Op, operands: Sequence[Value], leaf: Dim, depth: int) -> Axes | None:
        zero = op.attrs.get("zero")
        if zero == "any":
            return next((axes for operand in operands if (axes := self(operand, leaf, depth + 1))), None)
        if zero == "first":
            return self(operands[0], leaf, depth + 1)
        return self._all(operands, leaf, depth) if zero == "both" else None

    def _written(self, op: Op, leaf: Dim, depth: int) -> Axes | None:
        """Weight and bias rows that make the output's positions, all of them constants."""
        relation = self.graph.relations[op.name]
        makers: list[Value] = []
        for name, dim in relation.dims.items():
            if name in relation.outputs and _in(dim, leaf):
                makers += [value for k, _ in relation.inputs.get(name, ()) if (value := op.inputs[k]) is not None]
        written = all(value.constant and "int" not in value.dtype for value in makers)  # a zero index takes the first
        return self._all(makers, leaf, depth) if written else None

    def _all(self, operands: Sequence[Value], leaf: Dim, depth: int) -> Axes | None:
        found: set[tuple[str, int]] = set()
        for operand in operands:
            axes = self(operand, leaf, depth + 1)
            if axes is None:
                return None
            found |= axes
        return frozenset(found) if operands else None


def _in(dim: Dim, leaf: Dim) -> bool:
    return any(part is leaf for part in leaves(dim))


def _has(value: Value, leaf: Dim) -> bool:
    return any(_in(dim, leaf) for dim in value.dims)
