"""Which segments are worth letting every reader choose for itself: where that is predicted to pay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ..axes.dim import PRODUCT, Dim, find, terms
from ..axes.index import Indices
from ..ir.facts import Groups, Scores
from ..ir.program import Program
from .access import MENU, Pricing
from .copy_costs import PRICES
from .planner import best
from .reindex import ends
from .segments import Slot, Taker

Lists = Mapping[str, Indices]


def agree(
    program: Program,
    keep: Lists,
    scores: Scores,
    steps: Mapping[str, int],
    target: str = "",
    budget: Callable[[Mapping[Dim, float]], float] = lambda lengths: 0.0,
) -> dict[str, Indices]:
    """``keep`` with the readers of some segments made to agree.

    Per segment: of every block the fewest channels (in multiples of ``steps``), the best by the sum of all
    readers' scores, that keep as much of that sum as the readers keep with lists of their own. That is taken
    where it is predicted to be no slower on ``target`` (computing, copies and concatenations; the host's own by
    default) and costs no more of the budget, if there is one beside time.
    """
    groups = program.fact(Groups)
    prices = PRICES[target or program.host.native_target]
    now = Pricing.of(program, keep, prices)
    chosen, least = dict(keep), _us(now)
    for part in now.segments.parts():
        tied = _tied(part, keep, scores, groups, steps)
        if tied is None:
            continue
        both = {**chosen, **tied}
        pricing = Pricing.of(program, both, prices)
        if budget(pricing.lengths(both)) <= budget(pricing.lengths(chosen)):
            us = _us(pricing)
            if us <= least:
                chosen, least = both, us
    return chosen


def _us(pricing: Pricing) -> float:
    """The predicted microseconds of what depends on the lists."""
    layout, _, _ = best(pricing, MENU)
    return pricing.compute_us(layout.keep) + layout.us(pricing.segments.takers, list(layout.concat_us))


def _tied(
    part: Sequence[Taker], keep: Lists, scores: Scores, groups: Groups, steps: Mapping[str, int]
) -> dict[str, Indices] | None:
    """One list of every block for all its readers; None where writers choose as well."""
    by_name = {group.name: group for group in groups}
    total: dict[str, list[Indices]] = {}
    wanted: dict[str, float] = {}
    for taker in part:
        if taker.fills or taker.own is None:
            return None
        own = scores[by_name[taker.own.name]]
        for slot, start, size in _places(taker):
            if slot.block is not None:
                mine = own[start : start + size]
                total.setdefault(slot.block, []).append(mine)
                wanted[slot.block] = wanted.get(slot.block, 0.0) + float(mine[sorted(slot.takes)].sum())
    lists = {}
    for block, found in total.items():
        every = np.sum(found, 0)
        order = np.argsort(-every, kind="stable")
        count = 1 + int(np.searchsorted(np.cumsum(every[order]), wanted[block] * (1 - 1e-9)))
        lists[block] = np.sort(order[: count + -count % steps.get(block, 1)])
    tied = dict(lists)
    for taker in part:
        assert taker.own is not None
        places = [start + _list(slot, lists) for slot, start, _ in _places(taker)]
        tied[taker.own.name] = np.concatenate(places).astype(np.intp)
    return tied


def _list(slot: Slot, lists: Lists) -> Indices:
    return lists[slot.block] if slot.block is not None else np.array(sorted(slot.takes), dtype=np.intp)


def _places(taker: Taker) -> Iterator[tuple[Slot, int, int]]:
    """Each slot, where it begins in the taker's own channels, and how many these are."""
    before = find(ends(taker.op)[0])
    before = find(before.kids[0]) if before.kind == PRODUCT else before
    start = 0
    for slot, one in zip(taker.slots, terms(before), strict=True):
        yield slot, start, int(one.size)
        start += int(one.size)
