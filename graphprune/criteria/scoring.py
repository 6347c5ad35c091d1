"""What criteria have in common: the registry, and how the scores of a group's members combine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ..axes.dim import Dim, find
from ..axes.index import Indices, shares
from ..ir.facts import Group, Groups
from ..ir.host import Array
from ..ir.program import Program

ScoresByGroup = dict[str, Array]


def _same(values: Array) -> Array:
    return values


@dataclass(frozen=True)
class Scoring:
    """What a criterion works on. ``learned``: facts that it found on the way and others may use; ``notes``: what
    it has to say of its own accuracy."""

    program: Program
    groups: Groups
    over: str = "all"
    combine: str = "mean"
    learned: list[object] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def combined(self, members: list[Array], size: int) -> Array:
        """One score a channel from one per member: by ``combine``; ones where there is no member."""
        return COMBINE[self.combine](np.stack(members)) if members else np.ones(size)

    def weights(self, group: Group) -> Iterator[tuple[str, int, Dim]]:
        """The weights that count, by ``over``: parameter, axis, and the dim of that axis. What has a single
        number for each channel that it writes is no weight: a bias, the scale of a quantised weight."""
        roles = {"all": ("writer", "reader"), "writers": ("writer",), "readers": ("reader",)}[self.over]
        for member in group.members:
            vector = len(self.program.graph.parameters[member.parameter].dims) == 1
            if member.role in roles and not (vector and member.role == "writer"):
                yield member.parameter, member.axis, member.dim

    def per_axis(self, values: Callable[[str, int], Array], then: Callable[[Array], Array] = _same) -> ScoresByGroup:
        """Scores from a number for every position of a parameter axis: summed over the positions that one
        channel has in the axis, ``then`` applied, then combined over the group's weights."""
        known: dict[tuple[str, int], Array] = {}
        places: dict[Dim, dict[Dim, tuple[Indices, Indices]]] = {}  # a wide concat is an axis of many groups
        out = {}
        for group in self.groups:
            members = []
            for parameter, axis, dim in self.weights(group):
                if (parameter, axis) not in known:
                    known[parameter, axis] = values(parameter, axis)
                if find(dim) not in places:
                    places[find(dim)] = shares(dim)
                whole = folded(known[parameter, axis], *places[find(dim)][group.dim], group.size)
                members.append(then(whole))
            out[group.name] = self.combined(members, group.size)
        return out

    def per_value(self, layers: Iterator[tuple[Dim, Array]], without: ScoresByGroup) -> ScoresByGroup:
        """Scores from a number for every position of an activation's axis, combined over the places where
        a group's channels are read; groups that are read nowhere get those of ``without``."""
        by_leaf = {group.dim: group for group in self.groups}
        found: dict[str, list[Array]] = {group.name: [] for group in self.groups}
        for dim, values in layers:
            for leaf, (at, index) in shares(dim).items():
                if leaf in by_leaf:
                    group = by_leaf[leaf]
                    found[group.name].append(folded(values, at, index, group.size))
        return {g.name: self.combined(found[g.name], g.size) if found[g.name] else without[g.name] for g in self.groups}


@dataclass(frozen=True)
class Criterion:
    """``score`` gives a number per channel of each group: higher is more worth keeping. ``data``: it needs
    calibration data; ``loss``: and a loss, whose gradients only the torch host has. ``normalize``: how its
    groups compare where nothing else is asked for."""

    score: Callable[[Scoring], ScoresByGroup]
    data: bool = False
    loss: bool = False
    normalize: str = "mean"


CRITERIA: dict[str, Criterion] = {}


def criterion(
    name: str, *, data: bool = False, loss: bool = False, normalize: str = "mean"
) -> Callable[[Callable[[Scoring], ScoresByGroup]], Callable[[Scoring], ScoresByGroup]]:
    """Enter a function into CRITERIA."""

    def enter(function: Callable[[Scoring], ScoresByGroup]) -> Callable[[Scoring], ScoresByGroup]:
        CRITERIA[name] = Criterion(function, data or loss, loss, normalize)
        return function

    return enter


def folded(values: Array, at: Indices, index: Indices, size: int) -> Array:
    """Sum values of an axis into the positions of one of its leaves: see dims.shares."""
    out: Array = np.bincount(index, weights=values[at], minlength=size)
    return out


COMBINE: dict[str, Callable[[Array], Array]] = {
    "mean": lambda x: x.mean(0),
    "sum": lambda x: x.sum(0),
    "max": lambda x: x.max(0),
}
NORMALIZE: dict[str, Callable[[Array], Array]] = {
    "mean": lambda x: x / x.mean() if x.mean() > 0 else x,
    "standard": lambda x: (x - x.mean()) / x.std() if x.std() > 0 else x - x.mean(),
    "none": lambda x: x,
}
