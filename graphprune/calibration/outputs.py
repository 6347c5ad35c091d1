"""How far outputs are from what they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import ModelError
from ..ir.graph import Graph
from ..ir.host import Array, as_real

Outputs = Sequence[Mapping[str, Array]]
"""Per batch, the outputs by name."""


def compared(graph: Graph) -> list[str]:
    """The names of the outputs that are compared: those of floats, or all of a network that has none."""
    floats = [value.name for value in graph.outputs if "float" in value.dtype]
    return floats or [value.name for value in graph.outputs]


def by_place(seen: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    """Outputs by their places: an output may be an input, or be handed out twice."""
    return {str(place): seen[name] for place, name in enumerate(names)}


def distortion(whole: Outputs, seen: Outputs) -> float:
    """The mean over outputs of |change|^2 / |deviation from the mean|^2; of integers the share of entries that are
    others. What is not finite counts as zero, as in closeness; an output of another shape is lost."""
    return float(np.mean([_lost([(a[name], b[name]) for a, b in zip(whole, seen, strict=True)]) for name in whole[0]]))


def _lost(pairs: Sequence[tuple[Array, Array]]) -> float:
    if any(before.shape != after.shape for before, after in pairs):
        return 1.0
    rows = all(before.ndim and before.shape[1:] == pairs[0][0].shape[1:] for before, _ in pairs)
    before, after = (np.concatenate([x if rows else x.ravel() for x in one]) for one in zip(*pairs, strict=True))
    if before.dtype.kind not in "fc":
        return float((before != after).mean()) if before.size else 0.0
    before, after = finite(before), finite(after)
    return float(np.square(after - before).mean() / (before.var(0).mean() or 1.0)) if before.size else 0.0


def finite(array: Array) -> Array:
    """In double precision, with zeros for what is not finite: a mask of -inf, say."""
    return np.nan_to_num(as_real(array).astype(np.float64), copy=False, posinf=0.0, neginf=0.0)


def divergence(whole: Outputs, seen: Outputs) -> float:
    """The Kullback-Leibler divergence in nats, averaged over positions and outputs, of what softmax along the last
    axis makes of the outputs: KL(before || after). Raises ModelError where an output has no such axis of floats."""
    found = []
    for before, after in zip(whole, seen, strict=True):
        for name, one in before.items():
            if one.dtype.kind != "f" or not one.ndim:
                raise ModelError(
                    f"output `{name}` is {one.dtype}, {one.ndim}-dimensional, and a divergence is of logits",
                    "score{branches=output} goes by any outputs",
                )
            p, q = (_log_softmax(x.astype(np.float64)) for x in (one, after[name]))
            found.append((np.exp(p) * np.subtract(p, q, out=np.zeros_like(p), where=p > -np.inf)).sum(-1).ravel())
    return float(np.concatenate(found).mean())


def _log_softmax(x: Array) -> Array:
    x = x - x.max(-1, keepdims=True)
    made: Array = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return made
