"""Residual streams that only norms read: what is written into one may be multiplied by a matrix along its axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..axes.dim import Dim, Size, find
from ..ir.graph import Graph, Op, Value
from ..ir.host import Array, Host
from .contractions import Contraction, contractions

NORMS = ("layer_norm", "rms_norm")
MOVES = ("reshape", "transpose", "slice", "select", "expand", "concat", "split", "unbind", "stack", "repeat", "gather")
"""Ops that move positions about, where they leave the stream's axis alone."""
ONE_BY_ONE = frozenset(MOVES) - {"concat", "stack"}
"""Those after which a constant that was added is still the same everywhere."""


@dataclass
class Stream:
    """Values with one axis in common. ``why``: why it must stay as it is, if it must."""

    dim: Dim
    norms: list[Op] = field(default_factory=list)
    writers: dict[str, Writer] = field(default_factory=dict)  # by parameter
    readers: dict[str, list[Contraction] | None] = field(default_factory=dict)  # of each norm; None: others too
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
    for op in graph.ops:
        if op.kind in NORMS and op.attrs["trailing"] == 1 and op.name not in known:
            assert op.inputs[0] is not None
            found = _Walk(graph, reads, Stream(find(op.inputs[0].dims[-1]))).stream(op)
            known |= {norm.name for norm in found.norms} | {op.name}
            yield found


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


def untied(host: Host) -> Host:
    """A copy in which every embedding that writes a stream has a weight of its own."""
    graph, host = host.lift(), host.copy()
    ops = {op.name: op for op in graph.ops}
    for stream in streams(graph):
        for name in () if stream.why else stream.ties:
            host.untie(ops[name], 0)
    return host


@dataclass
class _Walk:
    graph: Graph
    reads: Mapping[str, Contraction]
    made: Stream
    todo: list[Value] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def stream(self, norm: Op) -> Stream:
        assert norm.inputs[0] is not None
        self.todo.append(norm.inputs[0])
        while self.todo:  # to its end, so that all its norms are known
            value = self.todo.pop()
            if value.name not in self.seen:
                self.seen.add(value.name)
                why = self._written(value) or self._read(value)
                self.made.why = self.made.why or why
        order = {op.name: k for k, op in enumerate(self.graph.ops)}
        self.made.norms.sort(key=lambda op: order[op.name])
        return self.made

    # ---- what writes it --------------------------------------------------------------------------

    def _written(self, value: Value, scales: tuple[str, ...] = ()) -> str:
        """Follow a value to what writes it; why that cannot be multiplied, if it cannot. ``scales``: what multiplies
        it on the way to the stream, of which it is no part itself then."""
        op = self.graph.maker(value)
        if op is None:
            return self._writer(value, self._axis(value), scales) if value.constant else f"`{value.name}` is an input"
        if op.kind == "pointwise" and op.attrs.get("function") == "mul":
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
        if value.name not in self.graph.parameters or axis is None or not value.dtype.startswith("float"):
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
            if op.kind in NORMS and op.inputs.index(value) == 0:
                if why := self._norm(op):
                    return why
            elif self._passes(op):
                self.todo += op.outputs
            elif op.kind != "size":  # that does not look at what is there
                return f"{op.where} reads it, which is no norm"
        return ""

    def _norm(self, op: Op) -> str:
        if op in self.made.norms:
            return ""
        weight = op.inputs[1] if len(op.inputs) > 1 else None
        if op.attrs["trailing"] != 1 or weight is None or self.graph.only_user(weight) is not op:
            return f"{op.where} has no weight of its own along one axis"
        self.made.norms.append(op)
        self.made.readers[op.name] = self._layers(op.outputs[0], find(op.outputs[0].dims[-1]))
        return ""

    def _layers(self, value: Value, dim: Dim) -> list[Contraction] | None:
        """The layers that read what a norm makes, each with a weight of its own; None where others do as well."""
        if self.graph.is_output(value):
            return None
        found = list[Contraction]()
        for op in self.graph.users(value):
            layer = self.reads.get(op.name)
            if (
                layer is not None
                and layer.value is value
                and layer.taps == layer.groups == 1
                and find(layer.dim) is dim
            ):
                found.append(layer)
                continue
            if op.kind == "size":
                continue
            mean = op.kind == "reduce" and op.attrs.get("function") == "mean"
            if (op.kind not in ONE_BY_ONE and not mean) or not self._alone(op, dim):
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
        if op.kind == "pointwise" and op.attrs.get("function") in ("add", "sub", "same"):
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


def _embeds(op: Op) -> bool:
    return op.kind == "gather" and op.attrs.get("axis") == 0


def _elsewhere(op: Op) -> str:
    return f"what {op.where} scales is read elsewhere too"
