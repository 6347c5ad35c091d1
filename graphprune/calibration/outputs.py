"""How far outputs are from what they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..ir.graph import Graph
from ..ir.host import Array

Outputs = Sequence[Mapping[str, Array]]
"""Per batch, the outputs by name."""


def compared(graph: Graph) -> list[str]:
    """The names of the outputs that are compared."""
    return [value.name for value in graph.outputs if "float" in value.dtype]


def distortion(whole: Outputs, seen: Outputs) -> float:
    """The mean over outputs of |change|^2 / |deviation from the mean|^2."""
    shares = []
    for name in whole[0]:
        before = np.concatenate([one[name].astype(np.float64) for one in whole])
        after = np.concatenate([one[name].astype(np.float64) for one in seen])
        shares.append(np.square(after - before).mean() / (before.var(0).mean() or 1.0))
    return float(np.mean(shares))


def divergence(whole: Outputs, seen: Outputs) -> float:
    """The Kullback-Leibler divergence in nats, averaged over positions and outputs, of what softmax along the last
    axis makes of the outputs: KL(before || after)."""
    found = []
    for before, after in zip(whole, seen, strict=True):
        for name in before:
            p, q = (_log_softmax(one[name].astype(np.float64)) for one in (before, after))
            found.append((np.exp(p) * (p - q)).sum(-1).ravel())
    return float(np.concatenate(found).mean())


def _log_softmax(x: Array) -> Array:
    x = x - x.max(-1, keepdims=True)
    made: Array = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return made
