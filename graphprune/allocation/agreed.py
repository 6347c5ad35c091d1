"""A choice among groups of several kinds, by what it loses as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import BudgetError
from ..ir.facts import Keep, Scores
from .choice import Counts, Menu
from .measured import Measured, kinds
from .problem import Allocation
from .problem import best as best_of
from .repaired import Gone

ROUNDS = 4
"""Of choices that are measured as a whole, after the first."""
AGREED = 0.05
"""How far what was measured may be from what was predicted, as a share of it."""
NEAR = 4.0
"""Choices are made and fitted whose loss, roughly measured, is within this factor of the least."""
TOGETHER = "together"
BESIDE = 24
"""Groups of which it is measured, in a round, what they add beside the others."""
MOST = 4.0
"""A group's distortions are brought to what they are beside those of the others by this factor at most, each time."""
Choose = Callable[[Mapping[str, Menu]], Counts]


@dataclass(frozen=True)
class Settled:
    """What groups lose beside each other at the choice that was taken: a next one, within nearly the same budget, goes
    by that and measures nothing again. Groups of other kinds than the one taken have no count but all. ``told``: what
    was measured, for a remark."""

    losses: Mapping[str, Menu]
    told: str


def agreed(problem: Allocation, menus: Mapping[str, Menu], choose: Choose, measured: Measured) -> Counts:
    """The best choice by what it loses as a whole. Begun with the best by what groups lose alone, of all groups and of
    each kind by itself; then every group's distortions are multiplied by what the group adds beside the others at the
    best choice so far, and it is chosen again, until what was predicted is measured, nothing gets better, or for ROUNDS
    [derived]. What loses least of these, each layer repaired by itself, is made and fitted as a whole; of that the best
    is taken, so that it is no worse than any kind alone by what is measured. ``problem.remarks`` says what that was,
    ``problem.settled`` what it was chosen by."""
    known = dict[tuple[int, ...], float]()

    def key(counts: Counts) -> tuple[int, ...]:
        return tuple(counts[name] for name in menus)

    def lost(counts: Counts) -> float:
        if key(counts) not in known:
            known[key(counts)] = measured.lost(_gone(problem, counts))
        return known[key(counts)]

    of_kind = kinds(problem.program, problem.groups)
    found, by, cannot = dict[str, Counts](), dict[str, Mapping[str, Menu]](), list[str]()
    for label, kind in {TOGETHER: set(menus), **{f"{name} alone": own for name, own in of_kind.items()}}.items():
        own = {name: menu if name in kind else {max(menu): menu[max(menu)]} for name, menu in menus.items()}
        try:
            found[label], by[label] = choose(own), own
        except BudgetError:
            cannot.append(label)
    best, now = min(found.values(), key=lost), menus
    for _ in range(ROUNDS):
        now = _beside(now, best, lost)
        measured.repaired.forget()
        counts = choose(now)
        if lost(counts) >= lost(best):
            break
        best = found[TOGETHER] = counts
        by[TOGETHER] = now
        if abs(lost(best) - _sum(now, best)) <= AGREED * lost(best):
            break
    measured.repaired.forget()
    last = {label: counts for label, counts in found.items() if lost(counts) <= NEAR * lost(best)}
    made = {label: measured.made(problem.program, _keep(problem, counts)) for label, counts in last.items()}
    taken = min(made, key=lambda label: made[label].lost)
    told = [
        f"{made[label].lost:.3g} {label}" if label in made else f"about {lost(found[label]):.2g} {label}"
        for label in found
    ]
    told += [f"{label} cannot come to it" for label in cannot]
    said = f"`allocate=rd`: on {measured.told} the outputs lose, of their variance: {', '.join(told)}; taken: {taken}"
    problem.remarks.append(f"{said}, where {made[taken].opened}")
    problem.settled.append(Settled(by[taken], f"{said}, at the first of several choices"))
    return last[taken]


def _keep(problem: Allocation, counts: Counts) -> Keep:
    everyone, scores = problem.everyone(counts), problem.program.fact(Scores)
    keep = {group.name: best_of(scores[group], everyone[group.name]) for group in problem.each}
    return Keep(keep, whole=problem.whole_layers(counts))


def _beside(menus: Mapping[str, Menu], counts: Counts, lost: Callable[[Counts], float]) -> dict[str, Menu]:
    """The distortions of groups, each as it is beside the others at ``counts``; of those that are whole or lose little
    alone, and of what a branch takes along, as those of the others on the average."""
    factors, whole = dict[str, float](), lost(counts)
    for name in sorted(menus, key=lambda name: -menus[name][counts[name]])[:BESIDE]:
        menu, alone = menus[name], menus[name][counts[name]]
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
