"""How an axis is masked: which parameters to zero so that a channel counts for nothing.

Usually those that read it. Where two activations are contracted (queries with keys), nothing stored
reads the axis, and what *writes* one of the two is zeroed instead. Where neither can be had, the axis
is frozen: there would be no masked model to compare the pruned one with.

Softmax and top-k weigh the positions of an axis against one another. Zeros count there, and minus infinity does not:
it is put in front of them. So an expert that is masked is never chosen, its share is zero, and what is picked by number
is never picked there.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from ..axes.dim import Dim, find, freeze, leaves, mix
from ..axes.notation import fed
from ..ir.graph import Choice, Graph, Masker, Op, Value, WrittenNorm
from ..ops.traits import traits
from .norms import CASTS, means, statistics

Axes = frozenset[tuple[str, int]]
"""Parameter axes: (name, axis number)."""

_PRODUCTS = ("matmul", "einsum", "fused_matmul")
_DEPTH = 200  # ops to look back through; further away nothing is tried


def settle(graph: Graph, lanes: Container[str] = ()) -> None:
    """Freeze what cannot be masked, and note in ``graph.maskers`` what masks a contraction. ``lanes``: ops that take
    single positions."""
    search, norms, written = _Search(graph), statistics(graph), means(graph)
    for op in graph.ops:
        relation = graph.relations[op.name]
        if op.kind == "reindex":
            _reindex(op, relation.dims["i"], search)
            continue
        if op.kind == "rms_norm" and "c" in relation.dims:
            _norm(op, relation.dims["c"], search)
        if (choice := _choice(op)) is not None and relation.dims:
            graph.choices.append(choice)
        elif op.attrs.get("function") == "cumsum" and op.kind == "along":
            _running(op, graph)
        for name, dim in relation.dims.items():
            if name in relation.outputs or name in relation.picks or (choice and find(choice.dim) is find(dim)):
                continue
            if op.name in lanes:
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
                _written_norm(op, written[op.name], search)
            elif op.name in norms:
                _across(op, op.inputs[0] if op.attrs["function"] in ("sum", "norm") else None, dim, search)
            elif not _adds_nothing(op, dim, search):
                freeze(dim, f"{op.where} reduces over it")


def _choice(op: Op) -> Choice | None:
    """What an op weighs against one another, if it does."""
    x = op.inputs[0] if op.inputs else None
    if x is None or not x.dims:
        return None
    if op.kind == "topk":
        axis = op.attrs["axis"] % len(x.dims)
        return Choice(op.name, axis, x.dims[axis], op.attrs["best"])
    if op.kind == "along" and op.attrs.get("function") == "softmax" and len(op.attrs["axes"]) == 1:
        axis = op.attrs["axes"][0] % len(x.dims)
        return Choice(op.name, axis, x.dims[axis])
    return None


def _running(op: Op, graph: Graph) -> None:
    """A cumulative sum goes along positions in order: of a count of what was chosen, those that are never chosen may be
    left out; of anything else it tells them apart."""
    x = op.inputs[0]
    assert x is not None
    maker = graph.maker(x)
    while maker is not None and maker.attrs.get("function") in CASTS and maker.inputs[0] is not None:
        maker = graph.maker(maker.inputs[0])
    if maker is None or maker.kind != "count" or "e" not in graph.relations[maker.name].picks:
        freeze(x.dims[op.attrs["axes"][0]], f"{op.where} tells its positions apart")


def _adds_nothing(op: Op, dim: Dim, search: _Search) -> bool:
    """Whether an op sums what is zero where it is masked, with no parameter zeroed, or takes the largest of shares."""
    x = op.inputs[0]
    maker = search.graph.maker(x) if x is not None else None
    shares = maker is not None and maker.attrs.get("function") == "softmax"
    able = op.attrs.get("function") == "sum" or (op.attrs.get("function") == "max" and shares)
    free = all(leaf.outside or not leaf.frozen for leaf in leaves(dim))
    sums = op.kind == "reduce" and able and x is not None and free
    return sums and all(search(x, leaf) == frozenset() for leaf in leaves(dim))  # type: ignore[arg-type]


def maskable(graph: Graph, value: Value, leaf: Dim) -> bool:
    """Whether zeros in parameters can make ``value`` zero at a position of ``leaf``."""
    return _Search(graph)(value, leaf) is not None


def never(graph: Graph, value: Value, leaf: Dim) -> bool:
    """Whether a value is zero where a position of ``leaf`` is never chosen, with no parameter zeroed."""
    return _Search(graph)(value, leaf) == frozenset()


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


def _written_norm(op: Op, norm: WrittenNorm, search: _Search) -> None:
    _across(op, op.inputs[0], norm.dim, search)
    if not any(leaf.mixed for leaf in leaves(norm.dim)):
        search.graph.norms.append(norm)


def _across(op: Op, x: Value | None, dim: Dim, search: _Search) -> None:
    """What makes ``x`` zero at the positions of a dim that an op adds up; where nothing does, it mixes."""
    for leaf in leaves(dim):
        found = search(x, leaf) if x is not None and not leaf.frozen and not leaf.mixed else None
        if found is None:
            mix(leaf, op.where)
        else:
            search.graph.maskers += [Masker(leaf, name, axis, op.name, across=True) for name, axis in sorted(found)]


def _contraction(op: Op, dim: Dim, operands: Iterable[Value], search: _Search) -> None:
    for leaf in leaves(dim):
        found = None if leaf.frozen else next((x for v in operands if (x := search(v, leaf)) is not None), None)
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
        if self._never(op, leaf):
            return frozenset()
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

    def _never(self, op: Op, leaf: Dim) -> bool:
        """Whether an op makes zeros where what chooses is minus infinity, or nothing but zeros."""
        if op.kind in ("one_hot", "count"):
            name = self.graph.relations[op.name]
            return any(_in(name.dims[one], leaf) for one in name.picks)
        if op.kind == "scatter":
            relation = self.graph.relations[op.name]
            x = op.inputs[0]
            return any(_in(relation.dims[one], leaf) for one in relation.picks) and self._nothing(x)
        choice = _choice(op) if op.kind == "along" else None
        return (choice is not None and _in(choice.dim, leaf)) or self._nothing(op.outputs[0])

    def _nothing(self, value: Value | None) -> bool:
        """Whether a value is zero everywhere."""
        maker = self.graph.maker(value) if value is not None else None
        return maker is not None and maker.attrs.get("value") == 0

    def _declared(self, op: Op, operands: Sequence[Value], leaf: Dim, depth: int) -> Axes | None:
        zero = op.attrs.get("zero")
        if zero == "any":  # of a choice between a value and nothing, nothing is no factor
            factors = [operand for operand in operands if not self._nothing(operand)]
            return next((x for operand in factors if (x := self(operand, leaf, depth + 1)) is not None), None)
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
        if op.kind in _PRODUCTS and len(op.inputs) == 2:  # a factor that is zero is enough
            return next((x for value in makers if (x := self(value, leaf, depth + 1)) is not None), None)
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
