"""Rules applied: every axis of a graph becomes a Dim, and ops tie Dims together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from ..axes.dim import PRODUCT, Dim, Size, find, freeze, leaves, mix, product, same, total
from ..axes.index import Index
from ..axes.notation import Axis, Compound, Pattern, Term, fed, fit, parse
from ..errors import ShapeError
from ..ir.facts import Role
from ..ir.graph import Graph, Op, Relation, Value, around
from ..ops.rules import table
from ..ops.traits import handed_on
from .lanes import Lane, candidates
from .lanes import settle as settle_lanes
from .maskable import settle


def relate(graph: Graph) -> Graph:
    """Give every value its dims and record what the rules say of each op; returns ``graph``.

    Raises ShapeError, naming op, rule, axis and both sizes, where one axis has two sizes.
    """
    own, refused = candidates(graph), dict[str, tuple[Lane, str]]()
    while True:
        _relate(graph, own, refused)
        if not own:
            return graph
        unfit = settle_lanes(graph, own)
        if not unfit:
            return graph
        refused |= {name: (own[name], why) for name, why in unfit.items() if why}
        own = {name: lane for name, lane in own.items() if name not in unfit}


def _relate(graph: Graph, own: Mapping[str, Lane], refused: Mapping[str, tuple[Lane, str]]) -> None:
    """``own``: the ops that take or join single positions of axes that may go; ``refused``: those that do so of axes
    that may not, and why."""
    for known in (graph.maskers, graph.norms, graph.choices, graph.lanes):
        known.clear()
    for value in graph.values():
        value.dims, value.picks = tuple(Dim(size) for size in value.shape or ()), None
    for value in graph.inputs:
        for dim in value.dims:  # what is cut of an input is a fixed list of positions, which no open axis has
            freeze(dim, "graph input", outside=isinstance(dim.size, int))
    for op in graph.ops:
        lane, why = refused.get(op.name, (None, ""))
        if lane is not None and (axis := lane.dim(op)) is not None:
            freeze(axis, why)
        try:
            graph.relations[op.name] = _apply(op, own.get(op.name))
        except ShapeError as error:
            error.around = around(graph, op)
            raise
    for value in graph.outputs:
        for dim in value.dims:
            freeze(dim, "reaches the graph output", outside=True)
        if value.picks is not None:
            freeze(value.picks, "numbers of its positions reach the graph output")
    for op in graph.ops:
        _freeze_computed(op, graph.relations[op.name])
    settle(graph, own)


def role(op: Op, relation: Relation, name: str) -> Role | None:
    """The part that the op's weights play in the axis ``name``; None where they have none in it."""
    from_weights, from_data = _sources(op, relation, name)
    from_data |= any(value is not None and not value.constant for value in _pickers(op, relation, name))
    if fed(name) or f"{name}'" in relation.dims:  # weights write the state, and read what the op made of it
        from_data = fed(name) is not None
    if not from_weights or not any(value is not None and not value.constant for value in op.inputs):
        return None
    if name not in relation.outputs:
        return "reader" if from_data else None
    return "carrier" if from_data else "writer"


def literals(op: Op, relation: Relation, index: Index) -> dict[str, Any]:
    """The op's literals after ``index`` is applied, where they change; None in a list: leave it."""
    out: dict[str, Any] = {}
    for name, text in relation.literals.items():
        if text.startswith("share("):  # times what is left of the axis, upside down: the op divides by its size
            dim = relation.dims[text[6:-1]]
            if index.touches(dim):
                out[name] = op.attrs[name] / share(dim, index)
        elif text.startswith("rsqrt("):  # a default that depends on the size: spell out what it was
            dim = relation.dims[text[6:-1]]
            if index.touches(dim) and isinstance(size := find(dim).size, int):
                out[name] = size**-0.5
        elif text == "*":
            dims: list[Dim] = list(op.outputs[0].dims)
            if any(map(index.touches, dims)):
                out[name] = [n if isinstance(n := index.length(dim), int) else None for dim in dims]
        elif any(index.touches(relation.dims[part]) for part in _parts(op, relation, text)):
            values = [_evaluate(item, relation, index) for item in text.split(",")]
            out[name] = values[0] if name == "groups" else values
    return out


def share(dim: Dim, index: Index) -> float:
    """How much of a dim is left."""
    size, left = find(dim).size, index.length(dim)
    return left / size if isinstance(size, int) and isinstance(left, int) else 1.0


