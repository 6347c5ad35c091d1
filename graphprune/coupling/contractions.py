"""Every place where a layer contracts channels with stored weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ..axes.dim import Dim
from ..errors import ModelError
from ..ir.graph import Graph, Op, Value
from ..ir.host import Array, Host
from .relate import role

_KINDS = ("conv", "linear", "gemm", "matmul")


@dataclass(frozen=True)
class Read:
    """One op that contracts a channel axis of an activation with a weight."""

    op: Op
    value: Value  # the activation
    axis: int  # its channel axis
    weight: str

    @property
    def dim(self) -> Dim:
        return self.value.dims[self.axis]

    @property
    def out_axis(self) -> int:
        """The channel axis of what the op makes."""
        return self.axis if self.op.kind == "conv" else len(self.op.outputs[0].dims) - 1

    def matrix(self, host: Host) -> Array:
        """The weight as (groups, outputs, inputs, taps), float64. Inputs of all groups in a row are
        the channels of the activation, outputs those of the result."""
        weight = constant(host, self.op, 1).astype(np.float64)
        if self.op.kind == "conv":
            groups = self.op.attrs["groups"]
            return weight.reshape(groups, -1, weight.shape[1], prod(weight.shape[2:]))
        if self.op.kind == "matmul" or (self.op.kind == "gemm" and not self.op.attrs.get("transB")):
            weight = weight.T
        return np.asarray(weight[None, :, :, None] * float(self.op.attrs.get("alpha", 1)))


def reads(graph: Graph) -> Iterator[Read]:
    """Every place where a convolution or matrix product with constant weights reads channels."""
    for op in graph.ops:
        if op.kind not in _KINDS or op.inputs[0] is None or op.inputs[1] is None:
            continue
        x, weight = op.inputs[0], op.inputs[1]
        if x.constant or not weight.constant or (op.kind == "matmul" and len(weight.dims) != 2):
            continue
        relation = graph.relations[op.name]
        if any(role(op, relation, name) == "reader" for name in relation.dims):
            axis = len(x.dims) - len(weight.dims) + 1 if op.kind == "conv" else len(x.dims) - 1
            if not (op.kind == "gemm" and op.attrs.get("transA")):
                yield Read(op, x, axis, weight.name)


def constant(host: Host, op: Op, operand: int) -> Array:
    """A constant operand's tensor, computed if it is not a parameter itself."""
    value = op.inputs[operand]
    assert value is not None
    try:
        return host.parameter(value.name)
    except (KeyError, AttributeError, ModelError):
        return host.watch(host.example(), [value.name])[value.name]


