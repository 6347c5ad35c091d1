"""Lists for the terminal: what `inspect`, `bench`, `passes` and `targets` print."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from typing import Any

from ..axes.dim import LEAF, find
from ..ir.facts import Groups, Latency, Member
from ..pipeline.base import Pass
from .page import speed
from .units import duration


def describe(groups: Groups) -> str:
    """Every group with its parameter axes by role, then every frozen dim with its reason."""
    channels = sum(group.size for group in groups)
    lines = [f"{len(groups)} {'group' if len(groups) == 1 else 'groups'}, {channels} channels that can be pruned"]
    for group in groups:
        lines.append(f"\n{group.name}: {group.size} channels")
        for role in ("writer", "carrier", "reader"):
            axes = [_axis(member) for member in group.members if member.role == role]
            lines += [f"  {role:<8} {axis}" for axis in axes]
    lines.append(f"\n{len(groups.frozen)} frozen")
    name = max((len(dim.name) for dim in groups.frozen), default=0)
    size = max((len(str(dim.size)) for dim in groups.frozen), default=0)
    lines += [f"  {dim.name:<{name}}  {dim.size:>{size}}  {dim.reason}" for dim in groups.frozen]
    return "\n".join(lines)


def _axis(member: Member) -> str:
    return str(member) if find(member.dim).kind == LEAF else f"{member} = {member.dim!r}"


def compared(a: tuple[str, Latency], b: tuple[str, Latency]) -> str:
    """Two measurements, and how the second compares with the first."""
    width = max(len(name) for name, _ in (a, b))
    lines = [
        f"{name:<{width}}  median {duration(one.median_ms)}, interquartile range {duration(one.spread_ms)}, "
        f"{one.repeats} repeats, {one.threads} {'thread' if one.threads == 1 else 'threads'}, {one.target}"
        for name, one in (a, b)
    ]
    ratio = b[1].median_ms / a[1].median_ms
    return "\n".join(
        [*lines, f"ratio {ratio:.3f}x: {b[0]} is {speed(dataclasses.asdict(a[1]), dataclasses.asdict(b[1]))}"]
    )


def indented(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def facts(kind: type[Pass]) -> list[str]:
    """What a pass needs and gives."""
    pairs = (("needs", kind.needs), ("gives", kind.gives))
    return [f"{word}: {', '.join(fact.__name__ for fact in types)}" for word, types in pairs if types]


def summary(kind: type[Any]) -> str:
    """The first line of a docstring."""
    return (kind.__doc__ or "").strip().partition("\n")[0]


def options(kind: type[Any]) -> list[str]:
    """``option=default   what it means``, the meaning being the comment beside the field."""
    source = inspect.getsource(kind)
    lines = []
    for field in dataclasses.fields(kind):
        default = "" if field.default is dataclasses.MISSING else str(field.default)
        default = default.lower() if isinstance(field.default, bool) else default
        comment = re.search(rf"^    {field.name}:.*?  # (.*)$", source, re.MULTILINE)
        lines.append(f"{f'{field.name}={default}':<20} {comment[1] if comment else ''}".rstrip())
    return lines
