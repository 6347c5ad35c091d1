"""Optimal brain surgeon: what a channel costs when the others make up for it."""

from __future__ import annotations

import numpy as np

from ..axes.dim import leaves
from ..calibration.curvature import covariances, curvature
from ..calibration.least_squares import Covariance
from ..calibration.optimal_brain_surgeon import cheapest_first, problems
from ..coupling.contractions import Contraction, contractions
from .magnitude import l2
from .scoring import COMBINE, ScoresByGroup, Scoring, criterion


def readers(scoring: Scoring) -> tuple[list[Contraction], dict[str, Covariance]]:
    """The layers that read the groups' channels, and the covariances of their inputs over calibration data."""
    program = scoring.program
    steps = len(program.data) + len(scoring.groups)
    mine = {group.dim for group in scoring.groups}
    found = [la for la in contractions(program.graph, own=True) if any(leaf in mine for leaf in leaves(la.dim))]
    sums = covariances(
        found, program.host, program.data, program.seed, lambda done: program.progress("statistics", done, steps)
    )
    return found, sums


@criterion("obs", data=True)
def obs(scoring: Scoring) -> ScoresByGroup:
    """What the others cannot make up for: optimal brain surgeon (SlimGPT, ZipLM).

    Channels are left out one by one, always the one whose loss the remaining inputs of its readers can
    make up for best by least squares (SlimGPT, Ling et al. 2024; ZipLM, Kurtic et al. 2023; Tyr). The
    score is what that added to the readers' error, as a share of the variance of what they give (over
    readers by ``combine``), made rising in the order of elimination; so every top-k of it is the k that
    were left.

    Groups that no conv or linear reads get their L2 norms, brought to the same mean by ``normalize``.
    """
    program, batches = scoring.program, len(scoring.program.data)
    found, sums = readers(scoring)
    known, out = curvature(found, program.graph, program.host, sums), l2(scoring)
    scoring.learned.append(known)
    for number, group in enumerate(scoring.groups):
        program.progress("optimal brain surgeon", batches + number, batches + len(scoring.groups))
        own = problems(group, known)
        if own:
            order, costs = cheapest_first(own, group.size, COMBINE[scoring.combine])
            rising = np.maximum.accumulate(np.maximum(costs, 1e-300))
            score = np.empty(group.size)
            score[order] = rising * (1 + 1e-9 * np.arange(group.size))
            out[group.name] = score
    return out
