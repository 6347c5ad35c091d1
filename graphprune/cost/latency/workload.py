"""Workloads: what an op is to a target, whatever network it comes from.

A workload has a family (everything but its widths) and two widths (input and output channels). One
table per family serves every op of every network that is alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Any

from ...axes.dim import Dim
from ...ir.graph import Graph, Op, Rank, Value
from ...ir.host import Host
from ...ops.macs import Product
from ...ops.traits import traits
from ..static import Gates, length_of, products

Widths = tuple[int, int]


@dataclass(frozen=True)
class Family:
    """``conv``: batch, groups (0: depthwise), then per spatial axis size, kernel and stride, padding being
    what the output's size implies. ``product``: rows. ``stream``: nothing, an op that reads and writes.

    Widths: input and output channels; of a depthwise convolution channels and outputs per channel; of a
    stream 1 and thousands of numbers read and written.
    """

    kind: str
    sizes: tuple[int, ...] = ()
    dtype: str = "float32"

    def text(self) -> str:
        return " ".join([self.kind, *map(str, self.sizes), self.dtype])

    @classmethod
    def parse(cls, text: str) -> Family:
        kind, *sizes, dtype = text.split()
        return cls(kind, tuple(map(int, sizes)), dtype)


@dataclass(frozen=True)
class Work:
    """One op: its family, and the axes that its widths are. ``times``: axes along which the same work
    repeats (heads, tokens), relative to ``per`` repetitions in the family, and of branches that may go their dims of
    size one (cost.static.gates). ``streams``: the axes of all that
    is read and written, of an op that does nothing else. ``layer``: the first op of a layer that may be one or two: it
    takes the works of the ``whole``, or the others."""

    op: str  # its name
    family: Family
    inner: tuple[Dim, ...] = ()
    outer: tuple[Dim, ...] = ()
    times: tuple[Dim, ...] = ()
    per: int = 1
    streams: tuple[tuple[Dim, ...], ...] = ()
    layer: str = ""
    whole: bool = False

    def widths(self, kept: Mapping[Dim, Any], sizes: Mapping[str, int]) -> tuple[Any, Any, Any]:
        """Inner width, outer width and repetitions; arrays where ``kept`` holds arrays."""

        def length(dims: tuple[Dim, ...]) -> Any:
            return prod(length_of(dim, kept, sizes) for dim in dims)

        if self.family.kind == "stream":
            return 1, sum(map(length, self.streams)) / 1000, length(self.times)
        return length(self.inner), length(self.outer), length(self.times) / self.per


def works(graph: Graph, host: Host, gates: Gates = MappingProxyType({}), ranks: Sequence[Rank] = ()) -> list[Work]:
    """Every op that takes time of its own. Element-wise ops on what one conv or product makes for them
    alone are part of it, as compilers fuse them. ``ranks``: of the layers that may be whole or factored."""
    sizes, fused = host.sizes(), _fused(graph)
    layers = {name: rank.outers[0] for rank in ranks for name in (rank.inner, *rank.outers)}
    out: list[Work] = []
    for op in graph.ops:
        if op.name not in fused and op.outputs and not op.outputs[0].constant and op.outputs[0].shape is not None:
            out += (replace(work, layer=layers.get(op.name, "")) for work in _keyed(op, graph, sizes))
    out += (work for rank in ranks for work in _wholes(rank, graph, sizes))
    return [replace(work, times=(*work.times, *gates.get(work.op, ()))) for work in out]


def _wholes(rank: Rank, graph: Graph, sizes: Mapping[str, int]) -> Iterator[Work]:
    """The layers that a rank stands for, as they were."""
    ops = {op.name: op for op in graph.ops}
    first = ops[rank.inner]
    for name in rank.outers:
        op, read = ops[name], first.inputs[0]
        if op.kind == "conv":
            assert read is not None
            taps = (_kernel(one, sizes) for one in (first, op))
            made = _conv(op, sizes, read, [a * b for a, b in zip(*taps, strict=True)])
        else:
            (made,), (before,) = _keyed(op, graph, sizes), _keyed(first, graph, sizes)
            made = replace(made, inner=before.inner)
        yield replace(made, layer=rank.outers[0], whole=True)


def _keyed(op: Op, graph: Graph, sizes: Mapping[str, int]) -> Iterator[Work]:
    kind = traits(op).latency
    if kind == "conv":
        yield _conv(op, sizes)
    elif kind in ("product", "attention"):
        yield from (_product(op, one, sizes) for one in products(op, graph))
    elif kind == "stream":
        yield _stream(op)


def _fused(graph: Graph) -> set[str]:
    heads: set[str] = set()  # values that a conv or product makes, with what was fused to it
    fused: set[str] = set()
    for op in graph.ops:
        if traits(op).computes:
            heads.update(out.name for out in op.outputs)
        elif traits(op).elementwise and any(v and v.name in heads and _read_once(graph, v) for v in op.inputs):
            fused.add(op.name)
            heads.update(out.name for out in op.outputs)
    return fused


def _read_once(graph: Graph, value: Value) -> bool:
    """By one op in one place: whether the value leaves the graph as well does not keep it from being fused."""
    users = graph.users(value)
    return len(users) == 1 and users[0].inputs.count(value) == 1


def _numbers(dims: tuple[Dim, ...], sizes: Mapping[str, int]) -> list[int]:
    return [int(length_of(dim, {}, sizes)) for dim in dims]


def _kernel(op: Op, sizes: Mapping[str, int]) -> list[int]:
    weight = op.inputs[1]
    assert weight is not None
    return _numbers(weight.dims[2:], sizes)


def _conv(op: Op, sizes: Mapping[str, int], read: Value | None = None, taps: Sequence[int] = ()) -> Work:
    """``read`` and ``taps``: another input and kernel than the op has."""
    x, kernel, y = read or op.inputs[0], taps or _kernel(op, sizes), op.outputs[0]
    assert x is not None
    groups, channels = int(op.attrs["groups"]), len(y.dims) - len(kernel) - 1
    inside, outside = _numbers(x.dims[channels + 1 :], sizes), _numbers(y.dims[channels + 1 :], sizes)
    if op.kind == "conv_transpose":  # as many products as a convolution of its input
        outside = inside
    batch = prod(_numbers(y.dims[:channels], sizes))
    cin, cout = _numbers((x.dims[channels], y.dims[channels]), sizes)
    axes = [n for a, b, k in zip(inside, outside, kernel, strict=True) for n in (a, k, max(1, round(a / b)))]
    if groups > 1 and groups == cin:
        family = Family("conv", (batch, 0, *axes))
        return Work(op.name, family, (x.dims[channels],), (Dim(max(1, cout // cin)),))
    return Work(op.name, Family("conv", (batch, groups, *axes)), (x.dims[channels],), (y.dims[channels],))


def _product(op: Op, one: Product, sizes: Mapping[str, int]) -> Work:
    per = prod(_numbers(one.rows, sizes))
    return Work(op.name, Family("product", (per,)), one.inner, one.outer, (*one.rows, *one.steps), per)


def _stream(op: Op) -> Work:
    values = [v for v in (*op.inputs, *op.outputs) if v is not None and not v.constant and v.shape is not None]
    return Work(op.name, Family("stream"), streams=tuple(value.dims for value in values))
