"""In which order to store channels, so that what each reader takes is one run of neighbours.

Channels come in *blocks*, each with an order of its own: what one layer, or several that are added up,
make. A reader asks for a run of one block, or, across a concatenation, for the end of one block, the
whole of those between and the beginning of another. The best choice of readers to satisfy is found by
branch and bound: a set of readers that fits together still does with one left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .pq_tree import Tree, reduce, universal

End = Literal["", "first", "last"]

LIMIT = 4000
"""Reductions to spend on one set of readers that share blocks. Ten readers never need more; where more are
needed the answer is the best found, and said to be so."""


@dataclass(frozen=True)
class Row:
    """Some channels of one block are to be neighbours, and with ``end`` they are to be its first or last."""

    block: str
    channels: frozenset[int]
    end: End = ""


@dataclass(frozen=True)
class Reader:
    """All ``rows`` hold, or ``cost`` is due. Without rows nothing is due."""

    name: str
    rows: tuple[Row, ...]
    cost: float


@dataclass(frozen=True)
class Ordering:
    """``order``: the channels of each block. ``served``: the readers whose rows all hold. ``exact``: no
    other order costs less; otherwise the search was cut short."""

    order: Mapping[str, tuple[int, ...]]
    served: frozenset[str]
    exact: bool


def arrange(blocks: Mapping[str, Sequence[int]], readers: Sequence[Reader], limit: int = LIMIT) -> Ordering:
    """The order of every block that costs least. The same input gives the same order.

    Every channel that a row names must be in its block. Channels in which no reader tells a difference
    stay in the order given.
    """
    atoms = {name: _Atoms(channels, _rows(name, readers)) for name, channels in blocks.items()}
    trees = {name: atom.tree() for name, atom in atoms.items()}
    served: set[str] = set()
    exact = True
    for together in _components(readers):
        search = _Search(together, atoms, limit)
        trees |= search.run({row.block: trees[row.block] for reader in together for row in reader.rows})
        served |= search.served
        exact = exact and search.left >= 0
    return Ordering({name: atoms[name].order(tree) for name, tree in trees.items()}, frozenset(served), exact)


def _rows(block: str, readers: Sequence[Reader]) -> list[Row]:
    return [row for reader in readers for row in reader.rows if row.block == block]


def _components(readers: Sequence[Reader]) -> Iterator[list[Reader]]:
    """Readers that share blocks, directly or through others; the costliest first."""
    whose: dict[str, int] = {}
    parts: dict[int, list[Reader]] = {}
    for number, reader in enumerate(readers):
        touched = sorted({whose[row.block] for row in reader.rows if row.block in whose})
        mine = parts.setdefault(touched[0] if touched else number, [])
        for other in touched[1:]:
            mine += parts.pop(other)
        mine.append(reader)
        home = touched[0] if touched else number
        for member in mine if len(touched) > 1 else (reader,):
            whose.update(dict.fromkeys((row.block for row in member.rows), home))
    for part in parts.values():
        yield sorted(part, key=lambda reader: -reader.cost)


class _Atoms:
    """The channels of one block, those that no row tells apart taken together. With an end asked for, two
    leaves more stand for the ends."""

    def __init__(self, channels: Sequence[int], rows: Sequence[Row]) -> None:
        found: dict[tuple[bool, ...], list[int]] = {}
        for channel in channels:
            found.setdefault(tuple(channel in row.channels for row in rows), []).append(channel)
        self.atoms = list(found.values())
        self.ends = any(row.end for row in rows)
        self._where = {channel: k for k, atom in enumerate(self.atoms) for channel in atom}

    def tree(self) -> Tree:
        count = len(self.atoms)
        tree: Tree | None = universal(max(1, count + 2 * self.ends))
        inside = (1 << count) - 1
        for end in range(2 * self.ends):  # all channels and either end: so the ends are at the ends
            assert tree is not None
            tree = reduce(tree, inside | 1 << (count + end))
        assert tree is not None
        return tree

    def mask(self, row: Row) -> int:
        found = 0
        for channel in row.channels:
            found |= 1 << self._where[channel]
        return found | (1 << (len(self.atoms) + (row.end == "last")) if row.end else 0)

    def order(self, tree: Tree) -> tuple[int, ...]:
        leaves = tree.frontier()
        count = len(self.atoms)
        if self.ends and leaves.index(count) > leaves.index(count + 1):
            leaves.reverse()
        return tuple(channel for leaf in leaves if leaf < count for channel in self.atoms[leaf])


class _Search:
    """Branch and bound over which readers to serve: take one if it fits, else, or instead, pay for it."""

    def __init__(self, readers: Sequence[Reader], atoms: Mapping[str, _Atoms], limit: int) -> None:
        self.readers, self.left = readers, limit
        self.masks = [[(row.block, atoms[row.block].mask(row)) for row in reader.rows] for reader in readers]
        self.served: frozenset[str] = frozenset()
        self._best, self._trees = float("inf"), dict[str, Tree]()

    def run(self, trees: Mapping[str, Tree]) -> dict[str, Tree]:
        self._trees = dict(trees)
        self._go(0, dict(trees), 0.0, ())
        return self._trees

    def _go(self, k: int, trees: dict[str, Tree], paid: float, taken: tuple[int, ...]) -> None:
        if paid >= self._best:
            return
        if k == len(self.readers):
            self._best, self._trees = paid, trees
            self.served = frozenset(self.readers[number].name for number in taken)
            return
        if self.left < 0 and self._best < float("inf"):
            return
        self.left -= len(self.masks[k])
        fitted = _fit(trees, self.masks[k])
        if fitted is not None:
            self._go(k + 1, fitted, paid, (*taken, k))
        self._go(k + 1, trees, paid + self.readers[k].cost, taken)


def _fit(trees: Mapping[str, Tree], masks: Sequence[tuple[str, int]]) -> dict[str, Tree] | None:
    out = dict(trees)
    for block, mask in masks:
        reduced = reduce(out[block], mask)
        if reduced is None:
            return None
        out[block] = reduced
    return out
