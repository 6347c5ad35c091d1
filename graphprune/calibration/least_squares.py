"""Least squares for layers: normal equations summed over batches, and how many rows are drawn for them.

The equations are float64 and centred, so that an intercept comes with them; of a batch no more is held
than the rows drawn from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ..errors import DataError
from ..ir.host import Array
from ..ir.large import Room


class Covariance:
    """Sums over rows x of inputs, per group of a layer: of x and x x', about the means of the first rows. Products
    are made in the precision of x, block by block, and summed in float64: about a mean, float32 loses nothing that
    the data has but for what is far below the largest of it; ``precise``: they are made in float64 too."""

    def __init__(self, groups: int, inputs: int, precise: bool = False) -> None:
        self.rows, self._precise = 0, precise
        self._square = np.zeros((groups, inputs, inputs))
        self._sum = np.zeros((groups, inputs))
        self._about: Array | None = None  # what is taken off every row

    def add(self, x: Array) -> None:
        """``x``: (rows, groups, inputs)."""
        for own in self.blocks(x):
            self.take(own)

    def blocks(self, x: Array) -> Iterator[Array]:
        """Blocks of rows about the mean of the first, (groups, rows, inputs): for ``take``."""
        if self._about is None:
            self._about = _mean(x).astype(np.float64 if self._precise else x.dtype)
        return _blocks(x, self._about)

    def take(self, block: Array) -> None:
        self.put(*self.products(block))

    @staticmethod
    def products(block: Array) -> tuple[int, Array, Array]:
        """What ``put`` adds of a block: a product of a matrix with itself takes half the time."""
        return block.shape[1], block.swapaxes(1, 2) @ block, _total(block)

    def put(self, rows: int, square: Array, total: Array) -> None:
        self.rows += rows
        self._square += square
        self._sum += total

    @property
    def about(self) -> Array:
        """What is taken off every row: known once there were any."""
        assert self._about is not None
        return self._about

    @about.setter
    def about(self, mean: Array) -> None:
        self._about = mean

    def centred(self) -> tuple[Array, Array]:
        """The covariance (groups, inputs, inputs) and the mean (groups, inputs)."""
        off = self.off
        assert self._about is not None
        made = self._square / max(self.rows, 1)
        for k in range(0, self.size, STRIPE):  # a matrix of its own is as large
            made[:, k : k + STRIPE] -= off[:, k : k + STRIPE, None] * off[:, None, :]
        return made, off + self._about

    def check(self, where: str) -> None:
        """Raises DataError where sums are no numbers, naming the layer that reads such inputs."""
        if not np.isfinite(np.einsum("gii->gi", self._square)).all():
            raise not_finite(where)

    @property
    def off(self) -> Array:
        """How far the mean is from what is taken off."""
        off: Array = self._sum / max(self.rows, 1)
        return off

    @property
    def size(self) -> int:
        """Inputs of a group."""
        return self._sum.shape[1]


class NormalEquations:
    """Those of a least-squares fit of a layer: a Covariance of its inputs x, and sums of x t' for its targets t."""

    def __init__(self, groups: int, inputs: int, outputs: int, room: Room | None = None) -> None:
        """``room``: where the sums of x t' are, if not in memory: a vocabulary of outputs has many."""
        self.inputs, self._room = Covariance(groups, inputs), room
        self._shape = groups, inputs, outputs // groups
        self._about: Array | None = None  # what is taken off every target
        self._forget()

    def _forget(self) -> None:
        """As if no target had been added."""
        groups, inputs, outputs = self._shape
        cross = np.zeros((groups, inputs, outputs))
        self._cross = cross if self._room is None else self._room.put(cross)
        self._target = np.zeros((groups, outputs))

    def add(self, x: Array, target: Array) -> None:
        """``x``: (rows, groups, inputs); ``target``: (rows, outputs)."""
        for own, t in self._pairs(x, target):
            self.inputs.take(own)
            self._aim(own, t)

    def aim(self, rows: Iterable[tuple[Array, Array]]) -> None:
        """The same rows once more, with other targets in place of those they had."""
        self._forget()
        for x, target in rows:
            for own, t in self._pairs(x, target):
                self._aim(own, t)

    def check(self, where: str) -> None:
        """As that of a Covariance, of the layer's targets too."""
        self.inputs.check(where)
        if not np.isfinite(self._target).all():
            raise not_finite(where, "gives")

    def _aim(self, own: Array, target: Array) -> None:
        for k in range(0, target.shape[2], STRIPE):  # products are as large as the sums
            self._cross[..., k : k + STRIPE] += own.swapaxes(1, 2) @ target[..., k : k + STRIPE]
        self._target += _total(target)

    def _pairs(self, x: Array, target: Array) -> Iterator[tuple[Array, Array]]:
        whole = target.reshape(len(x), self._shape[0], -1)
        if self._about is None:
            self._about = _mean(whole).astype(x.dtype)
        yield from zip(self.inputs.blocks(x), _blocks(whole, self._about), strict=True)

    def solve(self, start: Array, damp: float, intercept: bool = True) -> tuple[Array, Array]:
        """The weight (groups, outputs, inputs), which takes the place of ``start``, and intercept (outputs) of the
        least squared error, ``damp`` x the mean variance of the inputs pulling the weight to ``start``. An input that
        no output reads in ``start`` stays unread. Without ``intercept`` it is zero, and the weight fits the means
        too."""
        assert self._about is not None
        gram, mean = self.inputs.centred()
        off, about = self._target / self.inputs.rows, self._about
        target = off + about
        if not intercept:
            for k in range(0, gram.shape[1], STRIPE):
                gram[:, k : k + STRIPE] += mean[:, k : k + STRIPE, None] * mean[:, None, :]
        new = start.swapaxes(1, 2)
        most = max(SOLVED_BYTES // new[0, :, 0].nbytes, 1)
        for part, read in enumerate((new != 0).any(-1)):
            some = slice(None) if read.all() else np.flatnonzero(read)
            inner = gram[part] if read.all() else gram[part][np.ix_(read, read)]
            size = max(len(inner), 1)
            pulled = inner.copy()
            pulled.flat[:: size + 1] += max(damp * np.trace(inner) / size, np.finfo(np.float64).tiny)
            for k in range(0, new.shape[2], most):
                at = slice(k, k + most)
                cross = self._cross[part, :, at] / self.inputs.rows
                cross -= self.inputs.off[part][:, None] * off[part, at]
                if not intercept:
                    cross += mean[part][:, None] * target[part, at]
                cross = cross[some]
                cross -= inner @ new[part, some, at]
                new[part, some, at] += np.linalg.solve(pulled, cross)
        bias = target - np.einsum("gi,gio->go", mean, new) if intercept else np.zeros_like(target)
        return new.swapaxes(1, 2), bias.ravel()


BLOCK = 4096
"""Rows that are multiplied at once."""
STRIPE = 2048
"""Rows of a matrix of unknowns, or outputs of it, that are made at once."""
SOLVED_BYTES = 160 << 20
"""Of a layer's weights, those that are solved for at once."""
ROWS, FEW, MANY = 100, 30, 16_384
"""Rows drawn per unknown of a layer (neighbouring positions say much the same), and per unknown where those are more
than ``MANY``: their products cost the cube of the unknowns."""


def rows_wanted(unknowns: int) -> int:
    """How many rows the fit of a layer draws from the whole data."""
    return min(ROWS * unknowns, max(FEW * unknowns, MANY))


def draw(rng: np.random.Generator, positions: int, wanted: int) -> Array | None:
    """A random share of the positions of a batch; None: all of them."""
    return None if wanted >= positions else np.sort(rng.choice(positions, wanted, replace=False))


def not_finite(where: str, does: str = "reads") -> DataError:
    """``where``: an op."""
    return DataError(
        f"what {where} {does} is infinite, or too large to square, on the calibration data: it has no second moments",
        "is a weight before it infinite? Else the data has to be as the network was trained on",
    )


def _mean(x: Array) -> Array:
    """Of the first rows, in the precision of all; zeros where there are none, as for an expert that nobody chose."""
    mean: Array = (x[:BLOCK].sum(0, dtype=np.float64) / max(len(x[:BLOCK]), 1)).astype(x.dtype)
    return mean


def _blocks(x: Array, about: Array) -> Iterator[Array]:
    """Blocks of rows less ``about``: (groups, rows, ...)."""
    for k in range(0, len(x), BLOCK):
        yield np.ascontiguousarray((x[k : k + BLOCK] - about).swapaxes(0, 1), about.dtype)


def _total(block: Array) -> Array:
    """The sum of a block's rows: as a product, which goes along the memory."""
    total: Array = np.ones(block.shape[1], block.dtype) @ block
    return total
