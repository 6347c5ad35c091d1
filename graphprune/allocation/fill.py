"""What a choice leaves of a budget is spent: channels are given back while they fit."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from heapq import heapify, heappop, heappush

import numpy as np

from .choice import Counts, Menu, Prices, price_of

SLACK = 1e-12
"""Of a budget, relative: what its own arithmetic is uncertain by (0.29 * 100 comes to less than 29)."""
NOTHING = 1e-12
"""Of the whole cost: what a step that costs nothing is taken to cost."""


def fill(
    losses: Mapping[str, Menu], prices: Prices, budget: float, counts: Mapping[str, int], own: Prices | None = None
) -> Counts:
    """``counts`` with steps up the menus taken, one group at a time, until one more step of any group would exceed
    the budget; what loses less per cost comes first. A count need not be on the menu, but has a loss.

    Costs do not add over groups, so what a step costs is asked anew when its turn comes; where that is more than it
    was, the others are looked at first (lazy greedy, Minoux 1978). ``counts`` within the budget stay within it.
    ``own``: prices less what the other groups cost whatever the count, where those are told sooner.
    """
    filled = dict(counts)
    while more := _filled(losses, price_of(prices, filled), own or prices, budget * (1 + SLACK), filled):
        filled |= more  # a step that did not fit may do so where a cost fell as another count rose
    return filled


def _filled(losses: Mapping[str, Menu], now: float, own: Prices, budget: float, start: Counts) -> Counts:
    """The counts that rose, every step that does not fit being left out for good."""
    menus = {name: sorted(menu) for name, menu in losses.items()}
    counts, risen = dict(start), Counts()

    def step(name: str) -> tuple[float, int, float] | None:
        """The next step: minus what it saves per cost, the count and the price of everything then."""
        menu, at = menus[name], bisect_right(menus[name], counts[name])
        if at == len(menu):
            return None
        before, after = own(counts, name, np.array([counts[name], menu[at]]))
        saved = losses[name][counts[name]] - losses[name][menu[at]]
        return -saved / max(after - before, NOTHING * budget), menu[at], float(now + (after - before))

    waiting = [(found[0], name) for name in counts if (found := step(name))]
    heapify(waiting)
    while waiting:
        _, name = heappop(waiting)
        found = step(name)
        if found is None or found[2] > budget:
            continue
        if waiting and found[0] > waiting[0][0]:
            heappush(waiting, (found[0], name))
            continue
        counts[name], now = found[1], found[2]
        risen[name] = counts[name]
        if after := step(name):
            heappush(waiting, (after[0], name))
    return risen
