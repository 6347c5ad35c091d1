"""Published recipes by name: the files of `recipes/`, each with where it is from, what differs, and its steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..cost.budget import amount
from ..errors import RecipeError
from .recipe import Recipe

FOLDER = Path(__file__).parents[1] / "recipes"
_BUDGET = re.compile(r"\bbudget=([\d.]+)")


@dataclass(frozen=True)
class Published:
    """A recipe of which a budget is left open. In ``steps`` a mask has `budget=0.44`: what is left of the model as it
    was given when 0.44 of all that has to go is gone."""

    name: str
    summary: str
    source: str
    differs: str
    steps: str

    def recipe(self, unit: str, text: str) -> Recipe:
        """With what remains of a unit, such as ``0.7x``. Raises RecipeError where it has several masks and ``text`` is
        no share, BudgetError where it is no budget."""
        shares = [float(share) for share in _BUDGET.findall(self.steps)]
        if shares == [1.0]:
            return Recipe.parse(_BUDGET.sub(f"{unit}={text}", self.steps))
        asked = amount(text, unit)
        if unit not in ("params", "macs") or asked.absolute:
            raise RecipeError(
                f"`{self.name}` cuts in {len(shares)} steps, of which {unit}={text} cannot be divided",
                "give a share of parameters or multiply-accumulates: params=0.7x",
            )
        goes = 1 - asked.number
        return Recipe.parse(_BUDGET.sub(lambda at: f"{unit}={1 - float(at[1]) * goes:.6g}x of=given", self.steps))


@cache
def published() -> Mapping[str, Published]:
    """All of them, by name."""
    return {file.stem: _read(file) for file in sorted(FOLDER.glob("*.txt"))}


def _read(file: Path) -> Published:
    summary, about, steps = file.read_text(encoding="utf-8").strip().split("\n\n")
    source, differs = about.removeprefix("Source: ").split("\nDiffers: ")
    return Published(file.stem, summary, *(" ".join(part.split()) for part in (source, differs, steps)))
