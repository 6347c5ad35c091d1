"""Mean, variance, magnitude and activity of activations, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..axes.index import Index
from ..coupling.contractions import Contraction
from ..ir.host import Array, Batch, Host
from .processes import turns


@dataclass(frozen=True)
class Moments:
    """Mean, (population) variance, mean magnitude and share of what is not zero of an activation, per position of
    one axis, float64."""

    mean: Array
    variance: Array
    magnitude: Array
    active: Array


class RunningMoments:
    """Moments of an axis over batches, one after the other.

    Chunks are merged with the update of Chan, Golub and LeVeque (1979), which does not lose digits
    when the mean is large.
    """

    def __init__(self, axis: int) -> None:
        self._axis, self._count = axis, 0.0
        self._mean, self._square, self._magnitude, self._active = (np.zeros(1) for _ in range(4))

    def add(self, value: Array) -> None:
        self.put(*self.parts(value))

    def parts(self, value: Array) -> tuple[Array, ...]:
        """Of a chunk, for ``put``: how many rows; their mean and variance; sums of magnitudes and of what is active."""
        x = np.moveaxis(value, self._axis, -1).astype(np.float64)
        x = x.reshape(-1, x.shape[-1])
        return np.array(float(len(x))), x.mean(0), x.var(0), np.abs(x).sum(0), (x != 0).sum(0)

    def put(self, rows: Array, mean: Array, variance: Array, magnitude: Array, active: Array) -> None:
        count, delta = float(rows), mean - self._mean
        total = self._count + count
        self._magnitude = self._magnitude + magnitude
        self._active = self._active + active
        self._square = self._square + variance * count + delta**2 * (self._count * count / total)
        self._mean = self._mean + delta * (count / total)
        self._count = total

    def done(self) -> Moments:
        count = self._count
        return Moments(self._mean, self._square / count, self._magnitude / count, self._active / count)


def moments(
    host: Host, found: Sequence[Contraction], batches: Sequence[Batch], surviving: Index | None = None
) -> dict[tuple[str, int], Moments]:
    """Per (value name, axis) that is contracted, over all batches, in one pass over the data; over what is
    ``surviving`` of the other axes."""
    dims = {read.value.name: read.value.dims for read in found}
    keys = sorted({(read.value.name, read.axis) for read in found})
    running = {key: RunningMoments(key[1]) for key in keys}

    def made(number: int) -> Iterator[Sequence[Array]]:
        seen = host.watch(batches[number], sorted(dims))
        for (name, axis), one in running.items():
            yield one.parts(surviving.cut(seen[name], dims[name], but=axis) if surviving is not None else seen[name])

    for parts in turns(len(batches), made):
        for one, own in zip(running.values(), parts, strict=True):
            one.put(*own)
    return {key: one.done() for key, one in running.items()}
