"""Readers that choose for themselves must not make a network slower: where they do, measured, they choose less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..backends.measure import Runnable, share
from ..backends.target import Target
from ..errors import BudgetError
from ..ir.program import Program
from ..passes.loosen import Loosen
from ..passes.mask import Mask
from ..passes.reorder import Reorder
from ..pipeline.base import Pass, Progress
from ..pipeline.instrument import Instrument
from ..pipeline.recipe import Recipe
from ..pipeline.run import run

ALLOWED = 1.02
"""Measured over the original's latency that counts as no slower: what a measurement is uncertain by."""

Measure = Callable[[Program, Program], float]
"""What the second program takes of the first one's time."""


@dataclass(frozen=True)
class Guarded:
    """A program that is no slower than the original, the recipe that made it, and what was measured on the way
    (plain data, for the report)."""

    program: Program
    recipe: Recipe
    facts: Mapping[str, Any]


def chooses(recipe: Recipe) -> bool:
    """Whether readers have channels of their own in it."""
    return any(isinstance(step, Loosen) for step in recipe.expanded().steps)


def guarded(
    program: Program,
    done: Program,
    recipe: Recipe,
    on: Target,
    *,
    threads: int = 1,
    progress: Progress | None = None,
    measure: Measure | None = None,
    instruments: Sequence[Instrument] = (),
) -> Guarded:
    """``done``, what ``recipe`` made of ``program``, if the target measures it at most 2 % slower; else the first
    that is of: the same with widths that the target likes, with no copies (readers take all, and multiply the
    rest by zero), and with readers that agree. The fastest where all are slower."""
    ratio = partial(measure, program) if measure else _timed(on.runnable(program, threads=threads), on, threads)
    tried = [(ratio(done), recipe, done)]
    for text in _milder(recipe, on.grain) if tried[0][0] > ALLOWED else ():
        if progress:
            progress(f"no slower than it was on {on.label}", len(tried), 3)
        try:
            made = run(text, program, progress, instruments)
        except BudgetError:  # not within the budget at these widths
            continue
        tried.append((ratio(made), text, made))
        if tried[-1][0] <= ALLOWED:
            break
    best = tried[-1] if tried[-1][0] <= ALLOWED else min(tried, key=lambda one: one[0])
    rounds = [{"recipe": text.text(), "share": round(taken, 4)} for taken, text, _ in tried]
    facts = {"target": on.label, "share": round(best[0], 4), "tried": rounds}
    return Guarded(best[2], best[1], facts)


def _timed(original: Runnable, on: Target, threads: int) -> Callable[[Program], float]:
    return lambda made: share(original, on.runnable(made, threads=threads))


def _milder(recipe: Recipe, grain: int) -> Iterator[Recipe]:
    def changed(mask: Callable[[Mask], Pass], order: Callable[[Reorder], Pass]) -> Recipe:
        steps = (mask(s) if isinstance(s, Mask) else order(s) if isinstance(s, Reorder) else s for s in recipe.steps)
        return Recipe(tuple(steps))

    def wide(mask: Mask) -> Mask:
        return replace(mask, grain=max(mask.grain, grain))

    yield changed(wide, lambda order: order)
    yield changed(wide, lambda order: replace(order, menu="view|constrain"))
    agreed = changed(lambda mask: replace(wide(mask), unconstrained="no"), lambda order: order)
    yield Recipe(tuple(step for step in agreed.steps if not isinstance(step, Loosen)))
