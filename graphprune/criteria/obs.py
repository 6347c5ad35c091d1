"""Optimal brain surgeon: what a channel costs when the others make up for it."""

from __future__ import annotations

import numpy as np

from ..axes.dim import leaves
from ..calibration.curvature import measured
from ..calibration.optimal_brain_surgeon import cheapest_first, problems
from ..coupling.contractions import Contraction, contractions
from .magnitude import l2
from .scoring import COMBINE, ScoresByGroup, Scoring, criterion


def readers(scoring: Scoring) -> list[Contraction]:
    """The layers that read the groups' channels."""
    own = {group.dim for group in scoring.groups}
    layers = contractions(scoring.program.graph, own=True)
    return [layer for layer in layers if any(leaf in own for leaf in leaves(layer.dim))]


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
    steps = batches + len(scoring.groups)

    def told(done: int, total: int) -> None:
        program.progress("statistics", done * batches // total, steps)

    found = readers(scoring)
    known = measured(found, program.graph, program.host, program.data, program.seed, told)
    out = l2(scoring)
    scoring.learned.append(known)
    for number, group in enumerate(scoring.groups):
        program.progress("optimal brain surgeon", batches + number, steps)
        own = problems(group, known)
        if own:
            order, costs = cheapest_first(own, group.size, COMBINE[scoring.combine])
            rising = np.maximum.accumulate(np.maximum(costs, 1e-300))
            score = np.empty(group.size)
            score[order] = rising * (1 + 1e-9 * np.arange(group.size))
            out[group.name] = score
    return out
