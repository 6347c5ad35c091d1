"""Recipes: a sequence of passes as text or TOML, read, checked and written.

group,score{by=l2},mask{macs=0.5x grain=8},propagate"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError, nearest, shown
from .base import Pass, passes
from .options import Reader, pattern, spell


@dataclass(frozen=True)
class Recipe:
    """A sequence of passes. ``Recipe.parse(recipe.text()) == recipe``, and the same for TOML."""

    steps: tuple[Pass, ...]

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read ``name{option=value ...},...``. Raises RecipeError at the first thing amiss."""
        return cls(tuple(make(name, options) for name, options in _steps(text)))

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """Read ``[[pass]]`` tables: ``name`` and options."""
        try:
            tables = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # more than TOMLDecodeError: numbers too long, tables too deep
            raise RecipeError(f"the recipe is not TOML: {error}", '[[pass]]\n  name = "group"') from error
        extra = sorted(set(tables) - {"pass"})
        if extra or not isinstance(tables.get("pass"), list) or not all(isinstance(t, dict) for t in tables["pass"]):
            raise RecipeError(
                f"a recipe file holds [[pass]] tables, not {extra or 'nothing'}", '[[pass]]\n  name = "group"'
            )
        return cls(
            tuple(
                make(str(table.get("name", "")), {k: v for k, v in table.items() if k != "name"})
                for table in tables["pass"]
            )
        )

    def text(self) -> str:
        return ",".join(step.text() for step in self.steps)

    def toml(self) -> str:
        out = []
        for step in self.steps:
            changed = (f"{k} = {_toml(v)}" for k, v in step.changed().items())
            out.append("\n".join(["[[pass]]", f'name = "{step.name}"', *changed]))
        return "\n\n".join(out) + "\n"

    def check(self, *, known: Iterable[type] = (), has_data: bool = False) -> None:
        """Every need is met before any weight moves. Raises RecipeError."""
        have, dropped = set(known), dict[type, Pass]()
        for number, step in enumerate(self.steps, 1):
            for need in step.needs:
                if need not in have:
                    givers = [name for name, kind in passes().items() if need in kind.gives]
                    by = dropped[need].name if need in dropped else ""
                    why = (
                        f"and `{by}` before it rewrites the model, which drops it"
                        if by
                        else "which no earlier step gives"
                    )
                    hint = f"put `{givers[0]}` before it" if givers else None
                    if hint and by:
                        hint += " again" if by == step.name else f" again, or `{step.name}` before `{by}`"
                    raise RecipeError(f"step {number} `{step.name}` needs {need.__name__}, {why}", hint)
            if step.wants_data() and not has_data:
                raise RecipeError(
                    f"step {number} `{step.text()}` needs calibration data",
                    "give --data FILE, or gp.load(..., data=...)",
                )
            for made in (*step.before(), step):
                left = have & set(made.carries) if made.rewrites else have
                dropped |= dict.fromkeys(have - left, made)
                have = left | set(made.gives)

    def expanded(self) -> Recipe:
        """The steps one by one, with those that run before another because of its options."""
        return Recipe(tuple(made for step in self.steps for made in (*step.before(), step)))


def make(name: str, options: Mapping[str, Any]) -> Pass:
    """One pass from its name and options as text or TOML values. Raises RecipeError."""
    kind = passes().get(name)
    if kind is None:
        auto = "it is what runs where no recipe is given: leave it out" if name == "auto" else ""
        raise RecipeError(f"unknown pass `{shown(name)}`", auto or nearest(name, passes()))
    return kind(**Reader(name, RecipeError).values(kind, options))


_STEP = pattern(r"[A-Za-z_][\w.-]*", end="(,|$)")


def _steps(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    at = 0
    while at < len(text) or at == 0:
        found = _STEP.match(text, at)
        if not found:
            raise RecipeError(
                f"cannot read the recipe at `{text[at : at + 30]}`",
                "write it as group,score{by=l2},mask{channels=0.5x},propagate",
            )
        name, body, _ = found.groups()
        yield name, Reader(name, RecipeError).split(body)
        at = found.end()


def _toml(value: Any) -> str:
    return spell(value) if isinstance(value, (bool, int, float)) else f'"{value}"'
