"""Every place where a layer contracts channels with stored weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..axes.dim import Dim, find, symbols
from ..errors import ModelError
from ..ir.graph import Graph, Op, Value
from ..ir.host import Array, Host
from ..ops.traits import traits
from .relate import role


@dataclass(frozen=True)
class Contraction:
    """A convolution (any stride, padding, dilation, groups; depthwise too) or matrix product that contracts
    one axis of an activation with a constant weight: y = W x + b for every window or row x."""

    op: Op
    value: Value  # the activation
    axis: int  # what of it is contracted
    weight: str
    out: Value
    out_axis: int  # the axis of ``out`` that the weight makes
    weight_shape: tuple[int, ...]
    groups: int = 1
    own: bool = False  # weight and bias are parameters that nobody else reads, as they are: they can be fitted
    as_stored: bool = False  # windows are known, and weight and bias count as they are, one number an output

    @property
    def dim(self) -> Dim:
        return self.value.dims[self.axis]

    @property
    def taps(self) -> int:
        """Weights per input channel and output."""
        return prod(self.weight_shape[2:]) if self.op.kind == "conv" else 1

    @property
    def inputs(self) -> int:
        """Weights of an output: taps x inputs of its group."""
        return self.weight_shape[0] if self.transposed else prod(self.weight_shape[1:])

    @property
    def outputs(self) -> int:
        """Of all groups."""
        return self.weight_shape[1 if self.transposed else 0]

    def matrix(self, host: Host, dtype: Any = np.float64) -> Array:
        """The weight as (groups, outputs, inputs, taps). Inputs of all groups in a row are the channels of the
        activation, outputs those of the result. ``dtype``: None leaves what is read."""
        weight = _constant(host, self.op, 1)
        weight = weight if dtype is None else weight.astype(dtype)
        weight = weight.T if self.transposed else weight
        alpha = float(self.op.attrs.get("alpha", 1))
        weight = weight if alpha == 1 else weight * alpha
        return weight.reshape(self.groups, -1, weight.shape[1], self.taps)

    def flat_matrix(self, host: Host, dtype: Any = np.float64) -> Array:
        """The weight as (groups, outputs, taps x inputs). ``dtype``: as of ``matrix``."""
        matrix = self.matrix(host, dtype).swapaxes(2, 3)
        return matrix.reshape(*matrix.shape[:2], -1)

    def tensor(self, matrix: Array, shape: Sequence[int]) -> Array:
        """The inverse of ``flat_matrix``: the weight of that shape."""
        whole = matrix.reshape(-1, self.taps, matrix.shape[-1] // self.taps)
        flat = whole.swapaxes(1, 2).reshape(len(whole), -1)
        return np.ascontiguousarray(flat.T if self.transposed else flat).reshape(shape)

    def has_bias(self, graph: Graph) -> bool:
        """Whether it has one that nothing else reads, its own or added to it right behind it: see Host.add_bias."""
        op = graph.only_user(self.out)
        added = op.inputs if op is not None and op.attrs.get("function") == "add" else ()
        own = self.op.inputs[2:3] if self.op.attrs.get("beta", 1) else ()
        width = find(self.out.dims[self.out_axis])
        return any(
            value.name in graph.parameters and len(graph.users(value)) == 1 and find(value.dims[-1]) is width
            for value in (*own, *added)
            if value is not None and value.dims
        )

    def bias(self, host: Host) -> Array:
        """The bias, zeros where there is none."""
        value = self.op.inputs[2] if len(self.op.inputs) > 2 else None
        size = self.out.shape[self.out_axis] if self.out.shape else 0
        if value is None:
            return np.zeros(int(size))
        bias: Array = np.broadcast_to(host.parameter(value.name).astype(np.float64).ravel(), (int(size),))
        return bias

    @property
    def window(self) -> tuple[Any, ...]:
        """What of its input it reads: layers of the same window read the same ``rows``."""
        attrs = [tuple(self.op.attrs[key]) for key in ("stride", "pads", "dilation")] if self.op.kind == "conv" else []
        return self.value.name, self.axis, self.groups, self.weight_shape[2:] if attrs else (), *attrs

    def rows(self, x: Array, at: Array | None = None) -> Array:
        """(rows, groups, taps x inputs): what each output position reads. ``at``: only these of the
        ``positions``, counted over samples and space."""
        if self.op.kind != "conv":
            flat = x.reshape(-1, 1, x.shape[-1])
            return flat if at is None else flat[at]
        windows, places = self._windows(x), self._places(x)
        if at is None:
            at = np.arange(prod(places))
        drawn = windows[np.unravel_index(at, places)].reshape(len(at), self.taps, self.groups, -1)
        return drawn.swapaxes(1, 2).reshape(len(at), self.groups, -1)

    def targets(self, y: Array, at: Array | None = None) -> Array:
        """(rows, outputs), rows as in ``rows``, of what it gives."""
        moved = np.moveaxis(y, self.out_axis, -1)
        return moved.reshape(-1, moved.shape[-1]) if at is None else moved[np.unravel_index(at, moved.shape[:-1])]

    def positions(self, x: Array) -> int:
        """How many rows there are of an input."""
        return prod(self._places(x))

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (inputs, outputs)."""
        return self.op.kind == "matmul" or (self.op.kind == "gemm" and not self.op.attrs.get("transB"))

    def _places(self, x: Array) -> tuple[int, ...]:
        """Samples and space of what it gives for ``x``."""
        if self.op.kind != "conv":
            return x.shape[:-1]
        stride, pads, dilation = (self.op.attrs[key] for key in ("stride", "pads", "dilation"))
        kernel = self.weight_shape[2:]
        sizes = zip(x.shape[-len(kernel) :], kernel, stride, pads[::2], pads[1::2], dilation, strict=True)
        space = ((n + before + after - d * (k - 1) - 1) // s + 1 for n, k, s, before, after, d in sizes)
        return (x.shape[0] if x.ndim == len(kernel) + 2 else 1, *space)

    def _windows(self, x: Array) -> Array:
        """A view (samples, space, taps, channels) of the padded input, whose channels are put last: what a row
        takes of it then lies together."""
        stride, pads, dilation = (self.op.attrs[key] for key in ("stride", "pads", "dilation"))
        kernel = self.weight_shape[2:]
        rank = len(kernel)
        x = np.moveaxis(x if x.ndim == rank + 2 else x[None], 1, -1)
        if any(pads):
            around = [(pads[2 * k], pads[2 * k + 1]) for k in range(rank)]
            x = np.pad(x, [(0, 0), *around, (0, 0)])
        elif self.taps > 1:
            x = np.ascontiguousarray(x)
        space = tuple(range(1, 1 + rank))
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=space)
        steps, taps = ([slice(None, None, n) for n in each] for each in (stride, dilation))
        return np.moveaxis(windows[(slice(None), *steps, slice(None), *taps)], rank + 1, -1)


