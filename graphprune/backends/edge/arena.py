"""Where tensors that live at different times lie in one block of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Life:
    """A tensor of ``size`` bytes, from the call that first touches it to the one that last does, both included."""

    size: int
    first: int
    last: int

    def meets(self, other: Life) -> bool:
        return self.first <= other.last and other.first <= self.last


def offsets(lives: Sequence[Life]) -> list[int]:
    """The offset in bytes of each. One after the other is placed in the smallest hole that it fits into among those
    that are placed and alive with it: the largest first (greedy by size: Pisarchyk and Lee, Efficient Memory
    Management for Deep Neural Net Inference, 2020, section 5), the longest alive first, and in order of their first
    call; what takes the least is taken."""
    orders: list[Callable[[int], tuple[int, ...]]] = [
        lambda k: (-lives[k].size, lives[k].first, k),
        lambda k: (lives[k].first - lives[k].last, -lives[k].size, k),
        lambda k: (lives[k].first, -lives[k].size, k),
    ]
    placed = [_placed(lives, sorted(range(len(lives)), key=order)) for order in orders]
    return min(placed, key=lambda at: extent(lives, at))


def _placed(lives: Sequence[Life], order: Sequence[int]) -> list[int]:
    found: dict[int, int] = {}
    for number in order:
        life = lives[number]
        taken = sorted((found[k], found[k] + lives[k].size) for k in found if lives[k].meets(life))
        best, room, end = None, 0, 0
        for start, stop in taken:
            if start - end >= life.size and (best is None or start - end < room):
                best, room = end, start - end
            end = max(end, stop)
        found[number] = end if best is None else best
    return [found[k] for k in range(len(lives))]


def extent(lives: Sequence[Life], at: Sequence[int]) -> int:
    """The bytes of the block."""
    return max((start + life.size for life, start in zip(lives, at, strict=True)), default=0)


def peak(lives: Sequence[Life]) -> int:
    """The most bytes that are alive at once, which no block can do without."""
    moments = {life.first for life in lives}
    return max((sum(one.size for one in lives if one.first <= at <= one.last) for at in moments), default=0)
