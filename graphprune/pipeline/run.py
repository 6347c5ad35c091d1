"""Run the passes of a recipe, one after the other; after every edit the graph is read and checked anew."""

from __future__ import annotations

import time

from ..cost.static import params
from ..errors import GraphpruneError
from ..ir.program import Program, Step
from .base import Pass, Progress
from .recipe import Recipe


def run(recipe: Recipe, program: Program, progress: Progress | None = None) -> Program:
    """Check the whole recipe, then run it; after every edit the graph is read and checked anew."""
    recipe.check(known=program.facts, has_data=bool(program.data))
    asked = program.progress
    program = program.reporting(progress) if progress else program
    for number, step in enumerate(recipe.steps):
        if progress:
            progress(step.text(), number, len(recipe.steps))
        program = run_pass(step, program)
    if progress:
        progress("done", len(recipe.steps), len(recipe.steps))
    return program.reporting(asked)


def run_pass(step: Pass, program: Program) -> Program:
    """Run one pass and record it. An error gains the names of the passes already run."""
    start = time.perf_counter()
    before = len(program.plan.get("steps", ()))
    try:
        program = step.run(program)
        graph = program.graph  # read anew after an edit: structure and rule sizes are checked here
    except GraphpruneError as error:
        done = [made.text for made in program.history]
        error.message = f"in `{step.text()}`" + (f" after `{','.join(done)}`" if done else "") + f": {error.message}"
        raise
    for made in program.plan.get("steps", ())[before:]:
        made["pass"] = step.text()
    seconds = time.perf_counter() - start
    size = int(params(graph, program.host)())
    return program.ran(Step(step.name, step.options(), step.text(), seconds, len(graph.ops), size))
