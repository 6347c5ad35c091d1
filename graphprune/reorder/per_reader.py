"""Unconstrained pruning (UPSCALE, Wan et al., ICML 2023): every reader keeps channels of its own.

`loosen` opens the sites at which readers may differ; from then on each reader's axis is a group of its
own. What is left of a producer follows: what some reader keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..axes.dim import Dim, find, leaves
from ..axes.index import Index, Indices, shares
from ..cost.static import Cost
from ..ir.facts import Group, Groups, Scores
from ..ir.graph import Graph, Op, Site
from ..ir.program import Program
from .reindex import ends, reindexes
from .reindex_sites import reader_sites, writer_sites

MODES = {
    "no": "all readers of a group take the same channels",
    "readers": "each reader keeps channels of its own",
    "both": "readers and writers keep channels of their own",
    "mixed": "readers keep channels of their own where it pays",
}


def unopened(program: Program, *, writers: bool = False) -> tuple[Site, ...]:
    """The sites to open before every reader that shares channels (and after every writer that shares them in a
    sum); none of a kind that is open already."""
    graph, groups = program.graph, program.fact(Groups)
    opened = {op.attrs["fills"] for op in reindexes(graph)}
    sites: list[Site] = []
    if False not in opened:
        sites += reader_sites(graph, groups, program.host.sizes())
    if writers and True not in opened:
        sites += writer_sites(graph, groups)
    return tuple(dict.fromkeys(sites))


@dataclass(frozen=True)
class Links:
    """Which groups follow from which: through every ``reindex`` op of a graph. Without any, none does.

    ``steps``: per group, the multiple that what follows is rounded up to (see allocation.Allocation.steps);
    1 where it is not listed.
    """

    graph: Graph
    groups: Groups
    steps: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def by_leaf(self) -> dict[Dim, Group]:
        return {group.dim: group for group in self.groups}

    @cached_property
    def ops(self) -> list[Op]:
        return list(reindexes(self.graph))

    @cached_property
    def followers(self) -> frozenset[str]:
        """The groups of which just as much is left as their readers take: all of these have a choice."""
        before = {leaf for op in self.ops if not op.attrs["fills"] for leaf in leaves(ends(op)[0])}
        return frozenset(
            group.name
            for group in self.groups
            if group.dim in before and not any(member.role == "reader" for member in group.members)
        )

    def free(self) -> Groups:
        """The groups without those that follow."""
        kept = tuple(group for group in self.groups if group.name not in self.followers)
        return replace(self.groups, groups=kept)

    def complete(self, keep: Mapping[str, Indices]) -> dict[str, Indices]:
        """``keep`` with what follows from it: a producer keeps what some reader takes, a writer leaves out
        what nobody takes of the sum. Lists are in channel order."""
        out = {name: kept for name, kept in keep.items() if name not in self.followers}
        taken: dict[str, list[Indices]] = {name: [kept] for name, kept in out.items()}
        for op in reversed(self.ops):
            before, after = ends(op)
            if op.attrs["fills"]:
                continue
            self._round({self.by_leaf[leaf].name for leaf in leaves(after) if leaf in self.by_leaf}, out)
            for name, channels in self._demand(before, Index(self._leaves(out))(after)):
                taken.setdefault(name, []).append(channels)
                out[name] = np.unique(np.concatenate(taken[name]))
        self._round(out.keys(), out)
        for op in reversed(self.ops):
            if op.attrs["fills"]:
                self._leave_out(op, out)
        return {
            group.name: out[group.name] if len(out[group.name]) else np.arange(1)  # a layer that nobody reads
            for group in self.groups
            if group.name in out
        }

    def _round(self, names: Iterable[str], keep: dict[str, Indices]) -> None:
        for name in sorted(self.followers.intersection(names, keep)):
            keep[name] = self._filled(name, keep[name], np.arange(self._sizes[name]))

    def _filled(self, name: str, kept: Indices, whole: Indices) -> Indices:
        """``kept`` with as many of ``whole`` more as make a multiple of the group's step."""
        missing = -len(kept) % self.steps.get(name, 1)
        return np.union1d(kept, np.setdiff1d(whole, kept)[:missing]) if missing else kept

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {group.name: group.size for group in self.groups}

    def _leaves(self, keep: Mapping[str, Indices]) -> dict[Dim, Indices]:
        return {group.dim: keep[group.name] for group in self.groups if group.name in keep}

    def _demand(self, before: Dim, at: Indices) -> list[tuple[str, Indices]]:
        found = []
        for leaf, (where, which) in self._shares(before).items():
            if leaf in self.by_leaf:
                found.append((self.by_leaf[leaf].name, np.unique(which[np.isin(where, at)])))
        return found

    def _shares(self, dim: Dim) -> dict[Dim, tuple[Indices, Indices]]:
        key = find(dim)
        if key not in self._known:
            self._known[key] = shares(dim)
        return self._known[key]

    @cached_property
    def _known(self) -> dict[Dim, dict[Dim, tuple[Indices, Indices]]]:
        return {}

    def _leave_out(self, op: Op, keep: dict[str, Indices]) -> None:
        before, after = ends(op)
        wanted = Index(self._leaves(keep))(after)
        for name, channels in self._demand(before, wanted):
            left = np.intersect1d(keep.get(name, channels), channels)
            keep[name] = self._filled(name, left if len(left) else channels[:1], channels)

    def priced(self, cost: Cost, scores: Scores, best: Callable[[Any, int], Indices]) -> Cost:
        """``cost`` of a choice for the groups that are free, with what follows from it."""
        if not self.ops:
            return cost
        return _Priced(cost.unit, cost.terms, cost.sizes, cost.scale, cost, self, scores, best)


@dataclass(frozen=True)
class _Priced(Cost):
    whole: Cost | None = None
    links: Links | None = None
    scores: Scores | None = None
    best: Callable[[Any, int], Indices] | None = None

    def parts(self) -> None:
        return None

    def __call__(self, kept: Mapping[Dim, float] | None = None) -> float:
        assert self.whole and self.links and self.scores and self.best
        if not kept:
            return self.whole(kept)
        groups = {group.name: group for group in self.links.groups if group.dim in kept}
        chosen = {name: self.best(self.scores[group], int(kept[group.dim])) for name, group in groups.items()}
        left = self.links.complete(chosen)
        others = {dim: count for dim, count in kept.items() if dim not in self.links.by_leaf}
        return self.whole({**others, **{g.dim: len(left[g.name]) for g in self.links.groups if g.name in left}})
