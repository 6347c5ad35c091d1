"""Optimal brain surgeon for channels: what leaving inputs out costs a layer whose other weights make up
for it, and those weights.

With A the inverse of the covariance of a layer's inputs, leaving out the rows P of its weight costs
tr(W_P' [A_PP]^-1 W_P), after which W -= A_:P [A_PP]^-1 W_P (Hassibi and Stork 1993; blocks as in SlimGPT, Ling et
al. 2024, and ZipLM, Kurtic et al. 2023). Only A_GG and W_G are needed of a group's rows G, and with A_PP = L L' and
Z = L^-1 W_P what each row of P costs after those before it is the square of its row of Z: of a given order all costs
come of one Cholesky factor, and the order that takes the cheapest next is its pivoting (``cheapest_first``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..axes.dim import find
from ..axes.index import Indices, shares
from ..coupling.contractions import Contraction
from ..ir.facts import Group
from ..ir.host import Array
from .curvature import Curvature


@dataclass(frozen=True)
class Problem:
    """One group of a convolution, or a whole layer: ``weight`` (inputs x taps, outputs), ``inverse`` of H, and for each
    of ``channels`` the row numbers ``blocks`` that are its."""

    layer: Contraction
    part: int
    weight: Array
    inverse: Array
    channels: Indices
    blocks: Indices
    worth: float  # the reciprocal of the variance of what the layer gives

    def without(self, gone: Sequence[int]) -> Array:
        """The weight once channels are left out."""
        return left_out(self.weight, self.inverse, self.rows(gone))

    def costs(self, order: Sequence[int]) -> Array:
        """What leaving out each channel of ``order`` costs on top of those before it; zero where it is not read."""
        rows, out = self.rows(order), np.zeros(len(order))
        if len(rows):
            factor = np.linalg.cholesky(self.inverse[np.ix_(rows, rows)])
            each = np.square(np.linalg.solve(factor, self.weight[rows])).sum(1)
            counts = [self.blocks[self.channels == channel].size for channel in order]
            np.add.at(out, np.repeat(np.arange(len(order)), counts), each * self.worth)
        return out

    def rows(self, channels: Sequence[int]) -> Indices:
        """The rows of the weight that are theirs."""
        rows = [self.blocks[self.channels == channel].ravel() for channel in channels]
        return np.concatenate(rows) if rows else np.arange(0)


def left_out(weight: Array, inverse: Array, rows: Indices) -> Array:
    """A weight (inputs, outputs) once some rows are left out, the others making up for them."""
    if not len(rows):
        return weight
    made: Array = weight - inverse[:, rows] @ np.linalg.solve(inverse[np.ix_(rows, rows)], weight[rows])
    made[rows] = 0
    return made


PANEL = 96
"""Rows left out before what remains is brought up to date: until then corrections are made where they are looked at."""
ROWS = 256
"""Rows brought up to date at a time: they stay in the cache, and no second matrix is held."""


class Remaining:
    """What is left of a problem while its channels go one by one.

    ``inverse`` and ``weight`` are those of the group's own rows, block after block, at the last update; since then
    rows went that make up ``factor`` (L) and ``gone`` (Z). ``inner`` is the present A and ``energy`` the present W W'
    within each block.
    """

    def __init__(self, problem: Problem) -> None:
        self.channels, self._worth = problem.channels, problem.worth
        rows = problem.blocks.ravel()
        self._taps = problem.blocks.shape[1]
        self._inverse, self._weight = problem.inverse[np.ix_(rows, rows)], problem.weight[rows]
        self._begin()

    def _begin(self) -> None:
        count, taps = len(self.channels), self._taps
        self._left = np.ones(count, bool)
        self._factor, self._gone = np.zeros((count * taps, 0)), np.zeros((0, self._weight.shape[1]))
        own = np.arange(count)
        self._inner = self._inverse.reshape(count, taps, count, taps)[own, :, own].copy()
        weight = self._weight.reshape(count, taps, self._weight.shape[1])
        self._energy = np.einsum("cro,cso->crs", weight, weight)

    def costs(self, size: int) -> Array:
        """Per channel of the group, what leaving it out costs; zero where it is not read."""
        inner, energy = self._inner[self._left], self._energy[self._left]
        each = (np.linalg.inv(inner) if self._taps > 1 else 1 / inner) * energy
        out = np.bincount(self.channels[self._left], each.sum((1, 2)) * self._worth, size)
        return np.maximum(out, 0.0)

    def reads(self, channel: int) -> bool:
        return bool((self.channels == channel).any())

    def remove(self, channel: int) -> None:
        for block in np.flatnonzero(self.channels == channel):
            self._remove(int(block))
        if self._factor.shape[1] >= PANEL:
            self._update()

    def _remove(self, block: int) -> None:
        taps = self._taps
        rows = slice(block * taps, (block + 1) * taps)
        column = self._inverse[rows].T - self._factor @ self._factor[rows].T
        root = np.linalg.cholesky(column[rows])
        new = np.linalg.solve(root, column.T).T
        z = np.linalg.solve(root, self._weight[rows] - self._factor[rows] @ self._gone)
        toward = (self._weight @ z.T - self._factor @ (self._gone @ z.T)).reshape(-1, taps, taps)  # W Z'
        blocks = new.reshape(-1, taps, taps)
        mixed = toward @ blocks.swapaxes(1, 2)
        self._inner -= blocks @ blocks.swapaxes(1, 2)
        self._energy += blocks @ (z @ z.T) @ blocks.swapaxes(1, 2) - mixed - mixed.swapaxes(1, 2)
        self._factor, self._gone = np.hstack([self._factor, new]), np.vstack([self._gone, z])
        self._left[block] = False

    def _update(self) -> None:
        rows = np.flatnonzero(np.repeat(self._left, self._taps))
        factor = self._factor[rows]
        for start in range(0, len(rows), ROWS):  # in place: no row is read after one behind it was written
            own = slice(start, min(start + ROWS, len(rows)))
            inverse, weight = self._inverse[rows[own]], self._weight[rows[own]]
            self._inverse[own, : len(rows)] = inverse.take(rows, 1) - factor[own] @ factor.T
            self._weight[own] = weight - factor[own] @ self._gone
        self._inverse, self._weight = self._inverse[: len(rows), : len(rows)], self._weight[: len(rows)]
        self.channels = self.channels[self._left]
        self._begin()


def problems(group: Group, curvature: Curvature) -> list[Problem]:
    """What each of the layers that read the group has to solve."""
    return [
        Problem(one.layer, part, one.weight[part].T, one.inverse[part], channels, blocks, one.worth)
        for one in curvature.readings.values()
        for part, channels, blocks in places(group, one.layer, one.mean.shape[1])
    ]


def places(group: Group, layer: Contraction, inputs: int) -> Iterator[tuple[int, Indices, Indices]]:
    """Where a layer reads the group: for every part of it that does and has so many ``inputs``, the channels and the
    weight rows of each, (channels, rows a channel)."""
    at, index = shares(layer.dim).get(find(group.dim), (np.arange(0), np.arange(0)))
    wide = inputs // layer.taps
    for part in np.unique(at // wide):
        mine = at // wide == part
        channels, columns = _columns(at[mine] - part * wide, index[mine])
        rows = columns[:, :, None] + wide * np.arange(layer.taps)
        yield int(part), channels, rows.reshape(len(channels), -1)


def _columns(at: Indices, index: Indices) -> tuple[Indices, Indices]:
    """Channels, and where each is: (channels, positions)."""
    order = np.argsort(index, kind="stable")
    channels, counts = np.unique(index, return_counts=True)
    if counts.min() != counts.max():  # uneven shares: each position on its own
        return index[order], at[order][:, None]
    return channels, at[order].reshape(len(channels), -1)


Combine = Callable[[Array], Array]
"""(layers, channels) to one number a channel."""


def cheapest_first(found: Sequence[Problem], size: int, combine: Combine) -> tuple[list[int], list[float]]:
    """The order in which channels of a group go, always the one that costs least by ``combine``, and what each costs
    on top of those before it, as a share of the variance of what a layer gives."""
    layers = _layers(found)
    remaining = [Remaining(problem) for problem in found]
    parts = [now.costs(size) for now in remaining]
    left, order, costs = np.ones(size, bool), [], []
    for _ in range(size):
        each = np.zeros((max(len(layers), 1), size))
        for problem, part in zip(found, parts, strict=True):
            each[layers[problem.layer.op.name]] += part
        each = combine(each)
        channel = int(np.argmin(np.where(left, each, np.inf)))
        left[channel] = False
        order.append(channel)
        costs.append(float(each[channel]))
        for k, now in enumerate(remaining):
            if now.reads(channel):  # a depthwise convolution is as many problems as it has channels
                now.remove(channel)
                parts[k] = now.costs(size)
    return order, costs


def in_turn(found: Sequence[Problem], order: Sequence[int]) -> Array:
    """What each channel of ``order`` costs on top of those before it: the mean over layers."""
    layers = _layers(found)
    each = np.zeros((max(len(layers), 1), len(order)))
    for problem in found:
        each[layers[problem.layer.op.name]] += problem.costs(order)
    mean: Array = each.mean(0)
    return mean


def _layers(found: Sequence[Problem]) -> dict[str, int]:
    names = dict.fromkeys(problem.layer.op.name for problem in found)
    return {name: number for number, name in enumerate(names)}
