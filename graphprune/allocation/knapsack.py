"""The exact knapsack over channels."""

from __future__ import annotations

import numpy as np

from .choice import Counts, choose, trade
from .problem import Allocation


def knapsack(problem: Allocation) -> Counts:
    """The choice that keeps the most score within the budget.

    Aflalo et al., Knapsack Pruning, 2020; tied layers are one item, as a group is. A channels budget adds over groups
    and is solved exactly; MACs, parameters and memory do not add, and are traded: see choice.trade."""
    problem.check()
    losses = {}
    for group in problem.groups:
        falling = np.sort(problem.scores[group])[::-1]
        lost = np.concatenate([np.cumsum(falling[::-1])[::-1], [0.0]])
        losses[group.name] = {count: float(lost[count]) for count in problem.menu(group)}
    if problem.unit == "channels":
        costs = {name: {count: float(count) for count in menu} for name, menu in losses.items()}
        return choose(losses, costs, problem.budget)
    return trade(losses, problem.prices, problem.budget, problem.tables)
