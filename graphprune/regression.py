"""Least squares for layers: what a layer reads as a matrix, and normal equations summed over batches.

The equations are float64 and centred, so that an intercept comes with them; of a batch no more is held
than the rows drawn from it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from .dims import Dim
from .ir import Array, Batch, Graph, Host, Op, Value

_KINDS = ("conv", "linear", "gemm", "matmul")


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


class NormalEquations:
    """Sums over rows x (inputs, and a one) and targets t: x x' and x t', per group of a layer."""

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        self.rows = 0
        self.gram = np.zeros((groups, inputs + 1, inputs + 1))
        self.cross = np.zeros((groups, inputs + 1, outputs // groups))

    def add(self, x: Array, target: Array) -> None:
        """``x``: (rows, groups, inputs); ``target``: (rows, outputs)."""
        for part, rows in enumerate(self._aim(x, target)):
            self.gram[part] += rows.T @ rows  # a product of a matrix with itself takes half the time
        self.rows += len(x)

    def aim(self, x: Array, target: Array) -> None:
        """As ``add`` for rows that were added before, whose targets have changed."""
        for _ in self._aim(x, target):
            pass

    def _aim(self, x: Array, target: Array) -> Iterator[Array]:
        """Add to ``cross``, and yield the rows of each group, with a one."""
        count, groups, inputs = x.shape
        rows = np.ones((count, inputs + 1))
        for part, t in enumerate(np.split(target.astype(np.float64), groups, 1)):
            rows[:, :-1] = x[:, part]
            self.cross[part] += rows.T @ t
            yield rows

    def centred(self) -> tuple[Array, Array, Array, Array]:
        """Covariances of x with itself and with t, and the means of both."""
        mean, target = self.gram[:, -1, :-1] / self.rows, self.cross[:, -1] / self.rows
        gram = self.gram[:, :-1, :-1] / self.rows - mean[:, :, None] * mean[:, None, :]
        cross = self.cross[:, :-1] / self.rows - mean[:, :, None] * target[:, None, :]
        return gram, cross, mean, target

    def solve(self, start: Array, damp: float) -> tuple[Array, Array]:
        """The weight (groups, outputs, inputs) and intercept (outputs) of the least squared error,
        ``damp`` x the mean variance of the inputs pulling the weight to ``start``. An input that no
        output reads in ``start`` stays unread."""
        gram, cross, mean, target = self.centred()
        new = start.swapaxes(1, 2).copy()
        for part, read in enumerate((new != 0).any(-1)):
            inner, old = gram[part][np.ix_(read, read)], new[part][read]
            size = max(len(inner), 1)
            ridge = max(damp * np.trace(inner) / size, np.finfo(np.float64).tiny)
            new[part, read] += np.linalg.solve(inner + ridge * np.eye(len(inner)), cross[part][read] - inner @ old)
        bias = target - np.einsum("gi,gio->go", mean, new)
        return new.swapaxes(1, 2), bias.ravel()


@dataclass(frozen=True)
class Curvature:
    """A fact: per layer (op name), the normal equations of its inputs and outputs over the calibration
    data, for whoever comes next."""

    sums: Mapping[str, NormalEquations]


ROWS = 100
"""Rows drawn per unknown of a layer (neighbouring positions say much the same)."""


def draw(rng: np.random.Generator, positions: int, wanted: int) -> Array | None:
    """A random share of the positions of a batch; None: all of them."""
    return None if wanted >= positions else np.sort(rng.choice(positions, wanted, replace=False))


def equations(found: Sequence[Layer], host: Host, batches: Sequence[Batch], seed: int) -> dict[str, NormalEquations]:
    """By op name, the normal equations of layers for what they give now: one pass over the data."""
    sums: dict[str, NormalEquations] = {}
    names = sorted({value.name for layer in found for value in (layer.value, layer.out)})
    for number, batch in enumerate(batches):
        seen = host.watch(batch, names)
        for layer in found:
            x, y = seen[layer.value.name], seen[layer.out.name]
            groups, outputs, inputs = layer.matrix(host).shape
            rng = np.random.default_rng([seed, number, zlib.crc32(layer.op.name.encode())])
            at = draw(rng, layer.positions(y), -(-ROWS * inputs // len(batches)))
            own = sums.setdefault(layer.op.name, NormalEquations(groups, inputs, groups * outputs))
            own.add(layer.rows(x, at), layer.targets(y, at))
    return sums


def affine(norm: Op, host: Host) -> tuple[Array, Array]:
    """What a BatchNorm in eval mode computes: y -> scale * y + shift, per channel, float64."""
    gamma, beta, mean, variance = (
        None if value is None else host.parameter(value.name).astype(np.float64) for value in norm.inputs[1:5]
    )
    assert mean is not None and variance is not None
    scale: Array = (1.0 if gamma is None else gamma) / np.sqrt(variance + norm.attrs["eps"])
    return scale, (0.0 if beta is None else beta) - mean * scale
