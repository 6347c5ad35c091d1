"""LASSO channel selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..axes.index import Indices
from ..calibration.curvature import measured, scaled, scales
from ..calibration.least_squares import Covariance
from ..calibration.optimal_brain_surgeon import places
from ..coupling.contractions import Contraction
from ..ir.host import Array
from .magnitude import l2
from .obs import readers
from .scoring import ScoresByGroup, Scoring, criterion

LAMBDAS = 40
"""Penalties tried, from the one that leaves nothing down to a ten-thousandth of it."""


@criterion("lasso", data=True)
def lasso(scoring: Scoring) -> ScoresByGroup:
    """LASSO over the channels that a layer reads (He et al., Channel Pruning, 2017).

    Section 3.1: per reader, min 1/2 |Y - sum_i b_i X_i W_i|^2 +
    lambda |b|_1 with |W_i| = 1. The score of a channel is the largest lambda, as a share of the one that
    leaves nothing, at which its b_i is not zero: the order in which the search over lambda lets channels
    go [derived: the paper searches one lambda per ratio]. The mean over readers by ``combine``.

    Groups that no conv or linear reads get their L2 norms, brought to the same mean by ``normalize``.
    """
    program, found = scoring.program, readers(scoring)
    count, parts = scales(program.graph, program.host), dict[tuple[str, str], Array]()

    def look(layers: Sequence[Contraction], sums: Mapping[str, Covariance]) -> None:
        for layer in layers:
            gram, _ = sums[layer.op.name].centred()
            weights = scaled(layer, program.host, count)[0]
            for group in scoring.groups:
                own = list[Array]()
                for part, channels, blocks in places(group, layer, gram.shape[1]):
                    score = np.zeros(group.size)
                    np.maximum.at(score, channels, survival(*_normal(weights[part].T[blocks], blocks, gram[part])))
                    own.append(score)
                if own:
                    parts[group.name, layer.op.name] = np.sum(own, 0)

    known = measured(found, program.graph, program.host, program.data, program.seed, look=look)
    out = l2(scoring)
    for group in scoring.groups:
        own = [parts[group.name, layer.op.name] for layer in found if (group.name, layer.op.name) in parts]
        if own:
            out[group.name] = scoring.combined(own, group.size)
    scoring.learned.append(known)
    return out


def _normal(rows: Array, blocks: Indices, gram: Array) -> tuple[Array, Array]:
    """A_ij = <X_i W_i, X_j W_j> over calibration data, and <Y, X_i W_i>, with |W_i| = 1."""
    size = np.sqrt(np.square(rows).sum((1, 2)))
    inner = gram[blocks[:, :, None, None], blocks[None, None, :, :]]
    whole = np.einsum("bro,brcs,cso->bc", rows, inner, rows, optimize=True)
    size = np.where(size > 0, size, 1)
    return whole / np.outer(size, size), whole.sum(1) / size


def survival(inner: Array, target: Array) -> Array:
    """For each variable of a LASSO, the largest penalty at which it is not zero, as a share of the one
    that makes all zero; found by coordinate descent down a geometric path with warm starts."""
    top = np.abs(target).max(initial=0.0)
    beta, alive = np.zeros(len(target)), np.zeros(len(target))
    for share in np.geomspace(1, 1e-4, LAMBDAS) if top > 0 else ():
        for _ in range(50):
            before = beta.copy()
            for k in range(len(beta)):
                if inner[k, k] > 0:
                    rest = target[k] - inner[k] @ beta + inner[k, k] * beta[k]
                    beta[k] = np.sign(rest) * max(abs(rest) - share * top, 0) / inner[k, k]
            if np.abs(beta - before).max(initial=0.0) <= 1e-6 * np.abs(beta).max(initial=1e-30):
                break
        alive = np.where((alive == 0) & (beta != 0), share, alive)
    return alive
