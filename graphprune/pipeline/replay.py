"""Do to a model what a plan did to its source, as a cut or as a mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..coupling.groups import find_groups
from ..errors import RecipeError
from ..ir.facts import Keep, Order
from ..ir.graph import Site
from ..ir.host import Host
from ..ir.program import Program
from .base import passes
from .correction import Correction, correct
from .recipe import Recipe
from .run import run_pass


def replay(plan: Mapping[str, Any], host: Host, *, masked: bool = False) -> Program:
    """Do to ``host`` what ``plan`` did to its source, with nothing measured again.

    ``masked``: instead of cutting, zero what reads a channel that is not kept; the result computes
    what the cut network computes, in the original shapes.
    """
    program = Program(host=host, source=host)
    if masked and "parameters" in plan:  # all cuts at once: they name positions of the original axes
        program = program.rewrite(_mask(program, plan["parameters"]))
    for step in plan.get("steps", ()):
        if "reindex" in step:
            program = program.rewrite(opened(program.host, step["reindex"]), step)
        elif "keep" in step:
            program = program if masked else _replay_cut(step, program)
        elif "bias" in step:
            shapes = plan.get("parameters", {}) if masked else None
            program = program.rewrite(correct(program, Correction.read(step), shapes), step)
        elif not masked:  # every other edit (fold) must not change what is computed
            program = run_pass(Recipe.parse(step["pass"]).steps[0], program)
    return program


def opened(host: Host, sites: Iterable[Any]) -> Host:
    """A copy of the host with a ``reindex`` op at every site: a Site, or its fields as a plan lists them."""
    host = host.copy()
    for site in sites:
        host.insert_reindex(site if isinstance(site, Site) else Site(*site))
    return host


def original(program: Program) -> Host:
    """The model as it was given, with the sites that its plan opened: what the groups of the plan are
    groups of."""
    sites = [site for step in program.plan.get("steps", ()) for site in step.get("reindex", ())]
    return opened(program.source, sites) if sites else program.source


def _replay_cut(step: Mapping[str, Any], program: Program) -> Program:
    import numpy as np

    groups = find_groups(program.graph, normalised=True)
    unknown = sorted(set(step["keep"]) - {group.name for group in groups})
    if unknown:
        raise RecipeError(
            f"the plan keeps channels of `{unknown[0]}`, which this model does not have", "is it the same model?"
        )
    for group in groups:
        kept = step["keep"].get(group.name, [])
        if kept and max(kept) >= group.size:
            raise RecipeError(
                f"the plan keeps channel {max(kept)} of `{group.name}`, which has {group.size}", "is it the same model?"
            )
    lists = {part: {name: np.asarray(at, np.intp) for name, at in step.get(part, {}).items()} for part in _LISTS}
    order = Order(step.get("sinks", {}))
    program = program.learn(groups).learn(Keep(**lists)).learn(order)
    cut = passes()[Recipe.parse(step["pass"]).steps[0].name]
    return run_pass(cut(), program)


_LISTS = ("keep", "blank")


def _mask(program: Program, parameters: Mapping[str, Any]) -> Host:
    """A copy of the program's host in which every reader slice that the plan does not keep is zero."""
    import numpy as np

    host = program.host.copy()
    for name, axes in parameters.items():
        for axis, entry in axes.items():
            if entry["role"] == "reader":
                size = program.graph.parameters[name].shape[int(axis)]  # type: ignore[index]
                drop = np.union1d(np.setdiff1d(np.arange(size), entry["keep"]), entry.get("blank", [])).astype(np.intp)
                if len(drop):
                    host.zero(name, int(axis), drop)
    return host
