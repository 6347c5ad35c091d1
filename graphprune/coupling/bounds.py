"""What every value of a graph lies between, for every input, as far as weights alone prove it.

Interval arithmetic, op by op, from graph inputs of which nothing is known. A value is told apart by position
along the axes that can be pruned; along all others the bounds hold at every position. What an op does that is
not known here can be anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from ..axes.dim import find, leaves
from ..errors import GraphpruneError
from ..ir.graph import Graph, Op, Value
from ..ir.host import Array, Host
from .affine import affine
from .contractions import Contraction, contractions
from .interval import BINARY, FUNCTIONS, ROUNDING, Interval, contracted, ranked
from .interval_moves import MOVES

Step = Callable[["_Walk", Op], "Interval | None"]
"""Bounds of the result of an op; None: it can be anything."""

_STEPS: dict[str, Step] = {}


def bounds(graph: Graph, host: Host) -> dict[str, Interval]:
    """By name, an Interval for every value that the network computes from its inputs, of the value's rank."""
    walk = _Walk(graph, host, {read.op.name: read for read in contractions(graph)})
    with np.errstate(all="ignore"):
        for op in graph.ops:
            walk.visit(op)
    return walk.found


@dataclass
class _Walk:
    graph: Graph
    host: Host
    reads: dict[str, Contraction]
    found: dict[str, Interval] = field(default_factory=dict)

    def visit(self, op: Op) -> None:
        if all(value.constant for value in op.outputs):
            return
        made = self._step(op)
        several: Sequence[Interval | None] = [made] if made is None or isinstance(made, Interval) else made
        for k, value in enumerate(op.outputs):
            one = several[k] if k < len(several) else None
            if value.shape is not None:
                self.found[value.name] = self._settled(one, value)

    def _step(self, op: Op) -> Interval | Sequence[Interval] | None:
        if any(v is not None and v.shape is None for v in (*op.inputs, *op.outputs)):
            return None
        if op.kind in MOVES and None not in op.inputs:
            return MOVES[op.kind](op, [self.of(value) for value in op.inputs])
        return _STEPS[op.kind](self, op) if op.kind in _STEPS else None

    def _settled(self, made: Interval | None, value: Value) -> Interval:
        """Of the value's rank, told apart where its axes can be pruned and nowhere else."""
        rank = len(value.dims)
        if made is None or len(made.shape) != rank:
            return Interval.anything(rank)
        return made.known().collapsed([k for k, dim in enumerate(value.dims) if all(x.frozen for x in leaves(dim))])

    def of(self, value: Value | None) -> Interval:
        """Of an operand; a constant is known."""
        assert value is not None and value.shape is not None
        if value.name not in self.found:
            self.found[value.name] = self._weight(value) if value.constant else Interval.anything(len(value.dims))
        return self.found[value.name]

    def _weight(self, value: Value) -> Interval:
        array = self.array(value)
        known = array is not None and array.dtype.kind != "c"  # complex numbers have no order
        return Interval.of(array) if known and array is not None else Interval.anything(len(value.dims))

    def array(self, value: Value) -> Array | None:
        """A constant, computed if it is no parameter; None where it cannot be had."""
        try:
            if value.name in self.graph.parameters:
                return self.host.parameter(value.name)
            return self.host.watch(self.host.example(), [value.name])[value.name]
        except GraphpruneError:
            return None

    def evaluated(self, op: Op, x: Value) -> Interval | None:
        """An element by element op where its operand ``x`` never changes: what the host makes of that."""
        box = self.of(x)
        if not box.constant.any() or not x.dtype.startswith("float"):
            return None
        sizes = self.host.sizes()
        shape = tuple(n if isinstance(n, int) else sizes.get(n, 1) for n in x.shape or ())
        given = np.broadcast_to(np.where(box.constant, box.lo, 1.0), shape).astype(x.dtype)
        name = op.outputs[0].name
        try:
            made = self.host.watch(self.host.example(), [name], {x.name: np.asarray(given, order="C")})[name]
        except GraphpruneError:
            return None
        told = np.broadcast_to(box.constant, shape)
        if made.shape != shape:
            return None
        exact = Interval(np.where(told, made, -np.inf), np.where(told, made, np.inf))
        return exact.collapsed([k for k, n in enumerate(box.shape) if n == 1])


def step(*kinds: str) -> Callable[[Step], Step]:
    def enter(function: Step) -> Step:
        _STEPS.update(dict.fromkeys(kinds, function))
        return function

    return enter


@step("fill")
def _fill(walk: _Walk, op: Op) -> Interval | None:
    """One number everywhere."""
    array = walk.array(op.outputs[0])
    return None if array is None or not array.size else Interval.of(array[(slice(1),) * array.ndim])


# ---- layers ------------------------------------------------------------------------------------------


@step("linear", "conv", "gemm", "matmul")
def _layer(walk: _Walk, op: Op) -> Interval | None:
    read = walk.reads.get(op.name)
    if read is None:
        return _rows(walk, op, 1) if op.kind == "matmul" and len(op.inputs) == 2 else None
    weight = walk.array(op.inputs[1]) if op.inputs[1] is not None else None
    size = read.out.dims[read.out_axis].size
    inputs = read.dim.size
    if weight is None or not isinstance(size, int) or not isinstance(inputs, int):
        return None
    x = walk.of(read.value).along(read.axis, inputs)
    made = contracted(read.matrix(walk.host), x.with_zero() if pads(op) else x)
    shape = [-1 if k == read.out_axis else 1 for k in range(len(read.out.dims))]
    return _biased(walk, op, made.moved(lambda bound: bound.reshape(shape)), read.out_axis)


