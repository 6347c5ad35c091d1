"""Where weights read channels, and what calibration data says of those channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from .dims import Dim
from .errors import ModelError
from .ir import Array, Batch, Graph, Host, Op, Value
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
class Moments:
    """Mean, (population) variance and mean magnitude of an activation per position of one axis, float64."""

    mean: Array
    variance: Array
    magnitude: Array


def moments(host: Host, found: Sequence[Read], batches: Sequence[Batch]) -> dict[tuple[str, int], Moments]:
    """Per (value name, axis), over all batches, in one pass over the data.

    Chunks are merged with the update of Chan, Golub and LeVeque (1979), which does not lose digits
    when the mean is large.
    """
    keys = sorted({(read.value.name, read.axis) for read in found})
    names = sorted({name for name, _ in keys})
    state: dict[tuple[str, int], tuple[float, Array, Array]] = {}
    sizes: dict[tuple[str, int], Array] = {}
    for batch in batches:
        seen = host.watch(batch, names)
        for key in keys:
            x = np.moveaxis(seen[key[0]], key[1], -1).astype(np.float64)
            x = x.reshape(-1, x.shape[-1])
            sizes[key] = sizes.get(key, 0.0) + np.abs(x).sum(0)
            state[key] = _merge(state.get(key), (float(len(x)), x.mean(0), x.var(0) * len(x)))
    return {key: Moments(mean, square / n, sizes[key] / n) for key, (n, mean, square) in state.items()}


def _merge(old: tuple[float, Array, Array] | None, new: tuple[float, Array, Array]) -> tuple[float, Array, Array]:
    if old is None:
        return new
    (n, mean, square), (m, other, more) = old, new
    delta = other - mean
    return n + m, mean + delta * (m / (n + m)), square + more + delta**2 * (n * m / (n + m))
