"""Do to a model what a plan did to its source, as a cut or as a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np

from ..axes.dim import Dim, find
from ..axes.index import Index, Indices, coordinates
from ..coupling.groups import everything
from ..errors import GraphpruneError, RecipeError
from ..ir.facts import Group, Groups
from ..ir.host import Host
from ..ir.program import Axis, Edit, Parameters, Plan, Program
from .fingerprint import fingerprint
from .plan_reader import as_plan


def replay(plan: Mapping[str, Any], host: Host, *, masked: bool = False) -> Program:
    """Do to ``host`` what ``plan`` did to its source, with nothing measured again.

    ``masked``: instead of cutting, zero what reads a channel that is not kept; the result computes
    what the cut network computes, in the original shapes. Raises RecipeError where the plan is none, or not
    one of this model.
    """
    made = as_plan(plan)
    return replayed(made, opened(made, Program(host=host, source=host)), masked)


def opened(plan: Plan, program: Program) -> Program:
    """The program after the edits before any cut, which change nothing that is computed."""
    for number, edit in enumerate(_first(plan)):
        with _at(number):
            program = edit.apply(program)
    return program


def _first(plan: Plan) -> list[Edit]:
    return list(takewhile(lambda edit: edit.opens, plan.edits))


@contextmanager
def _at(number: int) -> Iterator[None]:
    """Which step of a plan cannot be done."""
    try:
        yield
    except RecipeError as error:
        error.message = f"steps[{number}]: {error.message}"
        raise


def replayed(plan: Plan, program: Program, masked: bool = False) -> Program:
    """The rest of the plan, done to what its first edits ``opened``."""
    if masked:  # all cuts at once: they name positions of the axes that were opened
        program = program.rewrite(_zeroed(program, plan.parameters))
    start = len(_first(plan))
    for number, edit in enumerate(plan.edits[start:], start):
        with _at(number):
            program = edit.masked(program, plan.parameters) if masked else edit.apply(program)
    program.host.own()
    return program


def apply_plan(plan: Plan, host: Host, *, allow_other_weights: bool = False) -> Program:
    """``replay`` for a plan that comes from anywhere. Raises RecipeError where it does not fit the model in
    every part, or was made from other weights; ``allow_other_weights`` lets pass what has no weights that were
    fitted to those."""
    given = Program(host=host, source=host)
    if not plan.openings:
        check_parameters(given, plan.parameters)
    weights = fingerprint(given)
    notes = _admitted(plan, weights, allow_other_weights)
    try:
        given = opened(plan, given)
        check_parameters(given, plan.parameters)
        done = replayed(plan, given)
    except RecipeError:
        raise
    except GraphpruneError as error:
        raise RecipeError(f"the plan does not fit the model: {error.message}", error.hint) from error
    _compare(plan.parameters or done.plan.parameters, done.plan.parameters, given)
    same = replace(plan, parameters=plan.parameters or done.plan.parameters, fingerprint=weights)
    return done.planned(same).note(*notes)


def _admitted(plan: Plan, weights: str, allow_other: bool) -> tuple[str, ...]:
    """What is to be noted of the weights that a plan is applied to. Raises RecipeError for wrong ones."""
    if plan.fingerprint == weights or not plan.edits:
        return ()
    if not plan.fingerprint:
        return ("the plan does not say which weights it was made from, as of version 1: that was not checked",)
    apart = f"the plan was made from other weights ({plan.fingerprint[:15]}, here {weights[:15]})"
    if any(edit.fitted for edit in plan.edits):
        raise RecipeError(
            f"{apart}, and has weights that were fitted to those: here they are wrong",
            "apply it to the model that it was made from, or compile this one with the same recipe",
        )
    if not allow_other:
        raise RecipeError(
            f"{apart}, whose channels it chose",
            "apply it to the model that it was made from; `--allow-other-weights` (allow_other_weights=True) "
            "keeps the same channels of this one",
        )
    return ("the plan was made from other weights: those chose the channels",)


def _compare(said: Parameters, made: Parameters, given: Program) -> None:
    """What a plan says of parameters is what its edits made of them. Raises RecipeError."""
    for name in sorted({*said, *made}):
        shape = given.graph.parameters[name].shape or ()
        for axis in {**said.get(name, {}), **made.get(name, {})}:
            whole: Axis = {"role": "carrier", "keep": list(range(int(shape[int(axis)])))}
            one, other = (each.get(name, {}).get(axis, whole) for each in (said, made))
            if any(one.get(part, []) != other.get(part, []) for part in ("keep", "blank")):
                raise RecipeError(
                    f"the plan's `parameters` and `steps` disagree: what is left of axis {axis} of `{name}`",
                    "plan.json is one whole: `steps` are what is done",
                )


def _zeroed(program: Program, parameters: Parameters) -> Host:
    """A copy of the program's host in which every reader slice that the plan does not keep is zero, and what the plan
    does not keep is minus infinity where it is weighed against others."""
    check_parameters(program, parameters)
    host = program.host.copy()
    for name, axes in parameters.items():
        for axis, entry in axes.items():
            if entry["role"] == "reader":
                size = program.graph.parameters[name].shape[int(axis)]  # type: ignore[index]
                drop = np.union1d(np.setdiff1d(np.arange(size), entry["keep"]), entry.get("blank", [])).astype(np.intp)
                if len(drop):
                    host.zero(name, int(axis), drop)
    if program.graph.choices:
        left = Index(kept_of(everything(program.graph), parameters))
        for choice in program.graph.choices:
            if left.touches(choice.dim):
                drop = np.setdiff1d(np.arange(find(choice.dim).size), left(choice.dim))
                host.exclude(choice.op, choice.axis, drop)
    return host


def kept_of(
    groups: Groups, parameters: Parameters, among: Callable[[Group], bool] = lambda group: True
) -> dict[Dim, Indices]:
    """What a plan's ``parameters`` keep of groups of channels."""
    keep: dict[Dim, Indices] = {}
    for group in filter(among, groups.channels):
        first = group.members[0]
        entry = parameters.get(first.parameter, {}).get(str(first.axis))
        if entry is not None:
            at = coordinates(first.dim, group.dim)[entry["keep"]]
            keep[group.dim] = np.array(list(dict.fromkeys(at[at >= 0].tolist())), np.intp)
    return keep


def check_parameters(program: Program, parameters: Parameters) -> None:
    """Whether the model has every axis that the plan kept something of. Raises RecipeError."""
    hint, known = "is it the same model?", program.graph.parameters
    for name, axes in parameters.items():
        if name not in known:
            raise RecipeError(f"the plan cuts `{name}`, which this model does not have", hint)
        shape = known[name].shape or ()
        for axis, entry in axes.items():
            if int(axis) >= len(shape):
                raise RecipeError(f"the plan cuts axis {axis} of `{name}`, which has {len(shape)} axes", hint)
            size = shape[int(axis)]
            if isinstance(size, int) and max(entry["keep"]) >= size:
                raise RecipeError(f"the plan keeps {max(entry['keep'])} of axis {axis} of `{name}`, of {size}", hint)
