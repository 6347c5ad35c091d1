"""Scores of groups as scores of what these were split into, by the parameter axes that both have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..axes.index import Indices, coordinates
from ..errors import RecipeError
from ..ir.facts import Group, Groups, Member, Scores
from ..ir.host import Array

Places = Mapping[tuple[str, int], list[tuple[Group, Member]]]
"""Per parameter and axis, the groups that have part in it."""


def carried(scores: Scores, old: Groups, new: Groups) -> Scores:
    """``scores`` of ``old`` groups for the ``new`` ones: a channel is worth what the one that it was is.

    Raises RecipeError where a channel is made of none of the old ones, or of several at once.
    """
    places = _places(old)
    return replace(scores, scores={group.name: _values(scores, group, places) for group in new})


def descended(new: Groups, old: Groups) -> Groups:
    """Those of the ``new`` groups that some of the ``old`` ones have part in."""
    places = _places(old)
    mine = tuple(group for group in new if any(_origins(group, one, places) for one in group.members))
    return replace(new, groups=mine)


def _places(groups: Groups) -> Places:
    found = defaultdict(list)
    for group in groups:
        for member in group.members:
            found[member.parameter, member.axis].append((group, member))
    return found


def _values(scores: Scores, group: Group, places: Places) -> Array:
    values, known = np.zeros(group.size), np.zeros(group.size, bool)
    for member in group.members:
        before, mine = known.copy(), np.zeros(group.size, int)
        for old, at, which in _origins(group, member, places):
            values[at] = np.where(before[at], values[at], scores[old][which])
            mine[at] += 1
        if (mine > 1).any():
            raise _unclear(scores, group, np.flatnonzero(mine > 1), "are made of channels of several groups")
        known |= mine > 0
        if known.all():
            return values
    raise _unclear(scores, group, np.flatnonzero(~known), "have no score")


def _origins(group: Group, member: Member, places: Places) -> list[tuple[Group, Indices, Indices]]:
    """The old groups that channels of ``group`` come from along one axis: these, and which of the old they are."""
    found = []
    at = coordinates(member.dim, group.dim)
    for old, before in places.get((member.parameter, member.axis), ()):
        which = coordinates(before.dim, old.dim)
        both = (at >= 0) & (which >= 0)
        pairs = np.unique(np.stack([at[both], which[both]]), axis=1)
        if pairs.size and len(np.unique(pairs[0])) == pairs.shape[1]:  # each is part of one of the old
            found.append((old, pairs[0], pairs[1]))
    return found


def _unclear(scores: Scores, group: Group, at: Indices, what: str) -> RecipeError:
    some = ", ".join(map(str, at[:5])) + (", ..." if len(at) > 5 else "")
    return RecipeError(
        f"the Scores (by `{scores.by}`) cannot be carried to `{group.name}`, whose reader now chooses for itself: "
        f"{len(at)} of its {group.size} channels ({some}) {what}",
        "run `loosen` first and score the groups that it gives, or take `mask{unconstrained=no}`",
    )
