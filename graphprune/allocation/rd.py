"""Rate and distortion: what the network's outputs lose when one group alone keeps k channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..axes.index import coordinates
from ..calibration.activations import Walk
from ..calibration.batches import some
from ..calibration.curvature import Curvature, covariances, curvature
from ..calibration.optimal_brain_surgeon import Problem, in_turn, problems
from ..calibration.outputs import compared, distortion
from ..coupling.contractions import contractions
from ..criteria.branches import output
from ..errors import RecipeError
from ..ir.facts import Group, Groups, Losses, Scores
from ..ir.host import Array, Host
from ..ir.program import Program
from .choice import Counts, choose, trade
from .problem import Allocation

SHARES = (0.25, 0.5, 0.75)
"""The shares of each group's channels at whose removal the outputs are looked at."""
SAMPLES, SAMPLES_BYTES = 32, 1 << 22
"""At most so many samples of the data, and no further batch once they take so much."""
SHARED = 0.5
"""A group's distortion counts times the number of layers that read it to this power. Distortions of a group that
many layers read do not add with those of the others: what one reader loses the next cannot lean on. Derived, and
a compromise: with 0 the residual streams of a ResNet look cheap one at a time and are not; 1 keeps too much of a
DenseNet's (docs/benchmarks.md, "Accuracy without training")."""


def rd(problem: Allocation) -> Counts:
    """The least distortion of the outputs, measured group by group.

    The choice with the least total distortion, by what was measured of each group alone: exact where
    the cost adds over groups (a channels budget), traded where it does not. See ``losses``."""
    problem.check()
    each = problem.everyone({group.name: problem.menu(group) for group in problem.groups})
    menus = losses(problem.program, problem.each, each)
    for name, same in problem.alike.items():  # what all of them lose
        menus[name] = {count: sum(menus[one][count] for one in (name, *(g.name for g in same))) for count in each[name]}
    menus = {group.name: menus[group.name] for group in problem.groups}
    if problem.unit == "channels":
        return choose(menus, {name: {k: float(k) for k in menu} for name, menu in menus.items()}, problem.budget)
    return trade(menus, problem.prices, problem.budget, problem.tables)


def losses(program: Program, groups: Groups, menus: Mapping[str, Sequence[int]]) -> dict[str, dict[int, float]]:
    """Per group and count of its menu the distortion, see ``distortions``; of groups that many layers read it
    weighs more, see SHARED. Measured where the program does not know its Losses."""
    known = program.fact(Losses) if program.knows(Losses) else measured_losses(program, groups)
    if lacking := next((name for name in menus if name not in known.losses), None):
        raise RecipeError(
            f"the Losses that are known have none of `{lacking}`", "measured they are where none are known"
        )
    return {name: {count: known.losses[name][count] for count in counts} for name, counts in menus.items()}


def measured_losses(program: Program, groups: Groups) -> Losses:
    """At every count. Of a branch it is what the network loses without it."""
    channels = groups.channels
    curves = distortions(program, channels, program.fact(Scores)) if channels else {}
    found = {group.name: {0: lost, 1: 0.0} for group, lost in output(program, groups.gates)} if groups.gates else {}
    for group in channels:
        readers = len({member.parameter for member in group.members if member.role == "reader"}) or 1
        found[group.name] = {count: readers**SHARED * loss for count, loss in curves[group.name].items()}
    return Losses(found)


def distortions(
    program: Program, groups: Groups, scores: Scores, shares: Sequence[float] = SHARES
) -> dict[str, dict[int, float]]:
    """Per group, the output distortion d(k) of keeping the k best channels, only that group pruned: the
    mean squared change of the outputs over calibration data, as a share of their variance.

    Measured at a few k with what reads the group fitted to the rest by least squares (as ``compensate``
    will); between those, d follows the readers' own error, which costs no run. Distortions of different
    groups add, nearly (Xu et al. 2023, one-shot layer-wise rate-distortion theory).
    """
    readings = _curvature(program)
    batches = some(program.data, program.graph.inputs, SAMPLES, SAMPLES_BYTES)
    outputs = compared(program.graph)
    place = {op.name: k for k, op in enumerate(program.graph.ops)}
    first = {group.name: min(_readers(program, group, place), default=0) for group in groups}
    curves: dict[str, dict[int, float]] = {}
    with Walk(program.host, program.graph, batches, edited=False) as walk:
        whole = [program.host.watch(batch, outputs) for batch in batches]
        for number, group in enumerate(sorted(groups, key=lambda group: first[group.name])):
            program.progress("distortions", number, len(groups))
            order = np.argsort(scores[group], kind="stable")
            own = problems(group, readings)
            stops = sorted({min(max(round(share * group.size), 1), group.size - 1) for share in shares} - {0})
            known = list(walk.live(first[group.name]))
            host, moved = program.host.copy(), dict[str, Array]()
            measured = {}
            for stop in stops:  # what goes only grows, so that one copy serves all
                _leave_out(program, host, group, order[:stop], own, readings, moved)
                seen = [host.watch(b, outputs, live) for b, live in zip(batches, known, strict=True)]
                measured[stop] = distortion(whole, seen)
            costs = in_turn(own, order.tolist())
            curves[group.name] = _curve(costs, measured, group.size)
    return {group.name: curves[group.name] for group in groups}


def _curvature(program: Program) -> Curvature:
    if program.knows(Curvature):
        return program.fact(Curvature)
    found = contractions(program.graph, own=True)
    sums = covariances(found, program.host, program.data, program.seed)
    return curvature(found, program.graph, program.host, sums)


def _readers(program: Program, group: Group, place: Mapping[str, int]) -> Iterator[int]:
    mine = {member.parameter for member in group.members if member.role == "reader"}
    for op in program.graph.ops:
        if any(value is not None and value.name in mine for value in op.inputs):
            yield place[op.name]


def _leave_out(
    program: Program,
    host: Host,
    group: Group,
    gone: Array,
    found: Sequence[Problem],
    curvature: Curvature,
    moved: dict[str, Array],
) -> None:
    """Take channels from ``host``, a copy of the program's: what reads them is fitted to the rest, with biases that
    keep the mean, or has zeros in their place. ``moved``: by op name, what was added to biases so far."""
    fitted: dict[str, list[Problem]] = {}
    for problem in found:
        fitted.setdefault(problem.layer.op.name, []).append(problem)
    for name, parts in fitted.items():
        reading = curvature.readings[name]
        layer, scale = reading.layer, reading.scale
        matrix = layer.flat_matrix(program.host)
        changed = matrix.copy()
        for problem in parts:
            live = scale[problem.part] > 0
            weight = problem.without(gone.tolist()).T / np.where(live, scale[problem.part], 1)[:, None]
            changed[problem.part][live] = weight[live]
        change = ((matrix - changed) @ reading.mean[:, :, None]).ravel()
        tensor = host.parameter(layer.weight)
        host.set_parameter(layer.weight, layer.tensor(changed, tensor.shape).astype(tensor.dtype))
        host.add_bias(layer.op, change - moved.get(name, 0.0))
        moved[name] = change
    weights = {parts[0].layer.weight for parts in fitted.values()}
    for member in group.members:
        if member.across or (member.role == "reader" and member.parameter not in weights):
            drop = np.flatnonzero(np.isin(coordinates(member.dim, group.dim), gone))
            host.zero(member.parameter, member.axis, drop)


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
