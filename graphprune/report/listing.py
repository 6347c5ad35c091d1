"""Lists for the terminal: what `inspect`, `bench`, `passes` and `targets` print."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from textwrap import fill
from typing import Any

from ..axes.dim import LEAF, find
from ..ir.facts import Groups, Latency, Member
from ..pipeline.base import Pass
from ..pipeline.options import spell, summary
from .page import speed
from .units import COLUMNS, duration


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


def compared(a: tuple[str, Latency], b: tuple[str, Latency], error: float) -> str:
    """Two measurements in turns, and how the second compares with the first; ``error``: of the ratio."""
    width = max(len(name) for name, _ in (a, b))
    lines = [
        f"{name:<{width}}  median {duration(one.median_ms)}, interquartile range {duration(one.spread_ms)}, "
        f"{one.repeats} repeats, {one.threads} {'thread' if one.threads == 1 else 'threads'}, {one.target}"
        for name, one in (a, b)
    ]
    ratio, before, after = b[1].median_ms / a[1].median_ms, dataclasses.asdict(a[1]), dataclasses.asdict(b[1])
    told = speed(before, {**after, "share_error": error})
    return "\n".join([*lines, f"ratio {ratio:.3f}x ± {error:.3f}: {b[0]} is {told}"])


Entry = Mapping[str, Any]
"""What `passes` and `targets` say of one: ``name``, ``summary``, ``needs``, ``gives``, ``options``, see ``entry``."""


def entry(kind: type[Any], line: str = "") -> dict[str, Any]:
    """Plain data on a pass or a target: every option with its default, what it means (the comment beside the field)
    and, where it is chosen by name, the ``choices`` with a line each. ``line``: what it is, else its docstring's."""
    facts = {key: [fact.__name__ for fact in getattr(kind, key, ())] for key in ("needs", "gives")}
    choices = kind.choices() if issubclass(kind, Pass) else {}
    return {
        "name": kind.name,
        "summary": line or summary(kind),
        **{key: names for key, names in facts.items() if names},
        "options": [
            {
                "name": field.name,
                "default": None if field.default is dataclasses.MISSING else field.default,
                "help": _comment(kind, field.name),
                **({"choices": dict(choices[field.name])} if field.name in choices else {}),
            }
            for field in dataclasses.fields(kind)
        ],
    }


def listed(one: Entry, full: bool = False) -> str:
    """An entry as text below its name, ``COLUMNS`` wide; ``full``: with the choices of every option."""
    lines = [wrapped(one["summary"], "    ")]
    lines += [f"    {key}: {', '.join(one[key])}" for key in ("needs", "gives") if key in one]
    for option in one["options"]:
        text = f"      {option['name']}={spell(option['default'])}"
        lines.append(wrapped(option["help"], " " * 27, f"{text:<26} "))
        for name, line in option.get("choices", {}).items() if full else ():
            lines.append(wrapped(line, " " * 21, f"          {name:<10} "))
    return "\n".join(lines)


def wrapped(text: str, indent: str, first: str | None = None) -> str:
    """A paragraph, ``COLUMNS`` wide."""
    start = indent if first is None else first
    return (
        fill(
            text,
            COLUMNS,
            initial_indent=start,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        or start.rstrip()
    )


def _comment(kind: type[Any], field: str) -> str:
    """Beside a field, and on the lines below that go on with it."""
    found = re.search(rf"^    {field}:.*?  # (.*(?:\n    # .*)*)$", inspect.getsource(kind), re.MULTILINE)
    return found[1].replace("\n    # ", " ") if found else ""
