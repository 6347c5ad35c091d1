"""Mean, variance and magnitude of activations, in one pass over the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..coupling.contractions import Read
from ..ir.host import Array, Batch, Host


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
