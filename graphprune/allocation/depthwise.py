"""More of a layer the deeper it lies."""

from __future__ import annotations

from math import ceil, floor, log

from .choice import Counts
from .problem import Allocation
from .threshold import best_within, scored

FIRST = 0.5
"""Of what the last group loses: the share of the first one that goes."""


def depthwise(problem: Allocation) -> Counts:
    """A share of every group that falls with the logarithm of its depth: errors of early layers grow on the way.

    Of group i of n goes first + (last - first) log(i + 1) / log(n), with as much for the last as the budget wants
    (the incremental pruning ratio of SlimGPT, Ling et al. 2024); the first loses half as much, or more once the last
    is at its floor: a budget that all floors meet is met.
    """
    groups = problem.groups
    depth = [log(k + 1) / log(len(groups)) if len(groups) > 1 else 1.0 for k in range(len(groups))]

    def counts(ratio: float) -> Counts:
        gone = [(1 - ratio) * (FIRST + (1 - FIRST) * one) for one in depth]
        return {
            g.name: problem.survivors(g, floor((1 - own) * g.size + 0.5)) for g, own in zip(groups, gone, strict=True)
        }

    steps = sum(group.size for group in groups)
    more = ceil(steps * (1 / FIRST - 1))  # until all of the first would go
    return best_within(problem, lambda k: counts((k + 1 - more) / steps), steps + more, scored(problem))
