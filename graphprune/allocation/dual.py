"""Choices whose price is a sum of tables over few groups: the best there is, or close to it, by Lagrangian duality.

With a weight on the price, the least of loss + weight * price over all choices is exact by eliminating one group
after the other (Bertele and Brioschi, Nonserial Dynamic Programming, 1972): the work grows with how many groups meet
in one table on the way, which is two or three in chains and residual networks. The weight that bounds the loss best
is found as in Everett (1963) and Fisher (1981). What the budget leaves open is then searched group by group: of choices
that leave the same to what is chosen later those that another one beats in price and loss are left out, and those whose
bound is no better than what is known. The best one is found as long as no others have to be left out for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Table = tuple[tuple[str, ...], Array]
"""Groups, and a number for every choice of theirs: an axis a group."""
Tables = Callable[[Mapping[str, Array]], Sequence[Table] | None]
"""``tables(options)``: what everything costs with each group at each of its options, as a sum of tables; None where one
would have more than ``LARGEST`` entries."""
Menus = Mapping[str, tuple[Array, Array]]
"""Per group its counts, rising, and what is lost at each."""

OPTIONS = 24
"""Of longer menus about so many counts are looked at, ``ROUNDS`` times."""
ROUNDS = 4
LARGEST = 200_000
"""Entries of a table on the way; where groups are so entangled that more are needed, this is not the way."""
SEARCHED = 6_000_000
"""Entries of what is searched for all groups together, at most."""
WEIGHTS = 40


def nearest(menus: Menus, tables: Tables, budget: float, start: Mapping[str, int]) -> dict[str, int] | None:
    """The counts with the least loss within the budget: exactly, where menus are short and the search leaves nothing
    out. Of long menus those counts are looked at that are near to ``start``, which is within the budget, and again
    around what is better. None where groups are too entangled. The same input gives the same counts."""
    best = {name: int(np.searchsorted(counts, start[name])) for name, (counts, _) in menus.items()}
    lost = sum(float(menus[name][1][k]) for name, k in best.items())
    whole = all(len(counts) <= OPTIONS for counts, _ in menus.values())
    for _ in range(1 if whole else ROUNDS):
        at = {name: _around(k, len(menus[name][0])) for name, k in best.items()}
        problem = _Problem.of({n: (menus[n][0][k], menus[n][1][k]) for n, k in at.items()}, tables, budget)
        if problem is None:
            return None
        known = {name: int(np.searchsorted(at[name], best[name])) for name in at}
        found = {name: int(at[name][k]) for name, k in problem.solve(known).items()}
        loss = sum(float(menus[name][1][k]) for name, k in found.items())
        if not loss < lost * (1 - 1e-9):
            break
        best, lost = found, loss
    return {name: int(menus[name][0][k]) for name, k in best.items()}


def _around(place: int, size: int) -> Array:
    """All places of a short menu; else one and others, the further away the fewer."""
    if size <= OPTIONS:
        return np.arange(size)
    steps = np.unique(np.geomspace(1, size, OPTIONS // 2).round().astype(np.intp))
    at = np.concatenate([place - steps, [place], place + steps, [0, size - 1]])
    return np.unique(at[(at >= 0) & (at < size)])


@dataclass(frozen=True)
class _Bucket:
    """What is to be decided of one group: ``table`` has an axis for each of ``others``, decided before it, and the
    last for the group itself."""

    group: int
    others: tuple[int, ...]
    table: Array


@dataclass(frozen=True)
class _Problem:
    """Groups by number, in the order in which they are eliminated."""

    names: tuple[str, ...]
    losses: tuple[Array, ...]
    prices: tuple[tuple[tuple[int, ...], Array], ...]
    constant: float
    budget: float

    @classmethod
    def of(cls, menus: Menus, tables: Tables, budget: float) -> _Problem | None:
        made = tables({name: counts for name, (counts, _) in menus.items()})
        given = list(made or ())
        order = _order({name: len(counts) for name, (counts, _) in menus.items()}, [names for names, _ in given])
        if made is None or order is None:
            return None
        number = {name: k for k, name in enumerate(order)}
        prices, constant = list[tuple[tuple[int, ...], Array]](), 0.0
        for names, table in given:
            if not names:
                constant += float(table)
                continue
            axes = sorted(range(len(names)), key=lambda k: number[names[k]], reverse=True)
            prices.append((tuple(number[names[k]] for k in axes), np.transpose(table, axes)))
        return cls(order, tuple(menus[name][1] for name in order), tuple(prices), constant, budget)

    def solve(self, known: Mapping[str, int]) -> dict[str, int]:
        """Per group the number of its option, no worse than ``known`` ones that are within the budget."""
        weight, best = self._dual()
        start = np.array([known[name] for name in self.names])
        best = best if self.loss(best) < self.loss(start) else start
        return {name: int(k) for name, k in zip(self.names, self._search(weight, best), strict=True)}

    def _dual(self) -> tuple[float, Array]:
        """The weight that bounds best, and the best choice within the budget that was met on the way."""
        above = _least(self._eliminated(0.0))
        if self.price(above) <= self.budget:
            return 0.0, above
        below = _least(self._eliminated(1.0, losses=False))
        weight, best = 0.0, below
        for _ in range(WEIGHTS):
            gap = self.price(above) - self.price(below)
            weight = (self.loss(below) - self.loss(above)) / gap
            made = _least(self._eliminated(weight))
            value = self.loss(made) + weight * self.price(made)
            if value >= (self.loss(below) + weight * self.price(below)) * (1 - 1e-12):
                break  # nothing lies below the line between the two
            if self.price(made) <= self.budget:
                below = made
                best = made if self.loss(made) < self.loss(best) else best
            else:
                above = made
        return weight, best

    def _search(self, weight: float, best: Array) -> Array:
        """The best choice among those whose weighted sums are least; group by group, the last one eliminated first."""
        lost = self.loss(best)
        weighed, cheapest = self._eliminated(weight), self._eliminated(1.0, losses=False)
        chosen = np.zeros((1, len(self.names)), np.intp)
        bound = np.array([_total(weighed) - weight * (self.budget - self.constant)])
        price = np.array([_total(cheapest) + self.constant])
        most = max(1, SEARCHED // (len(self.names) * max(map(len, self.losses))))
        for one, other in zip(reversed(weighed), reversed(cheapest), strict=True):
            bounds, prices = (self._next(b, own, chosen) for b, own in ((one, bound), (other, price)))
            fits = (bounds < lost - 1e-12 * abs(lost)) & (prices <= self.budget)
            state, option = np.nonzero(fits)
            chosen = chosen[state]
            chosen[:, one.group] = option
            bound, price = bounds[state, option], prices[state, option]
            read = sorted({k for bucket in weighed[: one.group] for k in bucket.others if k >= one.group})
            kept = _undominated(chosen[:, read], price, bound - weight * price)
            if len(kept) > most:
                kept = np.sort(kept[np.argsort(bound[kept], kind="stable")[:most]])
            chosen, bound, price = chosen[kept], bound[kept], price[kept]
        losses = np.sum([own[chosen[:, k]] for k, own in enumerate(self.losses)], axis=0)
        if len(chosen) and losses.min() < lost:
            best = chosen[int(np.argmin(losses))]
        return best

    @staticmethod
    def _next(bucket: _Bucket, bound: Array, chosen: Array) -> Array:
        rows = bucket.table[tuple(chosen[:, k] for k in bucket.others)] if bucket.others else bucket.table[None]
        least: Array = bound[:, None] + rows - rows.min(1, keepdims=True)
        return least

    def loss(self, chosen: Array) -> float:
        return float(sum(own[k] for own, k in zip(self.losses, chosen, strict=True)))

    def price(self, chosen: Array) -> float:
        return self.constant + float(sum(table[tuple(chosen[k] for k in groups)] for groups, table in self.prices))

    def _eliminated(self, weight: float, losses: bool = True) -> list[_Bucket]:
        """The groups one after the other, with the least sums of what was eliminated before them."""
        left: list[tuple[tuple[int, ...], Array]] = []
        left += [((k,), own if losses else 0.0 * own) for k, own in enumerate(self.losses)]
        left += [(groups, weight * table) for groups, table in self.prices]
        buckets = []
        for group in range(len(self.names)):
            mine = [(groups, table) for groups, table in left if group in groups]
            left = [(groups, table) for groups, table in left if group not in groups]
            scope = tuple(sorted({k for groups, _ in mine for k in groups}, reverse=True))  # `group` is the last
            whole: Array = np.zeros(1)
            for groups, table in mine:
                at = iter(table.shape)
                whole = whole + table.reshape([next(at) if k in groups else 1 for k in scope])
            buckets.append(_Bucket(group, scope[:-1], whole))
            left.append((scope[:-1], whole.min(-1)))
        return buckets


def _least(buckets: Sequence[_Bucket]) -> Array:
    """The choice with the least sum."""
    chosen = np.zeros(len(buckets), np.intp)
    for bucket in reversed(buckets):
        chosen[bucket.group] = np.argmin(bucket.table[tuple(chosen[k] for k in bucket.others)])
    return chosen


def _undominated(read: Array, price: Array, loss: Array) -> Array:
    """Of choices that leave the same to what is chosen later (their rows of ``read`` are equal) those that no other
    one beats in both price and loss, as numbers in rising order (Nemhauser and Ullmann 1969, within every row)."""
    if not len(price):
        return np.zeros(0, np.intp)
    row = np.unique(read, axis=0, return_inverse=True)[1].ravel() if read.shape[1] else np.zeros(len(price), np.intp)
    order = np.lexsort((loss, price, row))
    rank = np.empty(len(loss), np.intp)
    rank[np.argsort(loss, kind="stable")] = np.arange(len(loss))
    falling = rank[order] - row[order] * len(loss)  # what is of a later row is below all of the rows before
    best = np.minimum.accumulate(falling)
    return np.asarray(np.sort(order[np.r_[True, falling[1:] < best[:-1]]]))


def _total(buckets: Sequence[_Bucket]) -> float:
    """The least sum: groups that no table joins to later ones each have a part in it."""
    return float(sum(bucket.table.min() for bucket in buckets if not bucket.others))


def _order(sizes: Mapping[str, int], scopes: Sequence[Sequence[str]]) -> tuple[str, ...] | None:
    """An order of elimination: next the group that makes the smallest table. None where one is above ``LARGEST``."""
    near: dict[str, set[str]] = {name: set() for name in sizes}
    for names in scopes:
        for name in names:
            near[name].update(other for other in names if other != name)
    place = {name: k for k, name in enumerate(sizes)}
    order: list[str] = []
    while near:
        made = {name: sizes[name] * prod(sizes[other] for other in others) for name, others in near.items()}
        name = min(near, key=lambda name: (made[name], place[name]))
        if made[name] > LARGEST:
            return None
        others = near.pop(name)
        for other in others:
            near[other] |= others - {other}
            near[other].discard(name)
        order.append(name)
    return tuple(order)
