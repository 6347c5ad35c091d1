"""A cut must not make a network slower: where it does, measured, widths are such as the target likes, and readers that
choose for themselves choose less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..backends.measure import Comparison
from ..errors import BudgetError
from ..ir.program import Program
from ..passes.loosen import Loosen
from ..passes.mask import Mask
from ..passes.reorder import Reorder
from ..pipeline.base import Pass, Progress
from ..pipeline.instrument import Instrument
from ..pipeline.recipe import Recipe
from ..pipeline.run import run
from .measured import Measured, worst

GRAINS = (1.0, 2.0, 4.0, 0.5, 0.25)
"""Of the grain that a target likes, in the order in which they are tried: coarser ones, and where a budget has no room
for the grain itself, finer ones."""


@dataclass(frozen=True)
class Tried:
    """A program, the recipe that made it, and how its code compares with the original's, by target."""

    program: Program
    recipe: Recipe
    measured: Measured

    @property
    def worst(self) -> Comparison:
        return self.measured[worst(self.measured)]

    @property
    def slower(self) -> bool:
        """On any target."""
        return any(one.slower for one in self.measured.values())


def chooses(recipe: Recipe) -> bool:
    """Whether readers have channels of their own in it."""
    return any(isinstance(step, Loosen) for step in recipe.expanded().steps)


def guarded(
    program: Program,
    given: Tried,
    grain: int,
    write: Callable[[Program], Measured],
    *,
    progress: Progress | None = None,
    instruments: Sequence[Instrument] = (),
    perform: Callable[[Pass, Program], Program] | None = None,
) -> tuple[Tried, Mapping[str, Any]]:
    """``given``, what a recipe made of ``program``, where it is no slower; else the first that is none of: the same
    with widths that the target likes, multiples of ``grain``, coarser and finer; where readers choose for themselves
    with widths that it likes, with no copies (readers take all, and multiply the rest by zero), and with readers that
    agree. Where all are slower, the fastest. ``write``: writes a program's code and measures that, so that what is
    returned is what was written last. Also plain data for the report, empty where nothing was slower."""
    if not given.slower:
        return given, {}
    tried = [given]
    milder = (_less_free if chooses(given.recipe) else _coarser)(given.recipe, grain)
    for text in milder:
        if progress:
            progress(f"no slower than it was on {worst(given.measured)}", 0, 1)
        try:
            made = run(text, program, progress, instruments, perform)
        except BudgetError:  # not within the budget at these widths
            continue
        tried.append(Tried(made, text, write(made)))
        if not tried[-1].slower:
            break
    best = tried[-1]
    if best.slower:
        best = min(tried, key=lambda one: one.worst.share)
        if best is not tried[-1]:  # whose code was written last
            at = tried.index(best)
            best = tried[at] = replace(best, measured=write(best.program))
    return best, _told(best, tried)


def _told(best: Tried, tried: Sequence[Tried]) -> dict[str, Any]:
    rounds = [{"recipe": one.recipe.text(), "share": one.worst.share, "error": one.worst.error} for one in tried]
    return {
        "target": worst(best.measured),
        "share": best.worst.share,
        "slower": best.slower,
        "tried": rounds,
    }


def _coarser(recipe: Recipe, grain: int) -> Iterator[Recipe]:
    known = {recipe}
    for factor in GRAINS:
        wide = _wide(recipe, int(factor * grain))
        if wide not in known:
            yield wide
        known.add(wide)


def _less_free(recipe: Recipe, grain: int) -> Iterator[Recipe]:
    wide = _wide(recipe, grain)
    yield wide
    yield _changed(wide, Reorder, menu="view|constrain")
    agreed = _changed(recipe, Mask, unconstrained="no")
    yield from _coarser(Recipe(tuple(step for step in agreed.steps if not isinstance(step, Loosen))), grain)


def _wide(recipe: Recipe, grain: int) -> Recipe:
    return Recipe(tuple(replace(s, grain=max(s.grain, grain)) if isinstance(s, Mask) else s for s in recipe.steps))


def _changed(recipe: Recipe, kind: type[Mask | Reorder], **options: Any) -> Recipe:
    return Recipe(tuple(replace(step, **options) if isinstance(step, kind) else step for step in recipe.steps))