def rescaled(graph: Graph, index: Index) -> dict[str, tuple[float, float]]:
    """What to multiply weights by, and then add, whose op divides by a mean over an axis of which less is left: those
    of RMS norms, and of others that are written out.

    Of n of d channels, the others zero, sum(x^2) / d + eps is (n / d) (sum(x^2) / n + eps d / n)."""
    found = {}
    for norm in graph.norms:
        if index.touches(norm.dim):
            factor = share(norm.dim, index) ** norm.power
            found[norm.weight] = factor, (factor - 1) * norm.shift
    for op in graph.ops:
        dims = graph.relations[op.name].dims
        if op.kind == "rms_norm" and "c" in dims and index.touches(dims["c"]) and op.inputs[1] is not None:
            found[op.inputs[1].name] = share(dims["c"], index) ** -0.5, 0.0
    return found


def raised(graph: Graph, index: Index) -> dict[str, float]:
    """What the ops that add to a mean, or a power of it, are to add now, by name: see ``rescaled``."""
    touched = {norm.eps: share(norm.dim, index) ** norm.eps_power for norm in graph.norms if index.touches(norm.dim)}
    return {op.name: op.attrs["plus"] / touched[op.name] for op in graph.ops if op.name in touched}


def _parts(op: Op, relation: Relation, text: str) -> list[str]:
    """The axes that a literal depends on. A slice's bound may be counted from the end: on all, then."""
    if op.kind == "slice":
        return list(relation.dims)
    return [part for part in text.replace(",", "+").split("+") if part in relation.dims]


def _evaluate(text: str, relation: Relation, index: Index) -> int | None:
    if text == "none":
        return None
    sizes = [int(part) if part.isdigit() else index.length(relation.dims[part]) for part in text.split("+")]
    return sum(size for size in sizes if isinstance(size, int))


def _sources(op: Op, relation: Relation, name: str) -> tuple[bool, bool]:
    values = [op.inputs[k] for k, _ in relation.inputs.get(name, ())]
    constant = [value.constant for value in values if value is not None]
    return any(constant), not all(constant)


def _pickers(op: Op, relation: Relation, name: str) -> list[Value | None]:
    """The operands whose numbers are positions of an axis."""
    return [op.inputs[k] for k in relation.picks.get(name, ())]


def _freeze_all(values: list[Value], reason: str) -> None:
    for value in values:
        for dim in value.dims:
            freeze(dim, reason)


def _apply(op: Op, lane: Lane | None = None) -> Relation:
    values = [value for value in (*op.inputs, *op.outputs) if value is not None]
    rule = lane.rule if lane is not None else table().get(op.kind)
    unknown = [value.name for value in values if value.shape is None]
    if rule is None or unknown:
        why = f"the shape of {unknown[0]} is not known" if unknown else f"no rule for `{op.kind}`"
        _freeze_all(values, f"{op.origin or op.name}: {why}")
        return Relation({}, {}, {})
    binder = _Binder(op, parse(rule if isinstance(rule, str) else rule(op)))
    binder.bind()
    picks = _carry_picks(op, binder)
    return Relation(binder.dims, dict(binder.inputs), dict(binder.outputs), binder.pattern.literals, picks)


def _carry_picks(op: Op, binder: _Binder) -> dict[str, tuple[int, ...]]:
    """Whose numbers are positions of an axis, among what the op reads and makes. An op that computes with them, and
    does not say how, freezes that axis: there they are told apart."""
    inputs, outputs = binder.pattern.picks
    found: dict[str, tuple[int, ...]] = defaultdict(tuple)
    for k, (value, name) in enumerate(zip_longest(op.inputs, inputs[: len(op.inputs)])):
        if value is None:
            continue
        if name is not None:
            found[name] += (k,)
            own = binder.dims.setdefault(name, value.picks or Dim(1))
            same(own, value.picks or own, f"{op.where}, axis `{name}`")
        elif value.picks is not None and not handed_on(op, k):
            freeze(value.picks, f"{op.where} computes with numbers of its positions")
    for value, name in zip(op.outputs, outputs, strict=False):
        if name is not None:
            value.picks = binder.dims[name]
    moved = [value.picks for k, value in enumerate(op.inputs) if value is not None and handed_on(op, k)]
    if moved and all(dim is not None for dim in moved):
        for dim in moved:
            same(moved[0], dim, op.where)  # type: ignore[arg-type]
        for value in op.outputs[:1] if op.kind == "sort" else op.outputs:
            value.picks = moved[0]
    elif any(dim is not None for dim in moved):
        for dim in filter(None, moved):
            freeze(dim, f"{op.where} mixes numbers of its positions with others")
    return dict(found)


def _freeze_computed(op: Op, relation: Relation) -> None:
    """A size that is computed from a dynamic one (``4*s0``) stays as it is computed, so the rest of it
    may not change; unless the op infers it (``inferred``: those output axes)."""
    if "*" not in relation.literals.values():
        return
    for axis, dim in enumerate(op.outputs[0].dims):
        if isinstance(find(dim).size, str) and axis not in op.attrs.get("inferred", ()):
            for leaf in leaves(dim):
                if isinstance(leaf.size, int):
                    freeze(leaf, f"{op.where} computes with its size")


