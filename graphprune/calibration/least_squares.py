"""Least squares for layers: what a layer reads as a matrix, and normal equations summed over batches.

The equations are float64 and centred, so that an intercept comes with them; of a batch no more is held
than the rows drawn from it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..coupling.contractions import Contraction
from ..ir.host import Array, Batch, Host


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


def equations(
    found: Sequence[Contraction], host: Host, batches: Sequence[Batch], seed: int
) -> dict[str, NormalEquations]:
    """By op name, the normal equations of layers for what they give now: one pass over the data."""
    sums: dict[str, NormalEquations] = {}
    names = sorted({value.name for layer in found for value in (layer.value, layer.out)})
    for number, batch in enumerate(batches):
        seen = host.watch(batch, names)
        for layer in found:
            x, y = seen[layer.value.name], seen[layer.out.name]
            groups, outputs, inputs = layer.flat_matrix(host).shape
            rng = np.random.default_rng([seed, number, zlib.crc32(layer.op.name.encode())])
            at = draw(rng, layer.positions(y), -(-ROWS * inputs // len(batches)))
            own = sums.setdefault(layer.op.name, NormalEquations(groups, inputs, groups * outputs))
            own.add(layer.rows(x, at), layer.targets(y, at))
    return sums
