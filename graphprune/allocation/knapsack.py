"""The exact knapsack over channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .choice import Counts, choose, trade
from .problem import Allocation


def knapsack(problem: Allocation) -> Counts:
    """The choice that keeps the most score within the budget.

    Aflalo et al., Knapsack Pruning, 2020; tied layers are one item, as a group is. A channels budget adds over groups
    and is solved exactly; MACs, parameters and memory do not add, and are traded: see choice.trade."""
    problem.check()
    losses = lost(problem, {group.name: problem.menu(group) for group in problem.groups})
    if problem.unit == "channels":
        costs = {name: {count: float(count) for count in menu} for name, menu in losses.items()}
        return choose(losses, costs, problem.budget)
    return trade(losses, problem.prices, problem.budget, problem.tables)


def lost(problem: Allocation, menus: Mapping[str, Sequence[int]]) -> dict[str, dict[int, float]]:
    """Per group and count of its menu the sum of the scores that go."""
    found = {}
    for group in problem.groups:
        sums = np.concatenate([[0.0], np.cumsum(np.sort(problem.scores[group]))])
        found[group.name] = {count: float(sums[group.size - count]) for count in menus[group.name]}
    return found