@dataclass(frozen=True)
class Layer:
    """A convolution (any stride, padding, dilation, groups; depthwise too) or matrix product with a
    stored weight: y = W x + b for every window or row x."""

    op: Op
    value: Value  # what it reads
    out: Value

    @property
    def axis(self) -> int:
        """The channel axis of what it reads, and of what it makes."""
        weight = self.op.inputs[1]
        assert weight is not None
        rank = len(self.value.dims)
        return rank - len(weight.dims) + 1 if self.op.kind == "conv" else rank - 1

    @property
    def dim(self) -> Dim:
        return self.value.dims[self.axis]

    @property
    def weight(self) -> str:
        weight = self.op.inputs[1]
        assert weight is not None
        return weight.name

    @property
    def groups(self) -> int:
        return int(self.op.attrs["groups"]) if self.op.kind == "conv" else 1

    @property
    def taps(self) -> int:
        """Weights per input channel and output."""
        weight = self.op.inputs[1]
        assert weight is not None and weight.shape is not None
        return prod(int(n) for n in weight.shape[2:]) if self.op.kind == "conv" else 1

    def matrix(self, host: Host) -> Array:
        """The weight as (groups, outputs, inputs x taps), float64."""
        weight = host.parameter(self.weight).astype(np.float64)
        return (weight.T if self._transposed else weight).reshape(self.groups, -1, prod(self._inner(weight.shape)))

    def tensor(self, matrix: Array, shape: Sequence[int]) -> Array:
        """The inverse of ``matrix``: the weight of that shape."""
        flat = matrix.reshape(-1, matrix.shape[-1])
        return np.ascontiguousarray(flat.T if self._transposed else flat).reshape(shape)

    def bias(self, host: Host) -> Array:
        """The bias, zeros where there is none or it is computed."""
        value = self.op.inputs[2] if len(self.op.inputs) > 2 else None
        size = self.out.shape[self.axis] if self.out.shape else 0
        if value is None:
            return np.zeros(int(size))
        bias: Array = np.broadcast_to(host.parameter(value.name).astype(np.float64).ravel(), (int(size),))
        return bias

    def rows(self, x: Array, at: Array | None = None) -> Array:
        """(rows, groups, inputs x taps): what each output position reads. ``at``: only these of the
        positions that ``targets`` has, counted over samples and space."""
        if self.op.kind != "conv":
            flat = x.reshape(-1, 1, x.shape[-1])
            return flat if at is None else flat[at]
        windows = self._windows(x if x.ndim == self._rank else x[None])
        places = windows.shape[0], *windows.shape[2 : self._rank]
        taken = np.moveaxis(windows, 1, self._rank - 1)  # samples, space, channels, taps
        if at is None:
            at = np.arange(prod(places))
        drawn = taken[np.unravel_index(at, places)]
        return drawn.reshape(len(at), self.groups, -1)

    def targets(self, y: Array, at: Array | None = None) -> Array:
        """(rows, outputs), rows as in ``rows``."""
        flat = np.moveaxis(y, self.axis, -1).reshape(-1, y.shape[self.axis])
        return flat if at is None else flat[at]

    def positions(self, y: Array) -> int:
        return int(y.size // y.shape[self.axis])

    @property
    def _rank(self) -> int:
        weight = self.op.inputs[1]
        assert weight is not None
        return len(weight.dims)

    @property
    def _transposed(self) -> bool:
        return self.op.kind == "matmul" or (self.op.kind == "gemm" and not self.op.attrs.get("transB"))

    def _inner(self, shape: Sequence[int]) -> Sequence[int]:
        return shape[:1] if self._transposed else shape[1:]

    def _windows(self, x: Array) -> Array:
        """A view (samples, channels, space, taps) of the padded input."""
        stride, pads, dilation = (self.op.attrs[key] for key in ("stride", "pads", "dilation"))
        weight = self.op.inputs[1]
        assert weight is not None and weight.shape is not None
        kernel = [int(n) for n in weight.shape[2:]]
        spatial = len(kernel)
        around = [(pads[2 * k], pads[2 * k + 1]) for k in range(spatial)]
        x = np.pad(x, [(0, 0), (0, 0), *around]) if any(pads) else x
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + spatial)))
        steps = [slice(None, None, s) for s in stride]
        taps = [slice(None, None, d) for d in dilation]
        return windows[(slice(None), slice(None), *steps, *taps)]


def layers(graph: Graph) -> list[Layer]:
    """Every layer whose weight is a parameter that no other op reads, in order of execution."""
    readers: dict[str, int] = {}
    for op in graph.ops:
        for value in op.inputs:
            if value is not None:
                readers[value.name] = readers.get(value.name, 0) + 1
    found = []
    for op in graph.ops:
        if op.kind not in _KINDS or any(value is None for value in op.inputs[:2]):
            continue
        x, weight = op.inputs[0], op.inputs[1]
        assert x is not None and weight is not None
        bias = op.inputs[2] if len(op.inputs) > 2 else None
        if (
            x.constant
            or weight.name not in graph.parameters
            or readers[weight.name] > 1
            or (bias is not None and (bias.name not in graph.parameters or len(bias.dims) != 1))
            or (op.kind == "conv" and op.attrs.get("pads") is None)
            or (op.kind != "conv" and len(weight.dims) != 2)
            or any(op.attrs.get(key) for key in ("transA", "alpha", "beta"))
        ):
            continue
        found.append(Layer(op, x, op.outputs[0]))
    return found
