"""A choice among groups of several kinds, by what it loses as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..errors import BudgetError
from ..ir.facts import Scores
from .choice import Counts, Menu
from .measured import Measured, kinds
from .problem import Allocation
from .repaired import Gone

ROUNDS = 4
"""Of choices that are measured as a whole, after the first."""
AGREED = 0.05
"""How far what was measured may be from what was predicted, as a share of it."""
MOST = 4.0
"""A group's distortions are brought to what they are beside those of the others by this factor at most, each time."""
Choose = Callable[[Mapping[str, Menu]], Counts]


def agreed(problem: Allocation, menus: Mapping[str, Menu], choose: Choose, measured: Measured) -> Counts:
    """The best choice by what it loses as a whole, repaired. Begun with the best by what groups lose alone, of all
    groups and of each kind by itself; then every group's distortions are multiplied by what the group adds beside the
    others at the best choice so far, and it is chosen again, until what was predicted is measured, nothing gets better,
    or for ROUNDS [derived]."""
    known = dict[tuple[int, ...], float]()

    def lost(counts: Counts) -> float:
        key = tuple(counts[name] for name in menus)
        if key not in known:
            known[key] = measured.lost(_gone(problem, counts))
        return known[key]

    found = list[Counts]()
    for kind in [set(menus), *kinds(problem.program, problem.groups)]:
        own = {name: menu if name in kind else {max(menu): menu[max(menu)]} for name, menu in menus.items()}
        try:
            found.append(choose(own))
        except BudgetError:  # this kind alone does not come to it
            continue
    best, now = min(found, key=lost), menus
    for _ in range(ROUNDS):
        now = _beside(now, best, lost)
        measured.repaired.forget()
        counts = choose(now)
        if lost(counts) >= lost(best):
            break
        best = counts
        if abs(lost(best) - _sum(now, best)) <= AGREED * lost(best):
            break
    return best


def _beside(menus: Mapping[str, Menu], counts: Counts, lost: Callable[[Counts], float]) -> dict[str, Menu]:
    """The distortions of groups, each as it is beside the others at ``counts``; of those that are whole, and of what a
    branch takes along, as those of the others on the average."""
    factors, whole = dict[str, float](), lost(counts)
    for name, menu in menus.items():
        alone = menu[counts[name]]
        if alone > 0 and (added := whole - lost({**counts, name: max(menu)})) > 0:
            factors[name] = float(np.clip(added / alone, 1 / MOST, MOST))
    alone = sum(menus[name][counts[name]] for name in factors)
    mean = sum(factor * menus[name][counts[name]] for name, factor in factors.items()) / (alone or 1)
    return {
        name: {count: loss * factors.get(name, mean or 1) for count, loss in menu.items()}
        for name, menu in menus.items()
    }


def _gone(problem: Allocation, counts: Counts) -> Gone:
    """The channels of least score, as many of every group as do not stay."""
    everyone, scores = problem.everyone(counts), problem.program.fact(Scores)
    orders = {g.name: np.argsort(scores[g], kind="stable")[: g.size - everyone[g.name]] for g in problem.each}
    return {name: gone for name, gone in orders.items() if len(gone)}


def _sum(menus: Mapping[str, Menu], counts: Counts) -> float:
    return sum(menus[name][count] for name, count in counts.items())
