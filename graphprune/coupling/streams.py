"""Residual streams that only norms read: what is written into one may be multiplied by a matrix along its axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..axes.dim import Dim, Size, find
from ..ir.graph import Graph, Op, Value
from ..ir.host import Array, Host
from .contractions import Contraction, contractions
from .norms import CASTS, written_norms

MOVES = ("reshape", "transpose", "slice", "select", "expand", "concat", "split", "unbind", "stack", "repeat", "gather")
"""Ops that move positions about, where they leave the stream's axis alone."""
ONE_BY_ONE = frozenset(MOVES) - {"concat", "stack"}
"""Those after which a constant that was added is still the same everywhere."""


@dataclass(frozen=True)
class Norm:
    """A norm along one axis, the last but for some that are written out in several ops, of which ``op`` applies the
    weight."""

    kind: str  # layer_norm or rms_norm
    op: Op
    x: Value
    out: Value
    eps: float
    weight: str
    shift: float = 0.0  # what is added to the weight before
    bias: str | None = None
    axis: int = -1
    within: tuple[Op, ...] = ()  # the ops of one that is written out, in order of execution

    @property
    def name(self) -> str:
        return self.op.name

    @property
    def where(self) -> str:
        return self.op.where

    @property
    def dim(self) -> Dim:
        return find(self.x.dims[self.axis])


@dataclass
class Stream:
    """Values with one axis in common. ``why``: why it must stay as it is, if it must."""

    dim: Dim
    norms: list[Norm] = field(default_factory=list)
    writers: dict[str, Writer] = field(default_factory=dict)  # by parameter
    readers: dict[str, list[Contraction] | None] = field(default_factory=dict)  # of each norm; None: others too
    plain: list[Contraction] = field(default_factory=list)  # readers with no norm between
    ties: dict[str, str] = field(default_factory=dict)  # by gather, the embedding that something else reads as well
    why: str = ""

    @property
    def name(self) -> str:
        """That of its first norm."""
        return self.norms[0].name


@dataclass(frozen=True)
class Writer:
    """A parameter with the stream along ``axis``, and those that multiply what it writes on the way there."""

    axis: int
    scales: tuple[str, ...] = ()


def streams(graph: Graph) -> Iterator[Stream]:
    """The stream of every norm along one axis, each once, in order of execution."""
    known: set[str] = set()
    reads = {read.op.name: read for read in contractions(graph, own=True)}
    there = norms(graph)
    for norm in there:
        if norm.name not in known:
            found = _Walk(graph, reads, there, Stream(norm.dim)).stream(norm)
            known |= {one.name for one in found.norms} | {norm.name}
            yield found


def norms(graph: Graph) -> list[Norm]:
    """Those along one axis, in order of execution."""
    ops, found = {op.name: op for op in graph.ops}, dict[str, Norm]()
    for one in written_norms(graph):
        eps = float(ops[one.norm.eps].attrs["plus"]) if one.norm.eps else 0.0
        beta, axis = one.bias.name if one.bias is not None else None, one.axis - len(one.x.dims)
        within, (gamma, shift) = _between(graph, one.x, one.last), (one.norm.weight, one.norm.shift)
        found[one.op.name] = Norm(one.kind, one.op, one.x, one.out, eps, gamma, shift, beta, axis, within)
    for op in graph.ops:
        weight, bias = (*op.inputs[1:], None, None)[:2]
        if op.kind in ("layer_norm", "rms_norm") and op.attrs["trailing"] == 1 and op.inputs[0] is not None:
            name = weight.name if weight is not None and graph.only_user(weight) is op else ""
            beta = bias.name if bias is not None else None
            eps = float(op.attrs.get("eps") or 0.0)
            found[op.name] = Norm(op.kind, op, op.inputs[0], op.outputs[0], eps, name, bias=beta)
    return [found[op.name] for op in graph.ops if op.name in found]


def _between(graph: Graph, x: Value, last: Op) -> tuple[Op, ...]:
    """The ops from a value to one that comes of it, casts of the value that others read left out."""
    found, todo = {last}, [last]
    while todo:
        for value in todo.pop().inputs:
            maker = graph.maker(value) if value is not None and value is not x else None
            if maker is not None and maker not in found and maker.attrs.get("function") not in CASTS:
                found.add(maker)
            if maker is not None and maker not in todo and value is not None and not value.constant:
                todo.append(maker)
    return tuple(op for op in graph.ops if op in found)


