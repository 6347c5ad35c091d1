"""What a shell offers after TAB: targets with boards, and recipes as far as they are written."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


class Names(click.ParamType):  # type: ignore[type-arg]
    """Any text, for which a shell offers names."""

    name = "text"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = {"target": _targets, "recipe": _recipes, "pass": _passes, "criterion": _criteria}[self.kind](incomplete)
        return [CompletionItem(text) for text in found if text.startswith(incomplete)]


def _targets(incomplete: str) -> list[str]:
    from ..backends.target import names

    return names()


def _passes(incomplete: str) -> list[str]:
    from ..pipeline.base import passes

    return [*passes()]


def _criteria(incomplete: str) -> list[str]:
    from ..criteria import criteria

    return [*criteria()]


def _recipes(incomplete: str) -> list[str]:
    """The recipe as it is with the next name: a pass, an option of it, what that can be."""
    from dataclasses import fields, is_dataclass

    from ..pipeline.base import passes

    brace = incomplete.rfind("{")
    if brace <= incomplete.rfind("}"):
        done = incomplete[: incomplete.rfind(",") + 1]
        return [f"{done}{name}" for name in passes()]
    kind = passes().get(incomplete[:brace].rpartition(",")[2])
    if kind is None or not is_dataclass(kind):
        return []
    done = incomplete[: max(brace, incomplete.rfind(" ")) + 1]
    option, equals, _ = incomplete[len(done) :].partition("=")
    if not equals:
        return [f"{done}{field.name}=" for field in fields(kind)]
    return [f"{done}{option}={name}" for name in kind.choices().get(option, {})]
