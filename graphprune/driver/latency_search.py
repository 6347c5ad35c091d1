"""To a latency: tables of the target, the knapsack over them, and measurements of the whole that correct it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..allocation.agreed import Settled
from ..allocation.rd import measured_losses
from ..backends.measure import interleave, share
from ..backends.target import Target
from ..cost.budget import amount
from ..cost.latency.model import LatencyModel, points
from ..cost.latency.table import Table
from ..errors import BudgetError
from ..ir.facts import Groups, Losses, Scores
from ..ir.host import Host
from ..ir.program import Program
from ..passes.mask import Mask
from ..pipeline.base import Pass, Progress
from ..pipeline.bypass import Bypass
from ..pipeline.edits import Cut
from ..pipeline.factoring import undecided
from ..pipeline.instrument import Instrument
from ..pipeline.recipe import Recipe
from ..pipeline.run import run
from ..reorder.per_reader import Links
from .measured import NEAR, REACHED

ROUNDS = 4
CLOSE = (NEAR, 1.015)
"""Measured over wanted where the search stops."""


@dataclass(frozen=True)
class Round:
    """One choice of widths: what the model said of it, and what the target did."""

    predicted_ms: float
    measured_ms: float
    importance: float  # the share of all scores that is kept
    loss: float  # what was minimised: the rest of that, or the measured distortions
    program: Program = field(repr=False)


@dataclass(frozen=True)
class Outcome:
    """A program that takes no longer than wanted, and how it was found (plain data, for the report)."""

    program: Program
    facts: Mapping[str, Any]


def has_latency(recipe: Recipe) -> bool:
    return any(isinstance(step, Mask) and step.latency for step in recipe.steps)


def recorded(
    program: Program,
    on: Target,
    mask: Mask,
    *,
    threads: int = 1,
    table: Table | None = None,
    progress: Progress | None = None,
) -> tuple[Table, int]:
    """The target's table with every point that a search over the program needs, and how many of them had
    to be measured. ``table``: that one instead of the cached one. ``program`` knows its Groups."""
    table = Table.cached(on.key(threads)) if table is None else table
    groups = program.fact(Groups)
    menus, ranks = mask.menus(program), undecided(program)
    wanted = points(program.graph, program.host, groups, menus, mask.grain, ranks, _whole(program))
    missing = table.missing(wanted)
    done = 0
    for found in on.time_ops(missing, threads=threads) if missing else ():
        table.add(found)
        done += len(found)
        if progress:
            progress(f"time ops on {on.label}", done, len(missing))
    return table, done


def to_latency(
    program: Program,
    recipe: Recipe,
    on: Target,
    *,
    threads: int = 1,
    table: Table | None = None,
    progress: Progress | None = None,
    instruments: Sequence[Instrument] = (),
    perform: Callable[[Pass, Program], Program] | None = None,
) -> Outcome:
    """Run a recipe whose `mask` has a latency budget so that the result keeps to it on the target, and
    keeps the most importance.

    Widths are chosen by the table; the result is measured in turns with the original; what that says
    corrects the table's sum, and the choice is made anew, at most four times. Where the target cannot be
    timed from here the table alone decides; of a target that is several (``best-cpu``) the one that is
    fastest for the program is searched on. ``perform``: what runs
    the passes before the mask. Raises BudgetError with what can be reached.
    """
    at = next(k for k, step in enumerate(recipe.steps) if isinstance(step, Mask))
    mask = recipe.steps[at]
    assert isinstance(mask, Mask)
    on = on.searched(program, threads=threads)
    if table is None:
        on.time_ops(())  # a target that times none says so before any work is done
    # where a reader's width is its own, so is its cost: what comes before the mask is done once
    scored = run(Recipe((*recipe.steps[:at], *mask.before())), program, progress, instruments, perform)
    if mask.unconstrained != "mixed":
        mask = replace(mask, unconstrained="no")
    table, fresh = recorded(scored, on, mask, threads=threads, table=table, progress=progress)
    blind = on.unmeasured()
    original = None if blind else on.runnable(program, threads=threads)
    whole = interleave({"original": original}, 31, seconds=4.0)["original"].median_ms if original is not None else None
    model = _model(scored, table, whole, on)
    groups = scored.fact(Groups)
    goal, channels = _goal(mask, model), Links(scored.graph, groups.channels).free()
    choosing = replace(channels, groups=(*channels, *groups.gates))
    distortions: Losses | None = None
    if mask.allocate == "rd":  # once for all rounds
        distortions = measured_losses(scored, choosing)
        scored = scored.learn(distortions)
    rounds: list[Round] = []
    seen: list[tuple[dict[str, int], float]] = [({}, model.total_ms({}))]  # where dims were opened no longer the whole
    for number in range(1 if blind else ROUNDS):
        if progress:
            progress(f"latency {mask.latency} on {on.label}", number, ROUNDS)
        first = mask if rounds or blind else _reachable(mask, scored, model, goal)
        try:
            masked = run(Recipe((first,)), scored.learn(model), instruments=instruments)
            chosen = run(Recipe(recipe.steps[at + 1 :]), masked, instruments=instruments)
        except BudgetError:
            if any(one.measured_ms <= REACHED * goal for one in rounds):
                break  # what was corrected says that nothing can do what has been done
            raise
        if masked.knows(Settled):
            scored = scored.learn(masked.fact(Settled))
        counts = _counts(chosen, groups)
        if any(counts == earlier for earlier, _ in seen):
            break
        measured = model.total_ms(counts)
        if original is not None:
            measured = model.whole_ms * share(original, on.runnable(chosen, threads=threads))
        kept = importance(choosing, scored.fact(Scores), counts)
        loss = 1 - kept
        if distortions is not None:
            loss = sum(distortions.losses[group.name][counts[group.name]] for group in choosing)
        rounds.append(Round(model.total_ms(counts), measured, kept, loss, chosen))
        seen.append((counts, measured))
        if CLOSE[0] * goal <= measured <= CLOSE[1] * goal:
            break
        model = model.corrected(seen, goal)
    best = _best(rounds, goal, mask.latency, on)
    facts = {
        "budget": mask.latency,
        "target": on.label,
        "threads": threads,
        "goal_ms": goal,
        "absolute": amount(mask.latency, "latency").absolute,
        "whole_ms": model.whole_ms,
        "predicted_ms": best.predicted_ms,
        "measured_ms": None if blind else best.measured_ms,
        "importance": best.importance,
        "not_measured": blind,
        "rounds": [{k: v for k, v in vars(one).items() if k != "program"} for one in rounds],
        "taken": next(k for k, one in enumerate(rounds) if one is best),
        "spent": len(rounds) == ROUNDS,
        "table": {
            "path": str(table.path or ""),
            "points": sum(map(len, table.points.values())),
            "measured_now": fresh,
        },
        "ops": _ops(model, best, groups, on, threads),
    }
    return Outcome(best.program.note(*filter(None, [table.remark()])), facts)


def _model(scored: Program, table: Table, whole_ms: float | None, on: Target) -> LatencyModel:
    groups = scored.fact(Groups)
    ranks = undecided(scored)
    return LatencyModel.of(scored.graph, scored.host, groups, table, whole_ms, on.label, ranks, _whole(scored))


def _goal(mask: Mask, model: LatencyModel) -> float:
    """Milliseconds. Raises BudgetError where the network takes no more as it is."""
    goal = model.budget_ms(mask.latency)
    if goal >= model.whole_ms:
        raise BudgetError(
            f"latency={mask.latency} is no less than the network takes on {model.target}: {model.whole_ms:.3g} ms",
            "ask for less than that, or for a share: 0.5x",
        )
    return goal


def _whole(program: Program) -> Host | None:
    """What a share of the latency is of, where dims were opened since."""
    edits = program.plan.edits
    return program.source if edits and all(edit.opens for edit in edits) else None


def _reachable(mask: Mask, scored: Program, model: LatencyModel, goal: float) -> Mask:
    """The mask; where the table says that not even the least will do, one that asks for the least: it may well
    take less than the table says, and if not then what it takes is what the user is told."""
    least = model.total_ms({name: counts[0] for name, counts in mask.menus(scored).items()})
    return mask if least <= goal else replace(mask, latency=f"{least * (1 + 1e-6):.9f}ms")


def _counts(program: Program, groups: Groups) -> dict[str, int]:
    """What was kept of every group: everything of the rank of a layer that stays whole."""
    gone = {branch for edit in program.plan.of(Bypass) for branch in edit.branches}
    gates = {gate.name: int(not gone.issuperset(gate.branches)) for gate in groups.gates}
    whole = {group.name: group.size for group in groups.channels}
    return {**whole, **{name: len(kept) for edit in program.plan.of(Cut) for name, kept in edit.keep.items()}, **gates}


def importance(groups: Groups, scores: Scores, counts: Mapping[str, int]) -> float:
    """The share of all scores that the best so many channels of each group have."""
    kept = sum(float(np.sort(scores[g])[::-1][: counts[g.name]].sum()) for g in groups)
    return kept / (sum(float(scores[g].sum()) for g in groups) or 1.0)


def _best(rounds: Sequence[Round], goal: float, text: str, on: Target) -> Round:
    """Of those that reach the goal the one that loses least. Raises BudgetError where none does."""
    reached = [one for one in rounds if one.measured_ms <= REACHED * goal]
    if not reached:
        least = min(one.measured_ms for one in rounds)
        raise BudgetError(
            f"latency={text} was not reached on {on.label}: {goal:.3g} ms wanted, {least:.3g} ms measured "
            f"after {len(rounds)} rounds",
            "raise the budget, lower `floor`, or measure on a quieter machine",
        )
    return min(reached, key=lambda one: one.loss)


def _adding_up(each: Mapping[str, float], whole: float) -> dict[str, float]:
    total = sum(each.values()) or 1.0
    return {name: ms * whole / total for name, ms in each.items()}


def _ops(model: LatencyModel, best: Round, groups: Groups, on: Target, threads: int) -> list[dict[str, Any]]:
    """Every op's latency: in the original and the result, as the table shares the whole out among them, and as the
    target counts it."""
    counts = _counts(best.program, groups)
    before = _adding_up(model.per_op({}), model.whole_ms)
    after = _adding_up(model.per_op(counts), best.predicted_ms)
    measured = {} if on.unmeasured() else on.profile(best.program, threads=threads)
    return [
        {"op": name, "before_ms": before[name], "predicted_ms": after[name], "measured_ms": measured.get(name)}
        for name in after
    ]
