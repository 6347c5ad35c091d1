"""What a program knows, as plain data for JSON and as a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import numpy as np

from ..axes.dim import Dim
from ..ir.facts import Frozen, Group, Groups, Keep, Member, Scores
from ..ir.program import Program


def plain(fact: Any) -> Any:
    """A fact as JSON has it: dataclasses by field, arrays as lists, a dim as its text. What is none of these
    (a graph, a function) is named by its type."""
    if fact is None or isinstance(fact, (str, int, float, bool)):
        return fact
    if isinstance(fact, (np.ndarray, np.generic)):
        return fact.tolist()
    if isinstance(fact, Dim):
        return repr(fact)
    if isinstance(fact, Groups):
        return {"groups": [_group(one) for one in fact], "frozen": [_frozen(one) for one in fact.frozen]}
    if isinstance(fact, Mapping):
        return {key if isinstance(key, str) else str(key): plain(value) for key, value in fact.items()}
    if isinstance(fact, (Sequence, set, frozenset)):
        return [plain(value) for value in fact]
    if is_dataclass(fact):
        return {one.name: plain(getattr(fact, one.name)) for one in fields(fact)}
    return f"<{type(fact).__name__}>"


def facts(program: Program) -> dict[str, Any]:
    """Everything that the program knows, by the name of the fact."""
    return {kind.__name__: plain(fact) for kind, fact in program.facts.items()}


def summary(program: Program) -> list[str]:
    """A line per fact; of scores and keep lists one per group besides."""
    lines: list[str] = []
    for kind, fact in program.facts.items():
        if isinstance(fact, Groups):
            channels = sum(group.size for group in fact)
            lines.append(f"Groups: {len(fact)}, {channels} channels, {len(fact.frozen)} frozen")
        elif isinstance(fact, Scores):
            lines.append(f"Scores: {fact.by}")
            lines += [f"  {name}: {np.min(s):.3g} to {np.max(s):.3g}" for name, s in fact.scores.items() if len(s)]
        elif isinstance(fact, Keep):
            sizes = {group.name: group.size for group in program.facts.get(Groups, ())}
            lines.append("Keep:")
            lines += [f"  {name}: {len(at)}{_of(sizes.get(name))}" for name, at in fact.keep.items()]
        else:
            lines.append(kind.__name__)
    return lines


def _of(size: int | None) -> str:
    return "" if size is None else f" of {size}"


def _group(group: Group) -> dict[str, Any]:
    return {"name": group.name, "size": group.size, "members": [_member(one) for one in group.members]}


def _member(member: Member) -> dict[str, Any]:
    return {"parameter": member.parameter, "axis": member.axis, "role": member.role, "dim": repr(member.dim)}


def _frozen(dim: Frozen) -> dict[str, Any]:
    return asdict(dim)
