"""A cut must not make a network slower: where it does, measured, widths are such as the target likes, and readers that
choose for themselves choose less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..backends.measure import Runnable, share
from ..backends.target import Target
from ..errors import BudgetError
from ..ir.facts import Latency
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


def slower(times: Mapping[str, Latency]) -> bool:
    """Whether what is ``after`` takes longer than what was ``before``, beyond what the measurements spread."""
    before, after = times["before"], times["after"]
    return after.median_ms - ALLOWED * before.median_ms > max(before.spread_ms, after.spread_ms)


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
    perform: Callable[[Pass, Program], Program] | None = None,
) -> Guarded:
    """``done``, what ``recipe`` made of ``program``, if the target measures it at most 2 % slower; else the first
    that is of: the same with widths that the target likes, twice and four times as coarse; where readers choose for
    themselves with widths that it likes, with no copies (readers take all, and multiply the
    rest by zero), and with readers that agree. The fastest where all are slower."""
    ratio = partial(measure, program) if measure else _timed(on.runnable(program, threads=threads), on, threads)
    tried = [(ratio(done), recipe, done)]
    milder = _less_free(recipe, on.grain) if chooses(recipe) else _coarser(recipe, on.grain)
    for text in milder if tried[0][0] > ALLOWED else ():
        if progress:
            progress(f"no slower than it was on {on.label}", len(tried), 3)
        try:
            made = run(text, program, progress, instruments, perform)
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


def _coarser(recipe: Recipe, grain: int) -> Iterator[Recipe]:
    known = recipe
    for factor in (1, 2, 4):
        wide = _wide(recipe, factor * grain)
        if wide != known:
            yield wide
        known = wide


def _less_free(recipe: Recipe, grain: int) -> Iterator[Recipe]:
    wide = _wide(recipe, grain)
    yield wide
    yield _changed(wide, Reorder, menu="view|constrain")
    agreed = _changed(wide, Mask, unconstrained="no")
    yield Recipe(tuple(step for step in agreed.steps if not isinstance(step, Loosen)))


def _wide(recipe: Recipe, grain: int) -> Recipe:
    return Recipe(tuple(replace(s, grain=max(s.grain, grain)) if isinstance(s, Mask) else s for s in recipe.steps))


def _changed(recipe: Recipe, kind: type[Mask | Reorder], **options: Any) -> Recipe:
    return Recipe(tuple(replace(step, **options) if isinstance(step, kind) else step for step in recipe.steps))
