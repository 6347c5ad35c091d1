"""Allocations by one threshold: uniform (the same share of every group), global, lamp, greedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import floor

import numpy as np

from ..criteria.magnitude import lamp_of
from ..ir.host import Array
from .choice import Counts
from .problem import Allocation


def uniform(problem: Allocation) -> Counts:
    """The same share of every group; of branches, which are kept or not, those with the highest scores."""
    if not problem.groups.channels:
        return one_threshold(problem)

    def counts(ratio: float) -> Counts:
        return {g.name: problem.survivors(g, floor(ratio * g.size + 0.5)) for g in problem.groups}

    ratios = sorted({(k + 0.5) / group.size for group in problem.groups for k in range(group.size)})
    return best_within(problem, lambda k: counts(ratios[k] if k >= 0 else 0.0), len(ratios), scored(problem))


def one_threshold(problem: Allocation) -> Counts:
    """One threshold for the scores of all groups, with a floor under each (Global MP, Gupta et al. 2022)."""
    return _below(problem, scored(problem))


def lamp(problem: Allocation) -> Counts:
    """One threshold for LAMP scores of the scores (see criteria.magnitude.lamp)."""
    return _below(problem, {name: lamp_of(np.square(own)) for name, own in scored(problem).items()})


def greedy(problem: Allocation) -> Counts:
    """One threshold for the score per cost of a channel.

    The knapsack by value over cost: one threshold for the score per cost of a channel at full width
    (Dantzig 1957; Aflalo et al., Knapsack Pruning, 2020)."""
    full = {group.name: group.size for group in problem.groups}
    whole = problem.price(full)
    worth = {}
    for group in problem.groups:
        price = whole - problem.price({**full, group.name: group.size - 1}) if group.size > 1 else whole
        worth[group.name] = scored(problem)[group.name] / max(price, 1e-12 * whole)
    return _below(problem, worth)


def scored(problem: Allocation) -> dict[str, Array]:
    return {group.name: problem.scores[group] for group in problem.groups}


def _below(problem: Allocation, worth: Mapping[str, Array]) -> Counts:
    levels = np.sort(np.concatenate(list(worth.values())))[::-1]
    order = {name: np.sort(own) for name, own in worth.items()}

    def counts(k: int) -> Counts:
        cut = levels[k] if k >= 0 else np.inf
        wanted = {name: len(own) - int(np.searchsorted(own, cut)) for name, own in order.items()}
        return {g.name: problem.survivors(g, wanted[g.name]) for g in problem.groups}

    return best_within(problem, counts, len(levels), worth)


def best_within(problem: Allocation, counts: Callable[[int], Counts], steps: int, worth: Mapping[str, Array]) -> Counts:
    """The most generous of a growing sequence of choices that is within the budget (bisection), and
    then as much of the next one as still fits, the best channels first."""
    least = problem.price(counts(-1))
    if least > problem.budget:
        raise problem.cannot(least)
    low, high = -1, steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if problem.price(counts(middle)) <= problem.budget else (low, middle)
    chosen, more = counts(low), counts(min(high, steps - 1))
    now = problem.price(chosen)
    growing = [group.name for group in problem.groups if more[group.name] > chosen[group.name]]
    value = {name: np.sort(worth[name])[::-1][chosen[name] : more[name]].mean() for name in growing}
    for name in sorted(growing, key=lambda name: -value[name]):
        before, after = problem.own_prices(chosen, name, np.array([chosen[name], more[name]]))
        if now + (after - before) <= problem.budget:
            chosen[name], now = more[name], now + float(after - before)
    return chosen
