"""Prune on while the objective holds, else roll back and take smaller steps (Zhao, Jain and Zhao, Adaptive
Activation-based Structured Pruning, 2022, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import BudgetError, RecipeError
from ..ir.program import Program

Attempt = Callable[[Program, float], Program]
Objective = Callable[[Program], bool]


def roll_back(
    program: Program, attempt: Attempt, holds: Objective, *, step: float = 0.1, least: float = 0.0125
) -> Program:
    """The smallest program found for which ``holds`` is true; ``program`` itself where none is.

    ``attempt(program, share)`` cuts to ``share`` of what was given, and trains; what it was given stays as it was, as
    with every recipe. ``holds(program)`` is the user's objective: an accuracy that must be kept, or a size not yet
    reached. From a whole one the share falls by ``step`` each time; where the objective does not hold, or the budget
    cannot be met, the last program that held is tried again with half of the step, until that is under ``least``; no
    share under ``least`` is tried.

    [derived] The paper moves a threshold on the mean of activations (``score{by=aap}``); here the share left moves, for
    any criterion.

        def attempt(program, share):
            cut = gp.run(f"group,score{{by=aap}},mask{{macs={share}x of=given}},propagate", program, data=...)
            ...                                                  # train cut.model
            return cut
    """
    if not 0 < least <= step < 1:
        raise RecipeError(
            f"roll_back: step={step}, least={least}", "shares of the whole, the least no more than the step"
        )
    share = 1.0
    while step >= least:
        wanted = round(share - step, 12)  # decimal steps, without what their sums gather
        tried = _tried(program, attempt, wanted) if wanted >= least else None
        if tried is not None and holds(tried):
            program, share = tried, wanted
        else:
            step /= 2
    return program


def _tried(program: Program, attempt: Attempt, share: float) -> Program | None:
    try:
        return attempt(program, share)
    except BudgetError:  # floors and grains: there is nothing so small
        return None
