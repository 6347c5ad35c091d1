"""Optimal brain surgeon for channels: what leaving inputs out costs a layer whose other weights make up
for it, and those weights.

With H the covariance of a layer's inputs, leaving out the columns B of its weight costs
tr(W_B' [(H^-1)_BB]^-1 W_B), after which W -= (H^-1)_:B [(H^-1)_BB]^-1 W_B and
H^-1 -= (H^-1)_:B [(H^-1)_BB]^-1 (H^-1)_B: (Hassibi and Stork 1993; blocks as in SlimGPT, Ling et al. 2024,
and ZipLM, Kurtic et al. 2023). Removing one channel after another by this gives nested choices, their
errors, and exactly the least-squares weights of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..axes.dim import find
from ..axes.index import Indices, shares
from ..coupling.affine import affine
from ..coupling.contractions import Contraction
from ..ir.facts import Group
from ..ir.graph import Graph
from ..ir.host import Array, Host
from .least_squares import NormalEquations

DAMP = 0.01
"""Ridge of a layer's H, in mean variances of its inputs."""


@dataclass
class Problem:
    """One group of a convolution, or a whole layer: ``weight`` (inputs x taps, outputs), ``inverse`` of H,
    and for each of ``channels`` the row numbers ``blocks`` that are its. ``scale``: what an error of each
    output counts."""

    layer: Contraction
    part: int
    weight: Array
    inverse: Array
    channels: Indices
    blocks: Indices
    worth: float  # the reciprocal of the variance of what the layer gives

    def costs(self, size: int) -> Array:
        """Per channel of the group, what leaving it out costs; zero where it is not read."""
        out = np.zeros(size)
        inner = self.inverse[self.blocks[:, :, None], self.blocks[:, None, :]]
        rows = self.weight[self.blocks]
        np.add.at(out, self.channels, np.einsum("bro,bro->b", rows, np.linalg.solve(inner, rows)) * self.worth)
        return out

    def remove(self, channel: int) -> None:
        for k in np.flatnonzero(self.channels == channel):
            block = self.blocks[k]
            gain = np.linalg.solve(self.inverse[np.ix_(block, block)], self.inverse[block]).T
            self.weight = self.weight - gain @ self.weight[block]
            self.inverse = self.inverse - gain @ self.inverse[block]
            self.weight[block] = 0
        rest = self.channels != channel
        self.channels, self.blocks = self.channels[rest], self.blocks[rest]


def problems(
    group: Group,
    found: Sequence[Contraction],
    sums: Mapping[str, NormalEquations],
    host: Host,
    scales: Mapping[str, Array],
) -> list[Problem]:
    """What each of the layers that read the group has to solve. ``scales``: by op name, what an error of
    each output counts."""
    out = []
    for layer in found:
        at, index = shares(layer.dim).get(find(group.dim), (np.arange(0), np.arange(0)))
        if not len(at):
            continue
        matrix = layer.flat_matrix(host)
        scale = scales.get(layer.op.name, np.ones(matrix.shape[0] * matrix.shape[1])).reshape(matrix.shape[:2])
        whole = matrix * scale[:, :, None]
        gram, _, _, _ = sums[layer.op.name].centred()
        size = gram.shape[-1]
        energy = float(np.einsum("goi,gij,goj->", whole, gram, whole))
        taps = layer.taps
        wide = size // taps  # channels a part
        for part in range(layer.groups):
            mine = at // wide == part
            if mine.any():
                channels, blocks = _blocks(at[mine] - part * wide, index[mine], taps)
                ridge = DAMP * np.trace(gram[part]) / size or 1.0
                inverse = np.linalg.inv(gram[part] + ridge * np.eye(size))
                out.append(Problem(layer, part, whole[part].T, inverse, channels, blocks, 1 / (energy or 1.0)))
    return out


def scales(graph: Graph, host: Host) -> dict[str, Array]:
    """By op name, what an error of each output counts: |gamma / sigma| of a BatchNorm right behind it."""
    out = {}
    for op in graph.ops:
        x = op.inputs[0] if op.kind == "batch_norm" else None
        maker = graph.maker(x) if x is not None else None
        if x is not None and maker is not None and (maker.kind == "conv" or len(x.dims) == 2):
            out[maker.name] = np.abs(affine(op, host)[0])
    return out


def _blocks(at: Indices, index: Indices, taps: int) -> tuple[Indices, Indices]:
    """Channels, and the weight rows of each: (channels, rows a channel)."""
    order = np.argsort(index, kind="stable")
    channels, counts = np.unique(index, return_counts=True)
    columns = at[order].reshape(len(channels), -1) if counts.min() == counts.max() else at[order][:, None]
    if counts.min() != counts.max():  # uneven shares: each position on its own
        channels = index[order]
    rows = columns[:, :, None] * taps + np.arange(taps)
    return channels, rows.reshape(len(channels), -1)


def eliminate(
    found: list[Problem],
    size: int,
    order: Sequence[int] | None = None,
    stops: Sequence[int] = (),
    combine: Callable[[Array], Array] = lambda costs: costs.mean(0),
) -> tuple[list[int], list[float], dict[int, dict[tuple[str, int], Array]]]:
    """Remove the channels of a group one by one: the one that costs least, or in ``order``.

    Returns the order, what each cost on top (as a share of the variance of what a layer gives; ``combine``
    takes (layers, channels) to one for all layers), and at each number of removed channels in ``stops``
    the weights, by layer and part. Changes ``found``.
    """
    layers = list(dict.fromkeys(problem.layer.op.name for problem in found))
    left, gone, costs = np.ones(size, bool), [], []
    snapshots: dict[int, dict[tuple[str, int], Array]] = {}
    for step in range(size):
        each = np.zeros((max(len(layers), 1), size))
        for problem in found:
            each[layers.index(problem.layer.op.name)] += problem.costs(size)
        each = combine(each)
        channel = int(np.argmin(np.where(left, each, np.inf))) if order is None else int(order[step])
        left[channel] = False
        gone.append(channel)
        costs.append(float(each[channel]))
        for problem in found:
            problem.remove(channel)
        if step + 1 in stops:
            snapshots[step + 1] = {(p.layer.op.name, p.part): p.weight.copy() for p in found}
    return gone, costs, snapshots