@step("conv_transpose")
def _transposed(walk: _Walk, op: Op) -> Interval | None:
    weight = walk.array(op.inputs[1]) if op.inputs[1] is not None and op.inputs[1].constant else None
    x, groups = op.inputs[0], op.attrs["groups"]
    if weight is None or x is None or x.constant:
        return None
    axis = len(x.dims) - weight.ndim + 1
    inputs = x.dims[axis].size
    if not isinstance(inputs, int):
        return None
    matrix = weight.reshape(groups, inputs // groups, weight.shape[1], -1).swapaxes(1, 2).astype(np.float64)
    made = contracted(matrix, walk.of(x).along(axis, inputs).with_zero())
    shape = [-1 if k == axis else 1 for k in range(len(x.dims))]
    return _biased(walk, op, made.moved(lambda bound: bound.reshape(shape)), axis)


def pads(op: Op) -> bool:
    """Whether a layer reads zeros beside its input."""
    return op.kind == "conv" and any(op.attrs.get("pads") or (1,))


def _biased(walk: _Walk, op: Op, made: Interval, axis: int) -> Interval:
    value = op.inputs[2] if len(op.inputs) > 2 else None
    if value is None:
        return made
    bias, beta = walk.of(value), float(op.attrs.get("beta", 1))
    if beta != 1:
        bias = bias * Interval.of(np.full((1,) * len(bias.shape), beta))
    if len(bias.shape) == 1:
        bias = bias.moved(lambda x: x.reshape([-1 if k == axis else 1 for k in range(len(made.shape))]))
    return made + bias


@step("attention")
def _attention(walk: _Walk, op: Op) -> Interval | None:
    return _rows(walk, op, 2)


def _rows(walk: _Walk, op: Op, operand: int) -> Interval | None:
    """Sums of the rows of an operand, whatever their coefficients: zero where all rows are. Heads of values that
    several heads of queries share are not told apart, for the result has more of them."""
    x, dims = walk.of(op.inputs[operand]), op.outputs[0].dims
    if not 2 <= len(x.shape) <= len(dims):
        return None
    x = ranked(x, len(dims))
    shared = [k for k, dim in enumerate(dims[:-2]) if x.shape[k] != find(dim).size]
    zero = x.collapsed([*shared, len(dims) - 2]).zero
    return Interval(np.where(zero, 0.0, -np.inf), np.where(zero, 0.0, np.inf))


@step("layer_norm", "rms_norm")
def _normalised(walk: _Walk, op: Op) -> Interval | None:
    """No one of n numbers is further from zero than sqrt(n) times their root mean square."""
    rank = len(op.outputs[0].dims)
    sizes = [dim.size for dim in op.outputs[0].dims[rank - op.attrs["trailing"] :]]
    weights = [ranked(walk.of(value), rank) if value is not None else None for value in op.inputs[1:]]
    if any(isinstance(n, str) for n in sizes) or any(
        value is not None and not value.constant for value in op.inputs[1:]
    ):
        return None
    most = prod(int(n) for n in sizes) ** 0.5 * (1 + ROUNDING)
    made = Interval.between(-most, most, rank)
    scale, shift = (*weights, None, None)[:2]
    made = made if scale is None else made * scale
    return made if shift is None else made + shift


@step("batch_norm")
def _batch_norm(walk: _Walk, op: Op) -> Interval | None:
    if op.attrs.get("training") or not all(value is None or value.constant for value in op.inputs[1:]):
        return None
    if any(value is not None and value.name not in walk.graph.parameters for value in op.inputs[1:]):
        return None
    x = walk.of(op.inputs[0])
    scale, shift = (
        Interval.of(np.reshape(part, [-1 if k == 1 else 1 for k in range(len(x.shape))]))
        for part in affine(op, walk.host)
    )
    return x * scale + shift


# ---- position by position ------------------------------------------------------------------------------


@step("pointwise")
def _pointwise(walk: _Walk, op: Op) -> Interval | None:
    operands = [value for value in op.inputs if value is not None]
    function = op.attrs.get("function")
    if op.attrs.get("draws") or not operands or len(op.outputs) != 1 or "axis" in op.attrs:
        return None
    if function == "clip":
        return _clip(walk, op)
    if function in FUNCTIONS and len(operands) == 1:
        return FUNCTIONS[function](walk.of(operands[0]))
    if function in BINARY and len(operands) == 2:
        first, second = (ranked(walk.of(value), len(op.outputs[0].dims)) for value in operands)
        return BINARY[function](first, second)
    varying = [value for value in operands if not value.constant]
    return walk.evaluated(op, varying[0]) if len(varying) == 1 and function != "unknown" else None


@step("prelu")
def _prelu(walk: _Walk, op: Op) -> Interval | None:
    x, slope = op.inputs
    return walk.evaluated(op, x) if x is not None and slope is not None and slope.constant else None


def _clip(walk: _Walk, op: Op) -> Interval:
    """Between ``low`` and ``high``, attributes or operands 1 and 2; None: no bound."""
    x = walk.of(op.inputs[0])
    ends = []
    for k, (name, none) in enumerate((("low", -np.inf), ("high", np.inf)), 1):
        value = op.inputs[k] if len(op.inputs) > k else None
        number = op.attrs.get(name)
        ends.append(
            ranked(walk.of(value), len(x.shape))
            if value is not None
            else Interval.of(np.full((1,) * len(x.shape), none if number is None else number))
        )
    return BINARY["min"](BINARY["max"](x, ends[0]), ends[1])
