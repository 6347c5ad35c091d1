"""Which segments are worth letting every reader choose for itself: where that is predicted to pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .costs import Cost, macs
from .dims import Indices
from .facts import Groups, Scores
from .ir import Program
from .menu import MENU, Pricing
from .planning import best
from .prices import PRICES
from .segments import Segments, Taker


def agree(program: Program, keep: Mapping[str, Indices], scores: Scores, budget: Cost) -> dict[str, Indices]:
    """``keep`` with the readers of some segments made to agree.

    Per segment of one block: the fewest channels, the best by the sum of all readers' scores, that keep as
    much of that sum as the readers keep with lists of their own. That is taken where it is predicted to be
    no slower (multiply-accumulates and copies on the host's own target) and costs no more of the budget.
    """
    groups = program.fact(Groups)
    segments = Segments(program, groups, keep)
    pricing = Pricing(segments, PRICES[program.host.kind], macs(program.graph, program.host))
    layout, _, _ = best(pricing, MENU)
    chosen = dict(keep)
    for part in segments.parts():
        tied = _tied(part, keep, scores, groups)
        if tied is None:
            continue
        both = {**chosen, **tied}
        saved = pricing.compute_us(chosen) - pricing.compute_us(both) + layout.us(part, ())
        if saved >= 0 and budget(pricing.lengths(both)) <= budget(pricing.lengths(chosen)):
            chosen = both
    return chosen


def _tied(
    part: Sequence[Taker], keep: Mapping[str, Indices], scores: Scores, groups: Groups
) -> dict[str, Indices] | None:
    """One list for all readers of a block; None for segments of another kind."""
    blocks = {slot.block for taker in part for slot in taker.slots}
    if len(blocks) != 1 or None in blocks or any(taker.fills or len(taker.slots) != 1 for taker in part):
        return None
    by_name = {group.name: group for group in groups}
    (block,) = blocks
    readers = [taker.own.name for taker in part if taker.own is not None]
    if block is None or len(readers) < len(part) or any(by_name[r].size != by_name[block].size for r in readers):
        return None
    total = np.sum([scores[by_name[reader]] for reader in readers], 0)
    wanted = sum(float(scores[by_name[reader]][keep[reader]].sum()) for reader in readers)
    order = np.argsort(-total, kind="stable")
    count = 1 + int(np.searchsorted(np.cumsum(total[order]), wanted * (1 - 1e-9)))
    return dict.fromkeys([block, *readers], np.sort(order[:count]))
