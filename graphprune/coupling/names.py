"""What a user calls a dim by: the name of its group, an axis, a parameter, a layer, with wildcards."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import RecipeError
from ..ir.facts import Groups, Member

GROUP = "group:"
"""Before its name, a group and no layer that is called the same."""
FEW = 8
"""So many names are all shown where none is near."""


@dataclass(frozen=True)
class Names:
    """``touched``: by whom any of its axes is stored or read; ``made``: by whom its positions are written. Each
    holds the dim's own name (also as ``group:name``), its axes (``conv.weight[0]``), their parameters, the ops, and the
    modules of both."""

    touched: Set[str]
    made: Set[str]


def names(name: str, members: Sequence[Member], ops: Mapping[str, Sequence[str]]) -> Names:
    """``ops``: by parameter, the ops that read it there."""

    def of(some: Iterable[Member]) -> Set[str]:
        found = {name, f"{GROUP}{name}"}
        for member in some:
            found.add(f"{member.parameter}[{member.axis}]")
            for whole in (member.parameter, *ops[member.parameter]):
                parts = whole.split(".")
                found.update(".".join(parts[:k]) for k in range(1, len(parts) + 1))
        return found

    return Names(of(members), of(m for m in members if m.role == "writer"))


def called(groups: Groups) -> dict[str, Names]:
    """What every group is called by."""
    found = {}
    for group in groups:
        edges = groups.graph[group.name]
        ops = {axis.rpartition(":")[0]: list[str]() for axis in edges}
        for axis, edge in edges.items():
            ops[axis.rpartition(":")[0]] += edge["ops"]
        found[group.name] = names(group.name, group.members, ops)
    return found


def matching(
    patterns: Sequence[str], known: Sequence[Set[str]], what: str = "group, layer or parameter", strict: bool = True
) -> list[str | None]:
    """For everything, by its names, the first pattern that one of them matches. ``*`` and ``?`` are wildcards,
    brackets stand for themselves. Raises RecipeError for a pattern that matches nothing, where ``strict``."""
    found: list[str | None] = [None] * len(known)
    for pattern in patterns:
        hits = [k for k, own in enumerate(known) if _any(pattern, own)]
        if not hits and strict:
            every = sorted(one for one in set().union(*known) if not one.startswith(GROUP))
            close = difflib.get_close_matches(pattern, every, n=3) or (every if len(every) <= FEW else ())
            raise RecipeError(
                f"`{pattern}` matches no {what}",
                f"did you mean {' or '.join(f'`{one}`' for one in close)}?"
                if close
                else "`graphprune inspect` lists groups and their axes; `*` stands for any characters",
            )
        for k in hits:
            found[k] = found[k] or pattern
    return found


def _any(pattern: str, own: Set[str]) -> bool:
    if not {"*", "?"} & set(pattern):
        return pattern in own
    literal = pattern.replace("[", "[[]")
    return any(fnmatchcase(name, literal) for name in own)
