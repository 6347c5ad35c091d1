"""The order that UPSCALE chooses (Wan et al., ICML 2023, section 4), for comparison with ours.

Its nodes are the readers, its edges join those that share channels. It looks for the induced path that
covers most channels, stores [shared with the one before][own][shared with the one after] along it, and
goes on with the readers that are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

LIMIT = 20000
"""Paths to look at; the published search looks at all of them, of which there may be exponentially many."""


def upscale_order(channels: Sequence[int], sets: Sequence[frozenset[int]]) -> tuple[int, ...]:
    """The order of one block. ``sets``: what each reader takes of it."""
    out: list[int] = []
    rest = sorted({one for one in sets if one}, key=lambda one: (-len(one), sorted(one)))
    whole = [one for one in rest if not any(one < other for other in rest)]  # the others lie inside of these
    inside = [one for one in rest if one not in whole]
    while whole:
        path = _best(whole)
        for k, one in enumerate(path):
            before = path[k - 1] if k else frozenset[int]()
            after = path[k + 1] if k + 1 < len(path) else frozenset[int]()
            for region in (one - before - after, one & after):
                out += _arranged(sorted(region - set(out)), inside)
        whole = [one for one in whole if one not in path]
    return (*out, *(channel for channel in channels if channel not in set(out)))


def _arranged(region: list[int], inside: Sequence[frozenset[int]]) -> list[int]:
    """A region in which the sets that lie inside of it are ordered by themselves."""
    inner = [one for one in inside if one <= set(region)]
    return list(upscale_order(region, inner)) if inner else region


def _best(sets: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    """The induced path with the most channels, each counted once."""
    near = {k: [m for m in range(len(sets)) if m != k and sets[k] & sets[m]] for k in range(len(sets))}
    best: tuple[int, list[int]] = (-1, [])
    for count, path in enumerate(_paths(near)):
        worth = sum(len(sets[k]) for k in path) - sum(len(sets[a] & sets[b]) for a, b in pairwise(path))
        if worth > best[0]:
            best = (worth, path)
        if count >= LIMIT:
            break
    return [sets[k] for k in best[1]]


def _paths(near: Mapping[int, Sequence[int]]) -> Iterator[list[int]]:
    stack = [[k] for k in sorted(near, reverse=True)]
    while stack:
        path = stack.pop()
        yield path
        for k in reversed(near[path[-1]]):
            if k not in path and not any(k in near[earlier] for earlier in path[:-1]):
                stack.append([*path, k])
