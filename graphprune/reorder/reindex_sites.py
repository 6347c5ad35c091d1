"""Where a reader may keep channels of its own, and a writer may leave some out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, prod

from ..axes.dim import PRODUCT, Dim, find, leaves, terms
from ..cost.static import evaluate
from ..coupling.contractions import contractions
from ..coupling.maskable import maskable
from ..ir.facts import Groups
from ..ir.graph import Graph, Op, Site, Value
from ..ops.traits import traits


def reader_sites(graph: Graph, groups: Groups, sizes: Mapping[str, int]) -> Iterator[Site]:
    """One site for every convolution or matrix product that reads channels which another one reads as well.

    It is as far up as nobody else looks, where the tensor is smallest, or right behind a concatenation.
    ``sizes``: what the dynamic symbols are. Readers without a site (grouped convolutions, attention) take
    all that is kept. Channels that are weighed against one another (softmax, top-k) are the same for all.
    """
    weighed = graph.weighed
    shared = {group.dim for group in groups if len(_readers(groups, group.dim)) > 1}
    climb = _Climb(graph, sizes)
    for read in contractions(graph):
        own = set(leaves(read.dim))
        if read.op.attrs.get("groups", 1) == 1 and not own.isdisjoint(shared) and own.isdisjoint(weighed):
            site = climb(read.op, read.axis)
            if site is not None:
                yield site


def writer_sites(graph: Graph, groups: Groups) -> Iterator[Site]:
    """One site for every layer whose result is added to another's, right before it is."""
    free = {group.dim for group in groups} - graph.weighed
    climb = _Climb(graph, {})
    for op in graph.ops:
        operands = [value for value in op.inputs if value is not None]
        if op.kind != "pointwise" or op.attrs.get("zero") != "both" or len(operands) != 2:
            continue
        for k, value in enumerate(operands):
            for axis, dim in enumerate(value.dims):
                leaf = find(dim)
                whole = leaf in free and value.shape == op.outputs[0].shape
                if whole and climb.branch(value) and maskable(graph, value, leaf):
                    yield Site(op.name, k, axis, fills=True)


def _readers(groups: Groups, leaf: Dim) -> set[str]:
    return {m.parameter for group in groups if group.dim is leaf for m in group.members if m.role == "reader"}


@dataclass
class _Climb:
    graph: Graph
    sizes: Mapping[str, int]

    def __call__(self, op: Op, axis: int) -> Site | None:
        best, least = None, inf
        while True:
            value = op.inputs[0]
            assert value is not None
            run = _run(value.dims[axis])
            if run is not None and self._size(value) <= least:
                best, least = Site(op.name, 0, axis, run), self._size(value)
            above = self.graph.maker(value)
            if above is None or not self.graph.only_user(value):
                return best
            if above.kind == "concat" and run == 1:
                return Site(op.name, 0, axis)  # the selection may go into it
            if not self._transparent(above):
                return best
            into = _same_axis(above, value.dims[axis])
            if into is None:
                return best
            op, axis = above, into

    def _size(self, value: Value) -> float:
        return prod(evaluate(n, self.sizes) for n in value.shape or ())

    def _transparent(self, op: Op) -> bool:
        """Whether channels of the result are made from the same channels of the first operand, and of
        weights that nobody else has."""
        kind = traits(op)
        if not kind.along or len(op.outputs) > 1 or (kind.contracts and not _depthwise(op)):
            return False
        rest = [value for value in op.inputs[1:] if value is not None]
        return all(value.name in self.graph.parameters and self.graph.only_user(value) for value in rest)

    def branch(self, value: Value) -> bool:
        """Whether a value is made by one layer for one reader, perhaps with a BatchNorm behind it."""
        while self.graph.only_user(value) and (op := self.graph.maker(value)) is not None:
            kind = traits(op)
            if kind.contracts and kind.absorbs:
                return bool(op.attrs.get("groups", 1) == 1)
            if not self._transparent(op) or not kind.elementwise or op.inputs[0] is None:
                return False
            value = op.inputs[0]
        return False


def _depthwise(op: Op) -> bool:
    """One input and one output channel a group."""
    out, weight = op.outputs[0], op.inputs[1]
    return weight is not None and weight.shape is not None and weight.shape[:2] == (op.attrs["groups"], 1) and bool(out)


def _run(dim: Dim) -> int | None:
    """How many neighbours along an axis belong to one channel; None where the axis is built otherwise."""
    dim = find(dim)
    if all(not part.kids for part in terms(dim)):
        return 1
    first, *rest = dim.kids
    if dim.kind == PRODUCT and _run(first) == 1 and all(not find(kid).kids and find(kid).frozen for kid in rest):
        return prod(int(find(kid).size) for kid in rest)
    return None


def _same_axis(op: Op, dim: Dim) -> int | None:
    """The axis of the first operand that an axis of the result is, or is made of with others that stay."""
    source = op.inputs[0]
    wanted = {id(find(dim))} | ({id(find(find(dim).kids[0]))} if find(dim).kind == PRODUCT else set())
    found = [axis for axis, own in enumerate(source.dims if source else ()) if id(find(own)) in wanted]
    return found[0] if len(found) == 1 else None