def multiplied(host: Host, stream: Stream, matrix: Array) -> None:
    """Multiply all that is written into a stream by ``matrix``, from the left. Scales on the way go into the writers
    first, and are one then."""
    for name, writer in stream.writers.items():
        array = np.moveaxis(host.parameter(name).astype(np.float64), writer.axis, -1)
        for scale in writer.scales:
            array = array * host.parameter(scale).astype(np.float64).ravel()
        host.set_parameter(name, np.moveaxis(array @ matrix.T, -1, writer.axis))
    for scale in sorted({scale for writer in stream.writers.values() for scale in writer.scales}):
        host.set_parameter(scale, np.ones_like(host.parameter(scale)))


def tied(stream: Stream, by: str) -> str:
    """Why an embedding keeps a stream as it is, if one does."""
    names = ", ".join(f"`{name}`" for name in sorted({*stream.ties.values()}))
    return f"{names} has another reader; `{by}{{untie=true}}` gives the embedding a weight of its own" if names else ""


def untied(host: Host, kind: str) -> Host:
    """A copy in which every embedding that writes a stream below norms of a kind has a weight of its own."""
    graph, host = host.lift(), host.copy()
    ops = {op.name: op for op in graph.ops}
    for stream in streams(graph):
        asked = not stream.why and any(norm.kind == kind for norm in stream.norms)
        for name in stream.ties if asked else ():
            host.untie(ops[name], 0)
    return host


