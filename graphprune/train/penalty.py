"""Methods over the channels of a program's groups: see ``method`` for the loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, RecipeError, nearest
from ..hosts.torch.export import unwrapped
from ..ir.facts import Frozen, Groups
from ..ir.program import Program
from ..pipeline.recipe import Recipe
from ..pipeline.run import run
from .channels import Channels, parameters
from .method import AUTO, Method


class Penalty(Method):
    """A term of the loss over the channels of a program's groups. See Method for ``module`` and ``strength``.

    ``over``: see Channels. The groups are those that the program knows (after
    ``gp.run("group{...}", program)``), or all.
    """

    over = "writers"
    """Which slices make up a channel, where the caller does not say."""

    exact = False
    """Whether groups that anything untrained reads are left whole: it would read on what has no part any more."""

    channels: Channels

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        strength: float | str = AUTO,
        over: str | None = None,
    ) -> None:
        check_trainable(program)
        if not program.knows(Groups):
            program = run(Recipe.parse("group"), program)
        program = self._of_use(program, module)
        super().__init__(program, Channels(program, module, over or self.over), optimizer, strength=strength)

    def weights(self) -> dict[str, nn.Parameter]:
        """Every trained parameter of the program with two axes or more: the weights, each once."""
        found = parameters(self.program, self.channels.module)
        names = {parameter: name for name, parameter in reversed(found.items()) if parameter.ndim > 1}
        return {name: parameter for parameter, name in reversed(names.items())}

    def importance(self) -> Tensor:
        """Per channel, how much it is worth keeping."""
        return self.channels.norms()

    @torch.no_grad()
    def learned(self) -> Program:
        """The program with the weights as they are now, knowing the Scores and, where the method decides
        itself, the Keep: ready for ``gp.compile`` or for ``gp.run("mask{...},propagate", ...)``."""
        recipe = next((step.text for step in self.program.history if step.name == "group"), "group")
        module = self.channels.module
        fresh = self._of_use(run(Recipe.parse(recipe), current(self.program, module)), module)
        fresh = fresh.learn(self.scores()).note(f"channels were scored in training, by {type(self).__name__}")
        keep = self.keep()
        return fresh.learn(keep) if keep is not None else fresh

    def _of_use(self, program: Program, module: nn.Module) -> Program:
        """The program with the groups that this can train."""
        program = masked_by_zeros(program)
        return read_by_trained(program, module, type(self).__name__) if self.exact else program


def check_trainable(program: Program) -> None:
    """Raise ModelError where the program is none of torch."""
    if not program.host.trainable:
        raise ModelError("training needs a torch program", "load it from an nn.Module")


def current(program: Program, module: nn.Module) -> Program:
    """The program with copies of the weights that the module has now, as a program of its own."""
    host: Any = program.host.copy()
    host.own()
    inputs = [node.meta.get("val") for node in host.model.graph.nodes if node.op == "placeholder"]
    devices = {value.device for value in inputs if isinstance(value, torch.Tensor)}
    model = host.model.to(*devices) if len(devices) == 1 else host.model
    tensors = unwrapped(module).state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in tensors:
                tensor.copy_(tensors[name].detach())
    return replace(program.afresh(), host=host, source=host, facts={}, notes=())


def shares_of(keep: float | Mapping[str, float], names: Iterable[str], who: str) -> dict[str, float]:
    """``keep`` as one share a name. Raises RecipeError for what is not a share, or not a name."""
    names = list(names)
    shares = {name: float(keep) for name in names} if isinstance(keep, (int, float)) else dict(keep)
    for name, share in shares.items():
        if name not in names:
            raise RecipeError(f"{who}: `keep` names `{name}`, which is not there", nearest(name, names))
        if not 0 < share <= 1:
            raise RecipeError(f"{who}: keep={share} is not a share", "say what remains, above 0 and up to 1")
    return {name: shares.get(name, 1.0) for name in names}


def stays_first(stays: Tensor, norms: Tensor) -> Tensor:
    """The norms, with all that goes (zero in ``stays``) below all that stays (one); float64, so that none that differ
    become alike."""
    wide = norms.double()
    return stays + wide / (2 * wide.max()).clamp_min(torch.finfo(wide.dtype).tiny)


WEIGHED = "a softmax or top-k weighs it against others, where zeros are no mask: training leaves it whole"


def masked_by_zeros(program: Program) -> Program:
    """The program without the groups that zeros in a module do not mask, with a note."""
    weighed = program.graph.weighed
    return _without(program, {group.name: WEIGHED for group in program.fact(Groups) if group.dim in weighed})


def read_by_trained(program: Program, module: nn.Module, who: str) -> Program:
    """The program without the groups that anything reads which the module does not train, with a note of each. Raises
    ModelError where none is left."""
    live, groups = parameters(program, module), program.fact(Groups)
    whole = {}
    for group in groups.channels:
        fixed = next((one.parameter for one in group.members if one.zeroed and one.parameter not in live), None)
        if fixed is not None:
            whole[group.name] = f"`{fixed}`, which is not trained, would read it on: training leaves it whole"
    if whole and len(whole) == len(groups.channels.groups):
        name, why = next(iter(whole.items()))
        raise ModelError(f"{who}: no group is left to train; `{name}`: {why}", "have what reads it require gradients")
    return _without(program, whole)


def _without(program: Program, whole: Mapping[str, str]) -> Program:
    """The program with these groups, each with its reason, frozen."""
    if not whole:
        return program
    groups = program.fact(Groups)
    rest = tuple(group for group in groups if group.name not in whole)
    frozen = (*groups.frozen, *(Frozen(g.name, g.size, whole[g.name]) for g in groups if g.name in whole))
    program = program.learn(replace(groups, groups=rest, frozen=frozen))
    for reason in dict.fromkeys(whole.values()):
        program = program.note(f"`{'`, `'.join(name for name, own in whole.items() if own == reason)}`: {reason}")
    return program
