"""Do to a model what a plan did to its source, as a cut or as a mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import RecipeError
from ..ir.host import Host
from ..ir.program import Parameters, Program
from .plan_reader import as_plan


def replay(plan: Mapping[str, Any], host: Host, *, masked: bool = False) -> Program:
    """Do to ``host`` what ``plan`` did to its source, with nothing measured again.

    ``masked``: instead of cutting, zero what reads a channel that is not kept; the result computes
    what the cut network computes, in the original shapes. Raises RecipeError where the plan is none, or not
    one of this model.
    """
    plan = as_plan(plan)
    program = Program(host=host, source=host)
    if masked:  # all cuts at once: they name positions of the original axes
        program = program.rewrite(_zeroed(program, plan.parameters))
    for edit in plan.edits:
        program = edit.masked(program, plan.parameters) if masked else edit.apply(program)
    return program


def _zeroed(program: Program, parameters: Parameters) -> Host:
    """A copy of the program's host in which every reader slice that the plan does not keep is zero."""
    check_parameters(program, parameters)
    host = program.host.copy()
    for name, axes in parameters.items():
        for axis, entry in axes.items():
            if entry["role"] == "reader":
                size = program.graph.parameters[name].shape[int(axis)]  # type: ignore[index]
                drop = np.union1d(np.setdiff1d(np.arange(size), entry["keep"]), entry.get("blank", [])).astype(np.intp)
                if len(drop):
                    host.zero(name, int(axis), drop)
    return host


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