@dataclass
class _Walk:
    graph: Graph
    reads: Mapping[str, Contraction]
    norms: list[Norm]
    made: Stream
    todo: list[Value] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def stream(self, norm: Norm) -> Stream:
        self.todo.append(norm.x)
        while self.todo:  # to its end, so that all its norms are known
            value = self.todo.pop()
            if value.name not in self.seen:
                self.seen.add(value.name)
                why = self._written(value) or self._read(value)
                self.made.why = self.made.why or why
        if norm not in self.made.norms:  # what keeps the stream as it is came before
            self.made.norms.append(norm)
        self.made.norms.sort(key=self.norms.index)
        return self.made

    # ---- what writes it --------------------------------------------------------------------------

    def _written(self, value: Value, scales: tuple[str, ...] = ()) -> str:
        """Follow a value to what writes it; why that cannot be multiplied, if it cannot. ``scales``: what multiplies
        it on the way to the stream, of which it is no part itself then."""
        op = self.graph.maker(value)
        if op is None:
            return self._writer(value, self._axis(value), scales) if value.constant else f"`{value.name}` is an input"
        if op.kind == "pointwise" and op.attrs.get("function") == "mul" and len(op.inputs) == 2:
            return self._scaled(op, scales)
        if self._passes(op):
            found = [operand for operand in op.inputs if operand is not None and self._axis(operand) is not None]
            if not scales:
                self.todo += found
                return ""
            alone = all(operand.constant or self.graph.only_user(operand) is op for operand in found)
            return next(filter(None, (self._written(one, scales) for one in found)), "") if alone else _elsewhere(op)
        if op.name in self.reads:
            layer = self.reads[op.name]
            if layer.groups > 1 or self._axis(value) != layer.out_axis:
                return f"{op.where} writes it in groups"
            weight, *bias = (operand for operand in op.inputs[1:] if operand is not None)
            axis = next((k for k, dim in enumerate(weight.dims) if find(dim) is self.made.dim), None)
            return self._writer(weight, axis, scales) or (self._writer(bias[0], 0, scales) if bias else "")
        if value.constant:
            return f"`{value.name}`, which writes it, is computed"
        return f"{op.where} writes it" + (", whose weight is not its own" if op.kind in _LAYERS else "")

    def _scaled(self, op: Op, scales: tuple[str, ...]) -> str:
        """A layer scale: a parameter along the stream times what a layer writes."""
        for scale, other in (op.inputs, op.inputs[::-1]):
            if scale is None or other is None or scale.name not in self.graph.parameters:
                continue
            alone = self._axis(scale) is not None and all(n == 1 for n in _others(scale, self.made.dim))
            if alone and self.graph.only_user(scale) is op:
                if self.graph.only_user(other) is not op or other.constant:
                    return _elsewhere(op)
                return self._written(other, (scale.name, *scales))
        return f"{op.where} writes it"

    def _writer(self, value: Value, axis: int | None, scales: tuple[str, ...]) -> str:
        if value.name not in self.graph.parameters or axis is None or "float" not in value.dtype:
            return f"`{value.name}`, which writes it, is no parameter along it"
        if self.made.writers.setdefault(value.name, Writer(axis, scales)) != Writer(axis, scales):
            return f"`{value.name}` writes it in two ways"
        return ""

    # ---- what reads it ---------------------------------------------------------------------------

    def _read(self, value: Value) -> str:
        """Follow a value to what reads it; what else than a norm, if something does."""
        if self.graph.is_output(value):
            return f"`{value.name}`, a part of it, leaves the graph"
        users = self.graph.users(value)
        if value.constant and self.graph.maker(value) is None and (ties := [one for one in users if _embeds(one)]):
            if len(users) > len(ties):
                self.made.ties |= {op.name: value.name for op in ties}
            users = tuple(ties)
        for op in users:
            norm = next((one for one in self.norms if op in (one.within or (one.op,)) and value is not one.out), None)
            if norm is not None:
                if why := self._norm(norm):
                    return why
            elif self._passes(op):
                self.todo += op.outputs
            elif (layer := self.reads.get(op.name)) is not None and self._plain(layer, value):
                self.made.plain.append(layer)
            elif op.kind != "size":  # that does not look at what is there
                return f"{op.where} reads it, which is no norm"
        return ""

    def _plain(self, layer: Contraction, value: Value) -> bool:
        """Whether a layer reads a value along the stream, with a weight of its own that writes another."""
        weight = layer.op.inputs[1]
        if weight is None or sum(find(dim) is self.made.dim for dim in weight.dims) != 1:
            return False
        return _reads(layer, value, self.made.dim)

    def _norm(self, norm: Norm) -> str:
        if norm in self.made.norms:
            return ""
        if not norm.weight:
            return f"{norm.where} has no weight of its own along one axis"
        self.made.norms.append(norm)
        self.made.readers[norm.name] = self._layers(norm.out, find(norm.out.dims[norm.axis]))
        return ""

    def _layers(self, value: Value, dim: Dim) -> list[Contraction] | None:
        """The layers that read what a norm makes, each with a weight of its own; None where others do as well."""
        if self.graph.is_output(value):
            return None
        found = list[Contraction]()
        for op in self.graph.users(value):
            layer = self.reads.get(op.name)
            if layer is not None and _reads(layer, value, dim):
                found.append(layer)
                continue
            if op.kind == "size":
                continue
            mean = op.kind == "reduce" and op.attrs.get("function") == "mean"
            cast = op.attrs.get("function") in CASTS
            if (op.kind not in ONE_BY_ONE and not mean and not cast) or not self._alone(op, dim):
                return None
            for out in op.outputs:
                further = self._layers(out, dim)
                if further is None:
                    return None
                found += further
        return found

    # ---- what passes it on -----------------------------------------------------------------------

    def _passes(self, op: Op) -> bool:
        """Whether what comes out is multiplied by a matrix along the stream where all that goes in is."""
        if op.kind == "pointwise" and op.attrs.get("function") in ("add", "sub", *CASTS):
            return all(self._axis(value) is not None for value in (*op.inputs, *op.outputs) if value is not None)
        mean = op.kind == "reduce" and op.attrs.get("function") in ("mean", "sum")
        return (op.kind in MOVES or mean) and self._alone(op, self.made.dim)

    def _alone(self, op: Op, dim: Dim) -> bool:
        """Whether the axis goes in and comes out once, and whole."""
        several = op.kind in ("concat", "stack")
        values = (*(op.inputs if several else op.inputs[:1]), *op.outputs)
        if op.kind == "gather" and _axis(op.inputs[0], dim) == op.attrs["axis"] % len(op.inputs[0].dims):  # type: ignore[union-attr]
            return False
        return all(_axis(value, dim) is not None for value in values)

    def _axis(self, value: Value) -> int | None:
        return _axis(value, self.made.dim)


_LAYERS = ("conv", "linear", "gemm", "matmul")


def _axis(value: Value | None, dim: Dim) -> int | None:
    """Where a value has the axis, if it has it once."""
    found = [k for k, one in enumerate(value.dims) if find(one) is dim] if value is not None else []
    return found[0] if len(found) == 1 else None


def _others(value: Value, dim: Dim) -> list[Size]:
    """The sizes of the other axes."""
    return [one.size for one in value.dims if find(one) is not dim]


def uncast(value: Value, graph: Graph) -> Value:
    """What a value was before casts."""
    maker = graph.maker(value)
    while maker is not None and maker.attrs.get("function") in CASTS and maker.inputs[0] is not None:
        value = maker.inputs[0]
        maker = graph.maker(value)
    return value


def _reads(layer: Contraction, value: Value, dim: Dim) -> bool:
    return layer.value is value and layer.taps == layer.groups == 1 and find(layer.dim) is dim


def _embeds(op: Op) -> bool:
    return op.kind == "gather" and op.attrs.get("axis") == 0


def _elsewhere(op: Op) -> str:
    return f"what {op.where} scales is read elsewhere too"
