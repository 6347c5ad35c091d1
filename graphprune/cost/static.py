"""Parameters and multiply-accumulates, as functions of how many channels each dim keeps."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from types import MappingProxyType
from typing import Any

from ..axes.dim import LEAF, Dim, Size, count, find, leaves, product, symbols
from ..errors import ShapeError
from ..ir.facts import Group
from ..ir.graph import Graph, Op, Rank, Value
from ..ir.host import Host
from ..ir.liveness import dead
from ..ops.macs import Product
from ..ops.traits import traits

Term = tuple[Dim, ...]


@dataclass(frozen=True)
class Cost:
    """A sum of products of axis sizes, in units of ``unit`` a sample."""

    unit: str
    terms: tuple[Term, ...]
    sizes: Mapping[str, int]  # what open sizes come to on the example: Host.sizes
    scale: float = 1.0
    _folded: dict[frozenset[Dim], list[tuple[float, Term]]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def __call__(self, kept: Mapping[Dim, float] | None = None) -> float:
        """The cost when each leaf in ``kept`` has that many positions, the others all of theirs."""
        kept = kept or {}
        done: dict[int, float] = {}

        def length(dim: Dim) -> float:
            if id(dim) not in done:
                done[id(dim)] = length_of(dim, kept, self.sizes)
            return done[id(dim)]

        free = frozenset(kept)
        if free not in self._folded:  # a search asks for the same dims thousands of times
            self._folded[free] = list(self._fold(free))
        return self.scale * sum(number * prod(map(length, term)) for number, term in self._folded[free])

    def parts(self) -> tuple[tuple[Cost, ...], ...] | None:
        """Sums of products of axis sizes: the cost is the sum, over these, of the least of each. None where it is no
        such sum."""
        return ((self,),)

    def whole_layers(self, kept: Mapping[Dim, float]) -> frozenset[str] | None:
        """Of the layers that may be whole or two, by the name of their first op, those that are whole at that; None
        where it knows none."""
        return None

    def _fold(self, free: frozenset[Dim]) -> Iterator[tuple[float, Term]]:
        """The terms with all that ``free`` does not change as one number; those of the same dims are one."""
        numbers: dict[tuple[int, ...], float] = {}
        dims: dict[tuple[int, ...], Term] = {}
        for term in self.terms:
            changing = tuple(dim for dim in map(find, term) if not free.isdisjoint(leaves(dim)))
            fixed = (length_of(dim, {}, self.sizes) for dim in map(find, term) if free.isdisjoint(leaves(dim)))
            key = tuple(sorted(map(id, changing)))
            numbers[key] = numbers.get(key, 0) + prod(fixed)
            dims[key] = changing
        return zip(numbers.values(), dims.values(), strict=True)


@dataclass(frozen=True)
class Either(Cost):
    """The same, and of every layer that is factored the lesser of its two parts and the whole. ``layers``: the names
    of their first ops."""

    pairs: tuple[tuple[Cost, Cost], ...] = ()
    layers: tuple[str, ...] = ()

    def __call__(self, kept: Mapping[Dim, float] | None = None) -> float:
        return sum((min(two(kept), whole(kept)) for two, whole in self.pairs), super().__call__(kept))

    def parts(self) -> tuple[tuple[Cost, ...], ...]:
        return ((Cost(self.unit, self.terms, self.sizes, self.scale),), *self.pairs)

    def whole_layers(self, kept: Mapping[Dim, float]) -> frozenset[str]:
        each = zip(self.layers, self.pairs, strict=True)
        return frozenset(name for name, (two, whole) in each if whole(kept) <= two(kept))


def length_of(dim: Dim, kept: Mapping[Dim, Any], sizes: Mapping[str, int]) -> Any:
    """How many positions an axis has when each leaf in ``kept`` has that many: arrays where ``kept`` has."""
    dim = find(dim)
    if dim.kind != LEAF:
        return count(dim, lambda leaf: kept[leaf] if leaf in kept else _evaluate(leaf.size, sizes))
    return kept[dim] if dim in kept else _evaluate(dim.size, sizes)


_ONE = "1/"


def _evaluate(size: Size, sizes: Mapping[str, int]) -> float:
    """A size in numbers, or a share of one: see ``gates``."""
    if isinstance(size, str) and size.startswith(_ONE):
        return 1 / int(size.removeprefix(_ONE))
    return evaluate(size, sizes)


Gates = Mapping[str, tuple[Dim, ...]]
"""By op, the factors that say how much of it is there: see ``gates``."""


def gates(graph: Graph, groups: Iterable[Group]) -> Gates:
    """Of every group of branches its dim of size one, on each op that only those branches are for. Of an axis whose
    positions have ops of their own (Graph.lanes) its size, by what it was, on each of these ops: which of
    them stay is not known, so that each counts with the share that is left of all (of multiply-accumulates for rows
    that data chooses, with all of it: they are shared out among those that stay)."""
    found: dict[str, tuple[Dim, ...]] = {}
    for group in groups:
        for name in dead(graph, group.branches) if group.branches else ():
            found[name] = (*found.get(name, ()), group.dim)
    for lanes in graph.lanes:
        for branches in lanes.ends.values():
            share = product([lanes.dim, Dim(f"{_ONE}{lanes.dim.size}")])
            for name in dead(graph, branches):
                found[name] = (*found.get(name, ()), share)
    return found


def params(graph: Graph, host: Host, gates: Gates = MappingProxyType({}), ranks: Sequence[Rank] = ()) -> Cost:
    """Trained numbers, see ``trained``. ``ranks``: of the layers that may be whole or factored."""
    found = {value.name: value.dims for op in graph.ops for value in trained(op, graph)}
    return _of_tensors(Cost("parameters", (), host.sizes()), found, graph, gates, ranks)


def size(graph: Graph, host: Host, gates: Gates = MappingProxyType({}), ranks: Sequence[Rank] = ()) -> Cost:
    """Bytes of all tensors that the model stores, see ``weights_bytes``. ``ranks``: as for ``params``."""
    stored = {v.name: (*v.dims, bits(v.dtype)) for v in graph.parameters.values() if v.shape is not None}
    return _of_tensors(Cost("bytes of weights", (), host.sizes(), 1 / 8), stored, graph, gates, ranks)


def bits(dtype: str) -> Dim:
    """Those of a number, as one more axis of its tensor."""
    return Dim(round(8 * item_bytes(dtype)))


def _of_tensors(plain: Cost, tensors: Mapping[str, Term], graph: Graph, gates: Gates, ranks: Sequence[Rank]) -> Cost:
    """``plain`` with a term for each tensor, none of one whose readers all go with a branch."""
    used: dict[str, list[tuple[Dim, ...]]] = {}
    for op in graph.ops:
        for value in op.inputs:
            if value is not None and value.name in tensors:
                used.setdefault(value.name, []).append(gates.get(op.name, ()))
    terms = {name: (*term, *_common(used.get(name, [()]))) for name, term in tensors.items()}
    pairs, ops = [], {op.name: op for op in graph.ops}
    for rank in ranks:
        inner, *outers = (terms.pop(_weight(graph, ops[name])) for name in (rank.inner, *rank.outers))
        read = graph.parameters[_weight(graph, ops[rank.inner])].dims
        whole = [(*_without(rank, read), *_without(rank, outer)) for outer in outers]
        pairs.append(([inner, *outers], whole))
    return _lesser(replace(plain, terms=tuple(terms.values())), pairs, ranks)


def _weight(graph: Graph, op: Op) -> str:
    weight = op.inputs[1] and graph.stored(op.inputs[1])
    assert weight is not None
    return weight.name


def _without(rank: Rank, term: Term) -> Term:
    return tuple(dim for dim in term if find(dim) is not find(rank.dim))


def _lesser(plain: Cost, pairs: Sequence[tuple[Sequence[Term], Sequence[Term]]], ranks: Sequence[Rank]) -> Cost:
    """With the layers of ``pairs``: what their parts cost, and what they cost whole."""
    if not pairs:
        return plain
    made = [(replace(plain, terms=tuple(two)), replace(plain, terms=tuple(whole))) for two, whole in pairs]
    names = tuple(rank.outers[0] for rank in ranks)
    return Either(plain.unit, plain.terms, plain.sizes, plain.scale, tuple(made), names)


def _common(gates: Sequence[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """Those without which no reader of a parameter is there."""
    return tuple(dim for dim in gates[0] if all(dim in others for others in gates[1:]))


_QUANTISED = ("int8", "uint8", "int4", "uint4", "int2", "uint2")


def trained(op: Op, graph: Graph) -> list[Value]:
    """The stored operands of an op that training made: floating-point and complex numbers, and integers that stand for
    such; no running statistics, no buffers of a module, and no scales and zero points of what is quantised."""
    scaling = op.attrs.get("scaling", ())
    found = [value for k, value in enumerate(op.inputs[: traits(op).trained]) if k not in scaling]
    stored = [value for value in found if value is not None and value.name in graph.parameters]
    known = [value for value in stored if value.name not in graph.tables]
    return [value for value in known if _is_number(value) or (scaling and "int" in value.dtype)]


def _is_number(value: Value) -> bool:
    return "float" in value.dtype or "complex" in value.dtype or value.dtype in _QUANTISED


def macs(graph: Graph, host: Host, gates: Gates = MappingProxyType({}), ranks: Sequence[Rank] = ()) -> Cost:
    """Multiply-accumulates of convolutions, linear layers, matrix products and attention, a sample. ``ranks``: of the
    layers that may be whole or factored."""
    found = {op.name: list(products(op, graph)) for op in graph.ops}
    given = {name for value in graph.inputs for dim in value.dims for name in _names(dim)}

    def term(name: str, one: Product) -> Term:
        there = gates.get(name, ())
        if any(not given.issuperset(_names(dim)) for dim in one.rows):  # rows that data chooses go to what is left
            there = tuple(dim for dim in there if find(dim).kind == LEAF)
        return (*one.rows, *one.outer, *one.inner, *one.steps, *there)

    pairs = []
    for rank in ranks:
        (inner,), outers = found.pop(rank.inner), [found.pop(name)[0] for name in rank.outers]
        wholes = [replace(outer, inner=(*inner.inner, *_without(rank, outer.inner))) for outer in outers]
        two = [term(rank.inner, inner), *map(term, rank.outers, outers)]
        pairs.append((two, list(map(term, rank.outers, wholes))))
    terms = [term(name, one) for name, each in found.items() for one in each]
    return _lesser(Cost("MACs", tuple(terms), host.sizes(), 1 / samples(graph, host)), pairs, ranks)


def _names(dim: Dim) -> set[str]:
    """Those of the open sizes in an axis."""
    return {name for leaf in leaves(dim) for name in symbols(leaf.size)}


def samples(graph: Graph, host: Host) -> int:
    """How many samples the example holds: the size of the first axis of the inputs where that is a batch.

    It is where it is open, and the same in every input that has an open one; and where it is the same axis
    in every input and output. Else the whole example counts as one sample.
    """
    given = [value for value in graph.inputs if value.dims]
    firsts = [value.dims[0] for value in given]
    sizes = {str(find(dim).size) for dim in firsts if isinstance(find(dim).size, str)}
    same = {id(find(value.dims[0])) if value.dims else 0 for value in (*given, *graph.outputs)}
    if not firsts or not (len(sizes) == 1 or len(same) == 1):
        return 1
    chosen = next((k for k, dim in enumerate(firsts) if str(find(dim).size) in sizes), 0)
    array = host.example()[graph.inputs.index(given[chosen])]
    return max(1, int(array.shape[0]))


def products(op: Op, graph: Graph) -> Iterator[Product]:
    """The matrix products that an op is; none where a shape is not known."""
    multiplied, relation = traits(op).products, graph.relations[op.name]
    if multiplied is not None and relation.dims:
        yield from multiplied(op, relation)


@dataclass(frozen=True)
class Peak(Cost):
    """The largest, over moments, of a sum of products of axis sizes: ``moments`` lists for each the
    numbers of the ``terms`` that count, ``bytes_each`` what an entry of each term takes."""

    moments: tuple[tuple[int, ...], ...] = ()
    bytes_each: tuple[float, ...] = ()

    def parts(self) -> None:
        return None

    def __call__(self, kept: Mapping[Dim, float] | None = None) -> float:
        sizes = [
            size * Cost(self.unit, (term,), self.sizes, self.scale)(kept)
            for term, size in zip(self.terms, self.bytes_each, strict=True)
        ]
        return max((sum(sizes[k] for k in live) for live in self.moments), default=0.0)


def memory(graph: Graph, host: Host) -> Peak:
    """The most bytes of activations that live at once, a sample: inputs and results of each op in turn
    and what later ops read. What a runtime does in place or fuses is not known here."""
    values = [v for v in (*graph.inputs, *(out for op in graph.ops for out in op.outputs)) if not v.constant]
    number = {value.name: k for k, value in enumerate(values)}
    last = {value.name: len(graph.ops) for value in graph.outputs}
    for position, op in enumerate(graph.ops):
        last.update({v.name: max(position, last.get(v.name, 0)) for v in op.inputs if v is not None})
    born = {value.name: position for position, op in enumerate(graph.ops) for value in op.outputs}
    moments = tuple(
        tuple(
            number[v.name] for v in values if born.get(v.name, 0) <= position <= last.get(v.name, born.get(v.name, 0))
        )
        for position in range(len(graph.ops))
    )
    sizes = tuple(item_bytes(value.dtype) for value in values)
    return Peak(
        "bytes of activations",
        tuple(value.dims for value in values),
        host.sizes(),
        1 / samples(graph, host),
        moments,
        sizes,
    )


def weights_bytes(graph: Graph) -> int:
    """What the tensors take that the model stores and its ops read."""
    stored = [value for value in graph.parameters.values() if value.shape is not None]
    return round(sum(prod(map(int, value.shape or ())) * item_bytes(value.dtype) for value in stored))


def item_bytes(dtype: str) -> float:
    """What one number takes: by the bits in the name of its dtype."""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) / 8 if bits else 1


_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


def evaluate(size: Size, sizes: Mapping[str, int]) -> int:
    """A size in numbers, given what open sizes come to: one of them, or put together of them. Raises ShapeError
    where that is not known."""
    if isinstance(size, int):
        return size
    if size in sizes:
        return sizes[size]
    try:
        return int(_number(ast.parse(size, mode="eval").body, sizes))
    except (SyntaxError, KeyError, TypeError) as error:
        raise ShapeError(
            f"nobody knows what the open size `{size}` comes to; known are {', '.join(sorted(sizes)) or 'none'}",
            "this is a fault of graphprune: please report it with the model",
        ) from error


def _number(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant):
        return int(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.BinOp):
        result: int = _OPERATORS[type(node.op)](_number(node.left, sizes), _number(node.right, sizes))
        return result
    raise KeyError(ast.dump(node))
