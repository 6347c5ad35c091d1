"""Rate and distortion: what the network's outputs lose when one group alone keeps k channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from ..calibration.activations import Walk
from ..calibration.optimal_brain_surgeon import in_turn
from ..errors import RecipeError
from ..ir.facts import Group, Groups, Losses, Scores
from ..ir.host import Array
from ..ir.program import Program
from .agreed import Settled, agreed
from .choice import Counts, Menu, choose, trade
from .measured import Measured, kinds
from .problem import Allocation

SHARES = (0.25, 0.5, 0.75)
"""The shares of each group's channels at whose removal the outputs are looked at."""
SHARED = 0.5
"""A group's distortion counts times the number of layers that read it to this power. Distortions of a group that
many layers read do not add with those of the others: what one reader loses the next cannot lean on. Derived, and
a compromise: with 0 the residual streams of a ResNet look cheap one at a time and are not; 1 keeps too much of a
DenseNet's (docs/benchmarks.md, "Accuracy without training")."""


def rd(problem: Allocation) -> Counts:
    """The least distortion of the outputs, measured group by group.

    The choice with the least total distortion, by what was measured of each group alone: exact where
    the cost adds over groups (a channels budget), traded where it does not. See ``losses``. Where there are branches or
    ranks beside other groups, choices are measured as a whole, see agreed, unless an earlier one has Settled it."""
    problem.check()
    if problem.program.knows(Settled):
        settled = problem.program.fact(Settled)
        problem.remarks.append(settled.told)
        return _chosen(problem, settled.losses)
    each = problem.everyone({group.name: problem.menu(group) for group in problem.groups})
    measured = Measured.of(problem.program, problem.each) if len(kinds(problem.program, problem.groups)) > 1 else None
    menus = losses(problem.program, problem.each, each, measured)
    for name, same in problem.alike.items():  # what all of them lose
        menus[name] = {count: sum(menus[one][count] for one in (name, *(g.name for g in same))) for count in each[name]}
    menus = {group.name: menus[group.name] for group in problem.groups}
    choose = partial(_chosen, problem)
    return choose(menus) if measured is None else agreed(problem, menus, choose, measured)


def _chosen(problem: Allocation, menus: Mapping[str, Menu]) -> Counts:
    if problem.unit == "channels":
        return choose(menus, {name: {k: float(k) for k in menu} for name, menu in menus.items()}, problem.budget)
    return trade(menus, problem.prices, problem.budget, problem.tables)


def losses(
    program: Program, groups: Groups, menus: Mapping[str, Sequence[int]], measured: Measured | None = None
) -> dict[str, dict[int, float]]:
    """Per group and count of its menu the distortion, see ``distortions``; of groups that many layers read it
    weighs more, see SHARED. Measured where the program does not know its Losses."""
    known = program.fact(Losses) if program.knows(Losses) else measured_losses(program, groups, measured)
    if lacking := next((name for name in menus if name not in known.losses), None):
        raise RecipeError(
            f"the Losses that are known have none of `{lacking}`", "measured they are where none are known"
        )
    return {name: {count: known.losses[name][count] for count in counts} for name, counts in menus.items()}


def measured_losses(program: Program, groups: Groups, measured: Measured | None = None) -> Losses:
    """At every count. Of a branch it is what the network loses without it, repaired."""
    curves = distortions(program, groups, program.fact(Scores), SHARES, measured)
    found = dict[str, dict[int, float]]()
    for group in groups:
        readers = 1 if group.branches else len({m.parameter for m in group.members if m.role == "reader"}) or 1
        found[group.name] = {count: readers**SHARED * loss for count, loss in curves[group.name].items()}
    return Losses(found)


def distortions(
    program: Program,
    groups: Groups,
    scores: Scores,
    shares: Sequence[float] = SHARES,
    measured: Measured | None = None,
) -> dict[str, dict[int, float]]:
    """Per group, the output distortion d(k) of keeping the k best channels, only that group pruned: the
    mean squared change of the outputs over calibration data, as a share of their variance.

    Measured at a few k, and of branches without them, with what ``compensate`` will repair in other layers repaired in
    one, see Repaired; between those, d follows the readers' own error, which costs no run. Distortions of different
    groups add, nearly (Xu et al. 2023, one-shot layer-wise rate-distortion theory).
    """
    measured = measured or Measured.of(program, groups)
    repaired, curves = measured.repaired, dict[str, dict[int, float]]()
    first = {group.name: repaired.first(group.name) for group in groups}
    with Walk(program.host, program.graph, measured.batches, edited=False) as walk:
        for number, group in enumerate(sorted(groups, key=lambda group: first[group.name])):
            program.progress("distortions", number, len(groups))
            order, known = np.argsort(scores[group], kind="stable"), walk.live(first[group.name])
            lost = measured.along(group.name, order, _stops(group, shares), known)
            repaired.forget()
            if group.branches:
                curves[group.name] = {0: lost[1], 1: 0.0}
            else:
                curves[group.name] = _curve(in_turn(repaired.problems[group.name], order.tolist()), lost, group.size)
    return {group.name: curves[group.name] for group in groups}


def _stops(group: Group, shares: Sequence[float]) -> list[int]:
    """How many channels go where it is measured."""
    if group.branches:
        return [1]
    return sorted({min(max(round(share * group.size), 1), group.size - 1) for share in shares} - {0})


def _curve(costs: Array, measured: Mapping[int, float], size: int) -> dict[int, float]:
    """d(k) for k = 1..size: the readers' error, brought to what was measured at the stops."""
    removed = np.arange(size)
    local = np.concatenate([[0.0], np.cumsum(np.maximum(costs, 0))])[:size]
    if len(local) < size or not measured or not local[-1] > 0:  # nothing that can be fitted reads it
        local = removed / size
    stops = sorted(measured)
    if not stops:
        return {size: 0.0}
    ratio = [measured[stop] / max(local[stop], 1e-300) for stop in stops]
    loss = np.maximum.accumulate(local * np.interp(removed, stops, ratio))
    return {int(size - gone): float(loss[gone]) for gone in removed}