def contractions(graph: Graph, *, own: bool = False) -> list[Contraction]:
    """Every contraction with a constant weight, in order of execution; ``own``: only those that can be
    fitted by themselves."""
    found = []
    for op in graph.ops:
        if not traits(op).contracts or op.inputs[0] is None or op.inputs[1] is None:
            continue
        x, weight = op.inputs[0], op.inputs[1]
        conv, relation = op.kind == "conv", graph.relations[op.name]
        if (
            x.constant
            or not weight.constant
            or weight.shape is None
            or weight.dtype.startswith("complex")  # nothing here is fitted to those
            or (not conv and len(weight.dims) != 2)
            or op.attrs.get("transA")
            or all(role(op, relation, name) != "reader" for name in relation.dims)
        ):
            continue
        axis = len(x.dims) - len(weight.dims) + 1 if conv else len(x.dims) - 1
        plain = _as_stored(op, graph)
        alone = weight.name in graph.parameters and graph.only_user(weight) is op and plain
        if alone or not own:
            out = op.outputs[0]
            out_axis = axis if conv else len(out.dims) - 1
            shape = tuple(int(n) for n in weight.shape)
            groups = int(op.attrs["groups"]) if conv else 1
            found.append(Contraction(op, x, axis, weight.name, out, out_axis, shape, groups, alone, plain))
    return found


def counted(graph: Graph) -> frozenset[str]:
    """Values, by name, with an axis that is as long as data says: in another network other rows may be there."""
    said, found = set[str](), set[str]()
    for op in graph.ops:
        for out in op.outputs:
            names = {name for size in out.shape or () for name in symbols(size)}
            if op.kind in ("nonzero", "masked_select", "unique"):
                said |= names
            if not said.isdisjoint(names):
                found.add(out.name)
    return frozenset(found)


def _as_stored(op: Op, graph: Graph) -> bool:
    """Whether windows are known, and weight and bias count as they are stored, one number an output."""
    bias = op.inputs[2] if len(op.inputs) > 2 else None
    plain = bias is None or (bias.name in graph.parameters and len(bias.dims) == 1)
    known = op.kind != "conv" or op.attrs.get("pads") is not None
    return plain and known and all(op.attrs.get(key, 1) == 1 for key in ("alpha", "beta"))


def _constant(host: Host, op: Op, operand: int) -> Array:
    """A constant operand's tensor, computed if it is not a parameter itself."""
    value = op.inputs[operand]
    assert value is not None
    try:
        return host.parameter(value.name)
    except (KeyError, AttributeError, ModelError):
        return host.watch(host.example(), [value.name])[value.name]
