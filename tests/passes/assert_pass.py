"""What every test of a pass checks: the exact text before and after, the proof, what is computed, and that a
second run changes nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from textwrap import dedent
from typing import Any, Literal

import numpy as np

import graphprune as gp
from graphprune.axes.index import coordinates
from graphprune.ir.facts import Groups, Keep, Order, Scores
from graphprune.ir.host import Array, Host
from graphprune.ir.program import Program
from graphprune.pipeline.base import Pass
from graphprune.pipeline.compare import relative
from graphprune.pipeline.fingerprint import digests
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import run_pass

TOLERANCE = {"torch": 1e-12, "onnx": 1e-5}  # relative; these networks are float64 on the torch host


def assert_pass(
    recipe: str,
    program: Program,
    *,
    before: str,
    after: str,
    equals: Literal["before", "masked", "original"] = "before",
    again: bool = True,
) -> Program:
    """The program after one pass, which has been found to do what it says.

    ``before``: the graph as text. ``after``: the graph as text where the pass rewrites, else the facts that it
    gives, the graph being what it was. Indentation does not count.

    ``equals``: whose outputs it has, at a tight tolerance: those of the program ``before``; of that with zeros
    in what reads a channel that goes (``masked``); of the ``original`` model. A pass that gives a Keep is
    followed by the cut first, unless it equals the program before in every weight.

    ``again``: run a second time, it changes nothing.
    """
    step = Recipe.parse(recipe).steps[0]
    _same_text(graph_text(program), before)
    given = digests(program)
    done = run_pass(step, program)
    assert digests(program) == given, "it changed the model that it was given"
    _same_text(result(step, done), after)
    if not step.rewrites:
        _same_text(graph_text(done), before)
        _same_weights(program.host, done.host)
    cut = run_pass(Recipe.parse("propagate").steps[0], done) if equals != "before" and Keep in step.gives else done
    if cut.plan.get("steps"):
        assert all(check.error <= check.tolerance for check in gp.verify(cut))
    _same_outputs(_reference(equals, program, done), cut.host)
    if again:
        twice = run_pass(step, done)
        assert result(step, twice) == result(step, done), "a second run changes something"
        _same_weights(done.host, twice.host)
    return done


# ---- text --------------------------------------------------------------------------------------------


def result(step: Pass, done: Program) -> str:
    """What a pass made: the graph, or the facts that it gives."""
    if step.rewrites:
        return graph_text(done)
    return "\n".join(TEXT[kind](done.fact(kind)) for kind in step.gives if kind in TEXT)


def graph_text(program: Program) -> str:
    """The graph, with weights by name and open sizes alike, so that both hosts say the same."""
    lines = re.sub(r"\bs\d+x", "Nx", program.graph.text()).splitlines()
    weights = sorted(line for line in lines if line.startswith("weight"))
    ends = [k for k, line in enumerate(lines) if line.startswith("weight")]
    return "\n".join([*lines[: ends[0]], *weights, *lines[ends[-1] + 1 :]])


def _groups(groups: Groups) -> str:
    lines = []
    for group in groups:
        members = sorted((member.role, str(member)) for member in group.members)
        lines += [f"{group.name}: {group.size} channels", *(f"    {role:<7} {axis}" for role, axis in members)]
    return "\n".join([*lines, *(f"{dim.name}: {dim.size} frozen, {dim.reason}" for dim in groups.frozen)])


def _scores(scores: Scores) -> str:
    return _lists(f"score by {scores.by}", {name: [f"{x:.3f}" for x in score] for name, score in scores.scores.items()})


def _keep(keep: Keep) -> str:
    lines = [_lists("keep", keep.keep)]
    return "\n".join([*lines, _lists("blank", keep.blank)] if keep.blank else lines)


def _order(order: Order) -> str:
    takers = [taker for part in order.segments for taker in part["takers"]]
    return "\n".join(f"{t['op']}: {t['how']}" for t in takers)


def _lists(what: str, lists: Mapping[str, Any]) -> str:
    return "\n".join(f"{what} {name}: {' '.join(map(str, values))}" for name, values in lists.items())


TEXT: Mapping[type, Any] = {Groups: _groups, Scores: _scores, Keep: _keep, Order: _order}


def _same_text(found: str, wanted: str) -> None:
    assert found.strip().splitlines() == dedent(wanted).strip().splitlines(), f"it is\n{found}"


# ---- what is computed ----------------------------------------------------------------------------------


def _reference(equals: str, program: Program, done: Program) -> Host:
    if equals == "original":
        return program.source
    if equals == "masked":
        return masked(program if program.knows(Keep) and not done.knows(Keep) else done)
    return program.host


def masked(program: Program) -> Host:
    """A copy of the host with zeros wherever a weight reads a channel that is not kept, or is blank."""
    keep, host = program.fact(Keep), program.host.copy()
    for group in program.fact(Groups).gates:
        for member in group.members if not len(keep.keep.get(group.name, [0])) else ():
            host.zero(member.parameter, member.axis, np.arange(host.parameter(member.parameter).shape[member.axis]))
    for group in program.fact(Groups).channels:
        stay = np.setdiff1d(keep.keep.get(group.name, np.arange(group.size)), keep.blank.get(group.name, ()))
        for member in group.members:
            if member.zeroed:
                at = coordinates(member.dim, group.dim)
                host.zero(member.parameter, member.axis, np.flatnonzero((at >= 0) & ~np.isin(at, stay)))
    return host


def _same_outputs(a: Host, b: Host) -> None:
    rng = np.random.default_rng(0)
    drawn = ((x, rng.standard_normal(x.shape).astype(x.dtype)) for x in a.example())
    batch = [x if x.dtype.kind in "iu" else other for x, other in drawn]  # whole numbers are positions of something
    for mine, theirs in zip(a.run(batch), b.run(batch), strict=True):
        assert np.abs(mine).max() > 0.1, "an output of zeros is equal to too much"
        assert relative(mine, theirs) <= TOLERANCE[a.kind]


def _same_weights(a: Host, b: Host) -> None:
    mine, theirs = _weights(a), _weights(b)
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


def _weights(host: Host) -> dict[str, Array]:
    return {name: host.parameter(name) for name in host.lift().parameters}
