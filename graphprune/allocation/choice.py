"""Multiple-choice knapsack: exactly one count per group, the least loss within a budget.

Pure data in, counts out, so that any cost will do: MACs, bytes, or a measured latency table, which is
a staircase and not a per-channel price. Counts that may not be chosen (off the grain, below a floor)
are simply not on the menu.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BudgetError
from .dual import Tables, nearest

Array = NDArray[Any]
Counts = dict[str, int]
Menu = Mapping[int, float]
"""A number for every count that a group may keep."""
Prices = Callable[[Mapping[str, int], str, Array], Array]
"""``prices(counts, group, options)``: what everything costs with ``group`` at each of ``options`` and the
other groups at ``counts``."""


def choose(losses: Mapping[str, Menu], costs: Mapping[str, Menu], budget: float, states: int = 100_000) -> Counts:
    """The count of each group with the least total loss among those whose costs add up to ``budget`` at
    most. For costs that add over groups; ``trade`` is for those that do not.

    Exact (Nemhauser and Ullmann 1969: grow the list of undominated (cost, loss) pairs group by group),
    as long as the list stays within ``states``; beyond that, of neighbours in cost only the better is
    carried on. The budget holds always. Raises BudgetError where not even the cheapest counts fit.
    """
    total, lost = np.zeros(1), np.zeros(1)
    trail: list[tuple[str, list[int], Array, Array]] = []
    least = {name: min(costs[name].values()) for name in losses}
    rest = sum(least.values())
    _check(rest, budget)
    for name, menu in losses.items():
        counts = undominated(menu, costs[name])
        rest -= least[name]
        cost = total[:, None] + np.array([costs[name][k] for k in counts])
        loss = lost[:, None] + np.array([menu[k] for k in counts])
        best = _frontier(cost.ravel(), loss.ravel(), budget - rest, states)
        total, lost = cost.ravel()[best], loss.ravel()[best]
        trail.append((name, counts, best // len(counts), best % len(counts)))
    at, chosen = int(np.argmin(lost)), {}
    for name, counts, parent, option in reversed(trail):
        chosen[name] = counts[option[at]]
        at = int(parent[at])
    return {name: chosen[name] for name in losses}


def undominated(losses: Menu, costs: Menu) -> list[int]:
    """The counts that no other count beats in both loss and cost, by rising cost."""
    kept: list[int] = []
    for count in sorted(losses, key=lambda k: (costs[k], losses[k])):
        if not kept or losses[count] < losses[kept[-1]]:
            kept.append(count)
    return kept


def trade(
    losses: Mapping[str, Menu], prices: Prices, budget: float, tables: Tables | None = None, rounds: int = 40
) -> Counts:
    """As ``choose`` where the cost of one group depends on the others (a convolution's MACs are the
    product of two widths, its latency a table over both).

    Where the cost is a sum of ``tables`` over few groups: see dual.nearest. Else, or where groups are too entangled
    for that, minimises loss + lambda * cost, one group at a time until nothing moves, and searches the lambda that
    meets the budget (Everett 1963); then spends what is left on the step that saves most per cost, and
    exchanges pairs of counts while that saves anything. Up to ``EXACT`` choices in all, branch and bound goes on
    to the best there is; beyond, what was traded may be a little above it. The budget holds always.
    Raises BudgetError where the cheapest counts do not fit.
    """
    menus = {name: (np.array(sorted(menu)), np.array([menu[k] for k in sorted(menu)])) for name, menu in losses.items()}
    fewest = {name: int(counts[0]) for name, (counts, _) in menus.items()}
    best, low, high = fewest, 0.0, 0.0
    if not menus:
        return {}
    _check(price_of(prices, fewest), budget)
    counts = {name: int(own[-1]) for name, (own, _) in menus.items()}
    if price_of(prices, counts) > budget:
        spread = sum(float(np.ptp(loss)) for _, loss in menus.values())
        guess = max(spread, 1e-300) / max(price_of(prices, counts) - price_of(prices, fewest), 1e-300)
        for _ in range(rounds):
            counts = _settle(menus, prices, guess, counts)
            fits = price_of(prices, counts) <= budget
            if fits and _loss(losses, counts) <= _loss(losses, best):
                best = counts
            low, high = (low, guess) if fits else (guess, high)
            guess = (low * high) ** 0.5 if low and high else guess * (0.25 if fits else 4)
        counts = best
    counts = _exchanged(menus, prices, budget, _spend(menus, prices, budget, counts))
    found = nearest(menus, tables, budget, counts) if tables is not None else None
    if found is not None and price_of(prices, found) <= budget:
        return _spend(menus, prices, budget, found)
    if prod(len(options) for options, _ in menus.values()) > EXACT:
        return counts
    return _branch(menus, prices, budget, counts, _loss(losses, counts))


EXACT = 100_000
"""So many choices are searched to the last one."""
EXCHANGES = 4_000
"""Prices asked for in exchanging pairs, at most: large networks have none to spare."""


def _branch(
    menus: Mapping[str, tuple[Array, Array]], prices: Prices, budget: float, best: Counts, lost: float
) -> Counts:
    """The best choice, by depth first search from a known one and what it loses: a branch whose losses so far, with
    the least that the rest can lose, are no better is left out. No price is taken to rise with a count."""
    order = sorted(menus, key=lambda name: -float(np.ptp(menus[name][1])))
    least = [0.0]
    for name in reversed(order):
        least.insert(0, least[0] + float(menus[name][1].min()))
    stack: list[tuple[int, float, Counts]] = [(0, 0.0, best)]
    while stack:
        depth, spent, counts = stack.pop()
        if spent + least[depth] >= lost * (1 - 1e-12):
            continue
        name = order[depth]
        options, loss = menus[name]
        if depth < len(order) - 1:
            falling = np.argsort(-loss, kind="stable")  # the least loss is looked at first
            stack += [(depth + 1, spent + float(loss[k]), {**counts, name: int(options[k])}) for k in falling]
            continue
        fits = np.flatnonzero(prices(counts, name, options) <= budget)
        if len(fits) and spent + loss[fits].min() < lost:
            k = fits[np.argmin(loss[fits])]
            best, lost = {**counts, name: int(options[k])}, spent + float(loss[k])
    return {name: best[name] for name in menus}


def _exchanged(menus: Mapping[str, tuple[Array, Array]], prices: Prices, budget: float, counts: Counts) -> Counts:
    """The counts after every exchange of a pair that loses less, while prices may be asked for."""
    left = EXCHANGES
    while True:
        better, left = _exchange(menus, prices, budget, counts, left)
        if better is None:
            return counts
        counts = better


def _exchange(
    menus: Mapping[str, tuple[Array, Array]], prices: Prices, budget: float, counts: Counts, left: int
) -> tuple[Counts | None, int]:
    """Another count for one group, and for a second one the best that fits then, if that loses less; and how
    many of ``left`` prices have not been asked for."""
    have = {name: loss[np.searchsorted(options, counts[name])] for name, (options, loss) in menus.items()}
    for first, (options, loss) in menus.items():
        for k in np.flatnonzero(options != counts[first]):
            other = {**counts, first: int(options[k])}
            for second, (choices, losses) in menus.items():
                now = (have[first] + have[second]) * (1 - 1e-12)
                if second == first or loss[k] + losses.min() >= now:
                    continue
                if left == 0:
                    return None, left
                left -= 1
                fits = np.flatnonzero(prices(other, second, choices) <= budget)
                if len(fits) and loss[k] + losses[fits].min() < now:
                    return {**other, second: int(choices[fits[np.argmin(losses[fits])]])}, left
    return None, left


def _settle(menus: Mapping[str, tuple[Array, Array]], prices: Prices, weight: float, counts: Counts) -> Counts:
    counts = dict(counts)
    for _ in range(20):
        moved = False
        for name, (options, loss) in menus.items():
            best = int(options[np.argmin(loss + weight * prices(counts, name, options))])
            moved |= best != counts[name]
            counts[name] = best
        if not moved:
            break
    return counts


def _spend(menus: Mapping[str, tuple[Array, Array]], prices: Prices, budget: float, counts: Counts) -> Counts:
    """Single steps up the menus, the most loss saved per cost first, while they fit."""
    counts = dict(counts)
    while True:
        steps = list(_steps(menus, prices, budget, counts))
        if not steps:
            return counts
        _, name, count = max(steps, key=lambda step: step[0])
        counts[name] = count


def _steps(
    menus: Mapping[str, tuple[Array, Array]], prices: Prices, budget: float, counts: Counts
) -> Iterator[tuple[float, str, int]]:
    now = price_of(prices, counts)
    for name, (options, loss) in menus.items():
        have = loss[np.searchsorted(options, counts[name])]
        cost = prices(counts, name, options)
        for k in np.flatnonzero((cost <= budget) & (loss < have)):
            yield float((have - loss[k]) / max(cost[k] - now, 1e-12 * max(now, 1e-300))), name, int(options[k])


def price_of(prices: Prices, counts: Counts) -> float:
    """What everything costs."""
    name = next(iter(counts))
    return float(prices(counts, name, np.array([counts[name]]))[0])


def _loss(losses: Mapping[str, Menu], counts: Counts) -> float:
    return sum(losses[name][count] for name, count in counts.items())


def _frontier(cost: Array, loss: Array, budget: float, states: int) -> Array:
    """Indices of the undominated pairs within the budget, by rising cost; at most about ``states``."""
    order = np.lexsort((loss, cost))
    order = order[: int(np.searchsorted(cost[order], budget * (1 + 1e-12), side="right"))]
    falling = loss[order]
    best = np.minimum.accumulate(falling)
    kept = order[np.r_[True, falling[1:] < best[:-1]]]
    if len(kept) <= states:
        return kept
    low, high = cost[kept[0]], cost[kept[-1]]
    slot = ((cost[kept] - low) / (high - low) * states).astype(np.intp)
    return kept[np.r_[slot[1:] != slot[:-1], True]]  # the last of a slot has its least loss


def _check(least: float, budget: float) -> None:
    if least > budget * (1 + 1e-12):
        raise BudgetError(
            f"a budget of {budget:.4g} cannot be met: the least possible is {least:.4g}",
            "lower `floor` or `grain`, raise the budget, or see `graphprune inspect` for what is frozen",
        )
