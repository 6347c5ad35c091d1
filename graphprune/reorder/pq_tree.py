"""PQ-trees: every order of a set in which given subsets are runs of neighbours.

The children of a P-node may stand in any order, those of a Q-node in this one or its reverse (Booth and
Lueker, 1976). A tree never changes: ``reduce`` returns the tree of those orders that also satisfy one
subset more, so that a search can go back. One reduction walks the whole tree; sets are bit masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAF, P, Q = "leaf", "P", "Q"


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A leaf, a P-node or a Q-node. ``mask``: its leaves, one bit each."""

    kind: str
    kids: tuple[Tree, ...]
    mask: int

    def frontier(self) -> list[int]:
        """The leaves from left to right: one of the orders that the tree stands for."""
        if self.kind == LEAF:
            return [self.mask.bit_length() - 1]
        return [leaf for kid in self.kids for leaf in kid.frontier()]


def universal(count: int) -> Tree:
    """Every order of the leaves 0 to ``count - 1``, at least one."""
    return _node(P, [Tree(LEAF, (), 1 << leaf) for leaf in range(count)])


def reduce(tree: Tree, subset: int) -> Tree | None:
    """The orders in which the leaves of ``subset`` are neighbours as well; None where there is none."""
    try:
        return _gather(tree, subset)
    except _Impossible:
        return None


class _Impossible(Exception):
    pass


def _node(kind: str, kids: Sequence[Tree]) -> Tree:
    if len(kids) == 1:
        return kids[0]
    mask = 0
    for kid in kids:
        mask |= kid.mask
    return Tree(P if len(kids) == 2 else kind, tuple(kids), mask)


def _full(tree: Tree, subset: int) -> bool:
    return not tree.mask & ~subset


def _empty(tree: Tree, subset: int) -> bool:
    return not tree.mask & subset


def _gather(tree: Tree, subset: int) -> Tree:
    """The subset as one run anywhere within the tree."""
    if tree.kind == LEAF or _full(tree, subset) or _empty(tree, subset):
        return tree
    touched = [k for k, kid in enumerate(tree.kids) if not _empty(kid, subset)]
    if len(touched) == 1 and not _full(tree.kids[touched[0]], subset):
        kids = list(tree.kids)
        kids[touched[0]] = _gather(kids[touched[0]], subset)
        return Tree(tree.kind, tuple(kids), tree.mask)
    return _gather_p(tree, subset) if tree.kind == P else _gather_q(tree, subset, touched)


def _gather_p(tree: Tree, subset: int) -> Tree:
    empty, partial, full = _sorted(tree.kids, subset)
    if len(partial) > 2:
        raise _Impossible
    run = _run(partial[0], subset) if partial else []
    run += [_node(P, full)] if full else []
    run += _run(partial[1], subset)[::-1] if len(partial) == 2 else []
    return _node(P, [*empty, _node(Q, run)])


def _gather_q(tree: Tree, subset: int, touched: Sequence[int]) -> Tree:
    first, last = touched[0], touched[-1]
    if any(not _full(kid, subset) for kid in tree.kids[first + 1 : last]):
        raise _Impossible
    kids = [*tree.kids[:first], *_run(tree.kids[first], subset)]
    if last > first:
        kids += [*tree.kids[first + 1 : last], *_run(tree.kids[last], subset)[::-1]]
    return _node(Q, [*kids, *tree.kids[last + 1 :]])


def _run(tree: Tree, subset: int) -> list[Tree]:
    """The parts of a node in a row, those outside the subset on the left and those inside on the right."""
    if _full(tree, subset) or _empty(tree, subset):
        return [tree]
    empty, partial, full = _sorted(tree.kids, subset)
    if len(partial) > 1:
        raise _Impossible
    middle = _run(partial[0], subset) if partial else []
    if tree.kind == P:
        return [*([_node(P, empty)] if empty else []), *middle, *([_node(P, full)] if full else [])]
    for kids in (tree.kids, tree.kids[::-1]):  # a Q-node fits one way round, or not at all
        empty, partial, full = _sorted(kids, subset)
        if list(kids) == [*empty, *partial, *full]:
            return [*empty, *middle, *full]
    raise _Impossible


def _sorted(kids: Sequence[Tree], subset: int) -> tuple[list[Tree], list[Tree], list[Tree]]:
    """Those outside the subset, partly inside, and inside."""
    empty = [kid for kid in kids if not kid.mask & subset]
    full = [kid for kid in kids if not kid.mask & ~subset]
    return empty, [kid for kid in kids if kid.mask & subset and kid.mask & ~subset], full
