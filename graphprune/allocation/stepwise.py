"""Branches one at a time, measured again after each."""

from __future__ import annotations

from dataclasses import replace

from ..errors import RecipeError
from ..ir.facts import Scores
from ..ir.program import Program
from ..pipeline.bypass import Bypass
from ..pipeline.recipe import Recipe
from .choice import Counts
from .problem import Allocation


def stepwise(problem: Allocation) -> Counts:
    """Branches one after the other, measured again after each (FinerCut, 2024).

    Without the branch of the least score, then of the least score in what is left, until the budget is met
    (FinerCut, Zhang et al. 2024, algorithm 1). The passes that found and scored the branches run again after each.

    Raises RecipeError for channels, and for scores that no pass makes again.
    """
    groups, scores = problem.groups, problem.scores
    if groups.channels:
        raise RecipeError("`mask{allocate=stepwise}` takes branches alone", "say `branches{alone=true}`")
    if not (groups.made and scores.made):
        raise RecipeError(
            "`mask{allocate=stepwise}` scores again after each branch, and nothing says how",
            "run `group`, `branches` and `score` in one recipe",
        )
    problem.check()
    counts = {group.name: 1 for group in groups}
    left = {group.name: group for group in groups}
    worth = {group.name: float(scores[group][0]) for group in groups}
    gone: list[str] = []
    while problem.price(counts) > problem.budget:
        problem.program.progress("branches", len(gone), len(groups))
        name = min(worth, key=worth.__getitem__)
        gone.append(name)
        counts[name] = 0
        if problem.price(counts) <= problem.budget:
            break
        again = _without(problem, gone)
        found = again.fact(Scores).scores
        worth = {name: float(found[name][0]) for name in found if name in left and counts[name]}
        if not worth:
            raise problem.cannot(problem.price(counts))
    return counts


def _without(problem: Allocation, gone: list[str]) -> Program:
    """The program without branches, its groups found and scored anew."""
    chosen = [group for group in problem.groups if group.name in gone]
    branches = tuple(dict.fromkeys(branch for group in chosen for branch in group.branches))
    program = Bypass(branches).apply(replace(problem.program, facts={}))
    for step in Recipe.parse(f"{problem.groups.made},{problem.scores.made}").steps:
        program = step.run(program)
    return program