class _Binder:
    """Binds the names of one pattern to the dims of one op's operands."""

    def __init__(self, op: Op, pattern: Pattern) -> None:
        self.op, self.pattern = op, pattern
        self.dims: dict[str, Dim] = {}
        self.inputs: dict[str, tuple[tuple[int, int], ...]] = defaultdict(tuple)
        self.outputs: dict[str, tuple[tuple[int, int], ...]] = defaultdict(tuple)

    def bind(self) -> None:
        axes = list(self._axes())
        for structured in (False, True):  # plain names first: they size the structured terms
            for term, dim in axes:
                if isinstance(term, Compound) is structured:
                    self._bind(term, dim)
        for operand in self.pattern.outputs[len(self.op.outputs) :]:  # pieces that nobody takes
            for term in operand:
                self._note(term, self.outputs, (-1, -1))
        for name in self.inputs:
            if (base := fed(name)) is not None:
                self.dims[name] = self.dims[base]

    def _axes(self) -> Iterator[tuple[Term, Dim]]:
        sides = (
            (self.op.inputs, self.pattern.inputs, self.inputs),
            (self.op.outputs, self.pattern.outputs, self.outputs),
        )
        for values, operands, uses in sides:
            for k, (value, operand) in enumerate(zip(values, operands, strict=False)):
                if value is None:
                    continue
                try:
                    terms = fit(operand, len(value.dims), self.pattern.text)
                except ShapeError as error:
                    raise ShapeError(f"{self.op.where}: {error.message}") from error
                for axis, (term, dim) in enumerate(zip(terms, value.dims, strict=True)):
                    if not (self._spread(term) and find(dim).size == 1):
                        self._note(term, uses, (k, axis))
                        yield term, dim

    @staticmethod
    def _spread(term: Term) -> bool:
        return isinstance(term, Axis) and (term.name == "1" or term.name.startswith("..."))

    def _note(self, term: Term, uses: dict[str, tuple[tuple[int, int], ...]], at: tuple[int, int]) -> None:
        if isinstance(term, Compound):
            for part in term.parts:
                self._note(part, uses, at)
        elif term.name not in ("_", "1") and at not in uses[term.name]:
            uses[term.name] += (at,)

    def _bind(self, term: Term, dim: Dim) -> None:
        where = f"{self.op.where}, rule `{self.pattern.text.strip()}`"
        if isinstance(term, Compound):
            same(dim, self._build(term, find(dim).size), where)
        elif term.name == "_":
            freeze(dim, f"{self.op.where} tells its positions apart")
        elif term.name == "1":
            if find(dim).size != 1:
                raise ShapeError(f"{where}: an axis of size {find(dim).size} where 1 was expected")
        elif (name := fed(term.name) or term.name) in self.dims:
            same(self.dims[name], dim, f"{where}, axis `{term.name}`")
        else:
            self.dims[name] = dim
        self._mark(term)

    def _mark(self, term: Term) -> None:
        if isinstance(term, Compound):
            for part in term.parts:
                self._mark(part)
        elif term.mixed:
            mix(self.dims[term.name], self.op.where)

    def _build(self, term: Term, size: Size | None) -> Dim:
        """The Dim of a term; at most one part of a compound may be of unknown size, and gets the rest."""
        if isinstance(term, Axis):
            return self._named(term, size)
        known = [self._size(part) for part in term.parts]
        missing = [k for k, n in enumerate(known) if n is None]
        if missing:
            known[missing[0]] = self._rest(term, size, [n for n in known if n is not None])
        kids = [self._build(part, n) for part, n in zip(term.parts, known, strict=True)]
        return product(kids) if term.kind == PRODUCT else total(kids)

    def _named(self, term: Axis, size: Size | None) -> Dim:
        assert size is not None
        if term.name == "_":
            dim = Dim(size)
            freeze(dim, f"{self.op.where} tells its positions apart")
            return dim
        return self.dims.setdefault(fed(term.name) or term.name, Dim(size))

    def _size(self, term: Term) -> Size | None:
        if isinstance(term, Compound):
            return self._build(term, None).size
        name = fed(term.name) or term.name
        return find(self.dims[name]).size if name in self.dims else term.size

    def _rest(self, term: Compound, size: Size | None, known: list[Size]) -> int:
        if isinstance(size, int) and all(isinstance(n, int) for n in known):
            sizes = [n for n in known if isinstance(n, int)]
            if term.kind != PRODUCT:
                return size - sum(sizes)
            volume = 1
            for n in sizes:
                volume *= n
            if volume and size % volume == 0:
                return size // volume
        raise ShapeError(f"{self.op.where}: an axis of size {size} does not split as `{self.pattern.text.strip()}`")
