"""Run the passes of a recipe, one after the other; after every edit the graph is read and checked anew."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Self

from ..cost.static import params, weights_bytes
from ..errors import GraphpruneError, RecipeError, ShapeError
from ..ir.document import Entry
from ..ir.gc_paused import paused
from ..ir.graph import around_named
from ..ir.large import released
from ..ir.program import Edit, Parameters, Program, Step
from .ahead import Ahead
from .base import Pass, Progress, passes
from .border import checked, left_alone, sound
from .fingerprint import fingerprint
from .instrument import Instrument
from .recipe import Recipe, make

_LIST = re.compile(r"(=[^|\s}]+)((?:\|[^|\s}]+){4,})")
DATA_WORK = 20
"""What a pass that reads calibration data takes of the whole, where one that does not takes 1."""


@dataclass(frozen=True)
class Begun:
    """A fact for ``run``: what the first passes of recipes made of a program, with the data that it has. A recipe that
    begins with the same passes goes on from there, so that many recipes of one beginning share it."""

    steps: tuple[Pass, ...]
    program: Program


def run(
    recipe: Recipe,
    program: Program,
    progress: Progress | None = None,
    instruments: Sequence[Instrument] = (),
    perform: Callable[[Pass, Program], Program] | None = None,
) -> Program:
    """Check the whole recipe, then run it; after every edit the graph is read and checked anew. See ``Begun``.
    ``perform``: what runs a pass instead of ``run_pass``."""
    recipe.check(known=program.facts, has_data=bool(program.data))
    asked, given = program.progress, program
    program = sound(program, "the program was given with", program.facts)
    steps = recipe.expanded().steps
    if program.knows(Begun) and steps[: len((begun := program.fact(Begun)).steps)] == begun.steps:
        program, steps = begun.program.reporting(asked), steps[len(begun.steps) :]
    works = [DATA_WORK if step.wants_data() and program.data else 1 for step in steps]
    for number, step in enumerate(steps):
        if progress:
            before, whole = sum(works[:number]), sum(works)
            progress(step.text(), before, whole)
            program = program.reporting(_part(progress, before, works[number], whole))
        for one in instruments:
            one.before(step, program)
        program = (perform or run_pass)(step, program.learn(Ahead(steps[number + 1 :])))
        released(weights_bytes(program.graph), step.rewrites)
        for one in instruments:
            one.after(step, program, program.history[-1].seconds)
    if progress:
        progress("done", sum(works), sum(works))
    program = program.forget(Ahead)
    if program.host is not given.host:
        program.host.own()
    return _named(program, given).reporting(asked)


def _part(progress: Progress, before: int, work: int, whole: int) -> Progress:
    """What a pass tells of itself, as its part of the whole recipe, which never falls."""
    furthest = before

    def told(what: str, done: int, total: int) -> None:
        nonlocal furthest
        furthest = max(furthest, before + work * done // max(total, 1))
        progress(what, furthest, whole)

    return told


def _named(program: Program, given: Program) -> Program:
    """The program with the fingerprint of its source in the plan, where something was done."""
    if not program.plan.edits or program.plan.fingerprint:
        return program
    source = given if given.host is program.source else Program(host=program.source, source=program.source)
    return program.planned(replace(program.plan, fingerprint=fingerprint(source)))


def run_pass(step: Pass, program: Program) -> Program:
    """Run one pass and record it. An error gains the names of the passes already run."""
    start = time.perf_counter()
    host, before = program.host, len(program.plan.edits)
    try:
        for need in step.needs:
            program.fact(need)
        late = next((edit.by for edit in program.plan.edits if not edit.opens), None) if step.opens else None
        if late is not None:
            raise RecipeError(
                f"`{step.name}` rewrites the model as it was given, and `{late}` has changed it",
                f"put it before `{late}`",
            )
        with nullcontext() if step.wants_data() else paused(), left_alone(step, program):
            made = step.run(program)
            program = checked(step, program, made)
            graph = program.graph  # read anew after an edit: structure and rule sizes are checked here
            size = int(params(graph, program.host)())
    except GraphpruneError as error:
        if isinstance(error, ShapeError) and error.around is None:
            error.around = around_named(program.graph, error.message)
        done = [_brief(made.text) for made in program.history]
        after = f" after `{','.join(done)}`" if done else ""
        error.message = f"in `{_brief(step.text())}`{after}: {error.message}"
        raise
    if program.host is not host and len(program.plan.edits) == before:
        program = program.did(Rewrite.of(step))
    program = program.planned(program.plan.signed(before, step.text()))
    seconds = time.perf_counter() - start
    return program.ran(Step(step.name, step.options(), step.text(), seconds, len(graph.ops), size))


def _brief(text: str) -> str:
    """A pass as an error names it: of a long list of names the first."""
    return _LIST.sub(lambda found: f"{found[1]}|... {found[2].count('|')} more", text)


@dataclass(frozen=True)
class Rewrite(Edit):
    """A pass that needs no facts and no data, run again: what it does must not change what is computed."""

    kind = "rewrite"

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, step: Pass) -> Self:
        return cls(step.name, step.changed())

    @property
    def opens(self) -> bool:
        kind = passes().get(self.name)
        return kind is not None and kind.opens

    def apply(self, program: Program) -> Program:
        done = run_pass(make(self.name, self.options), program)
        since = len(program.plan.edits)
        return done.planned(replace(done.plan, edits=(*done.plan.edits[:since], self)))

    def masked(self, program: Program, cut: Parameters) -> Program:
        return self.apply(program) if self.opens else program

    def content(self) -> dict[str, Any]:
        return {"name": self.name, "options": dict(self.options)}

    @classmethod
    def read(cls, entry: Entry) -> Self:
        parts = entry.table(("name", "options"))
        options = {name: option.plain() for name, option in parts["options"].items()}
        with entry.reading():
            step = make(parts["name"].text(), options)
        if not step.rewrites or step.needs or step.wants_data():
            raise entry.error(f"`{step.text()}` is no pass that can be run again by itself")
        return cls.of(step)
