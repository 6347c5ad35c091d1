"""Several ways to a budget: whichever result is nearest to the original on samples that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..backends.target import Target
from ..calibration.held_back import ONE_IN
from ..errors import BudgetError, GraphpruneError, ModelError, RecipeError
from ..ir.host import Batch
from ..ir.program import Program
from ..passes.group import Group
from ..passes.mask import Mask
from ..passes.propagate import Propagate
from ..passes.reorder import Reorder
from ..pipeline.recipe import Recipe
from ..reorder.copy_costs import PRICES
from ..reorder.per_reader import unopened
from .closeness import closeness

Made = tuple[Recipe, tuple[Program, Mapping[str, Any]]]
"""A recipe, what it made, and the facts of the search for the latency."""


def nearest(
    program: Program, ways: Mapping[str, Callable[[], Made]], judged: Sequence[Batch]
) -> tuple[str, Made, Mapping[str, Any]]:
    """Of the ways by name the one whose result changes the outputs least on ``judged``, what it made, and plain data
    for the report: by name the recipe and its change, or why it cannot. One alone is not judged. Where none can, raises
    what the first raised, saying what each did; RecipeError for several where nothing was held back."""
    if len(ways) == 1:
        ((name, way),) = ways.items()
        return name, way(), {}
    if not judged:
        raise RecipeError(
            f"{len(ways)} recipes are compared on samples held back, and there are none",
            f"give data, {ONE_IN} samples or more; or one recipe",
        )
    made, told, refused = dict[str, Made](), dict[str, Any](), list[GraphpruneError]()
    for name, way in ways.items():
        try:
            made[name] = way()
        except (BudgetError, ModelError, RecipeError) as error:
            refused.append(error)
            told[name] = {"error": error.message}
        else:
            steps, (done, _) = made[name]
            told[name] = {"recipe": steps.text(), "change": distance(program, done, judged)}
    if not made:
        refused[0].message = "; ".join(f"`{name}`: {one['error']}" for name, one in told.items())
        raise refused[0]
    best = min(made, key=lambda name: told[name]["change"])
    return best, made[best], {"taken": best, "recipes": told}


def readers(
    program: Program, first: Made, on: Target, judged: Sequence[Batch], attempt: Callable[[Recipe], Any]
) -> Made:
    """``first``, in which readers agree, or what the same recipe makes with readers that choose where that pays on the
    target: whichever changes the outputs less on ``judged``, with both in the facts. Where no reader shares channels,
    or nobody knows what selections cost there, ``first``."""
    recipe, (_, facts) = first
    freer = _freer(recipe, on)
    if not (freer and judged and facts.get("measured_ms")) or not _shared(program, recipe):
        return first
    try:
        made = freer, attempt(freer)
    except BudgetError:  # their selections alone take too long
        return first
    both = [first, made]
    change = [distance(program, one, judged) for _, (one, _) in both]
    steps, (best, found) = both[change.index(min(change))]
    contenders = [{"recipe": one.text(), "change": far} for (one, _), far in zip(both, change, strict=True)]
    return steps, (best, {**found, "contenders": contenders})


def distance(source: Program, result: Program, judged: Sequence[Batch]) -> float:
    """How far the outputs are from the original's, the mean over outputs: ||a - b|| / ||a||, of integers the share of
    entries that are others."""
    outputs = closeness(source, result, judged)["outputs"]
    each = [one["relative"] if one["relative"] is not None else 1 - (one["same"] or 0.0) for one in outputs]
    return sum(each) / max(1, len(each))


def _freer(recipe: Recipe, on: Target) -> Recipe | None:
    """The recipe with readers that choose where it pays; None where the target has no prices of selections, or masks
    name widths and layers that are to stay alike."""
    masks = [step for step in recipe.steps if isinstance(step, Mask)]
    if on.name not in PRICES or any(mask.width or mask.alike != "no" for mask in masks):
        return None
    steps: list[Any] = []
    for step in recipe.steps:
        if isinstance(step, Mask):
            step = replace(step, unconstrained="mixed", target=on.name)
        if isinstance(step, Propagate):
            steps.append(Reorder(target=on.name))
        steps.append(step)
    return Recipe(tuple(steps))


def _shared(program: Program, recipe: Recipe) -> bool:
    """Whether some channels have several readers."""
    return any(isinstance(step, Group) and unopened(step.run(program)) for step in recipe.steps)
