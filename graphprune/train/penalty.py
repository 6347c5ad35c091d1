"""What every method that trains towards pruning has in common.

    program = gp.load(module, inputs)
    penalty = gp.train.Catalyst(program, module, optimizer)
    ...
        loss = task(module(x), y) + penalty()
        loss.backward()
        optimizer.step()
        penalty.step()
    artifact = gp.compile(penalty.learned(), macs="0.5x")

``penalty`` is an nn.Module without the user's module in it: ``state_dict`` and ``load_state_dict`` save and
resume what it knows. Whatever must see or change gradients hooks into ``optimizer.step``, so it sees them
accumulated, averaged over the ranks of DistributedDataParallel and unscaled by a GradScaler, and sees nothing
of a step that the scaler skips.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError, RecipeError, nearest
from ..hosts.torch.export import unwrapped
from ..ir.facts import Frozen, Groups, Keep, Scores
from ..ir.program import Plan, Program
from ..pipeline.recipe import Recipe
from ..pipeline.run import run
from .channels import Channels, parameters, wide

AUTO = "auto"
LISTEN = 4
"""For how many steps the regulariser rests where its strength is to be found."""


class Penalty(nn.Module):
    """A term of the loss over the channels of a program's groups. Subclasses say which.

    ``module``: the user's own, that ``program`` was loaded from, be it wrapped by torch.compile or
    DistributedDataParallel. ``strength``: what the regulariser is multiplied by; ``"auto"`` finds it: for the first
    four steps it rests, and then its gradient is ``BESIDE`` times as large as the task's was, of the entries that it
    moves [derived].
    ``over``: see Channels. The groups are those that the program knows (after
    ``gp.run("group{...}", program)``), or all. Raises ModelError where module and program do not fit.
    """

    over = "writers"
    """Which slices make up a channel, where the caller does not say."""

    BESIDE = 1.0
    """By how much a strength that is found exceeds the task: a quarter for those that stop it from learning else."""

    steps: Tensor
    heard: Tensor
    loudness: Tensor
    found: Tensor

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        strength: float | str = AUTO,
        over: str | None = None,
    ) -> None:
        super().__init__()
        if not program.host.trainable:
            raise ModelError("training needs a torch program", "load it from an nn.Module")
        if not program.knows(Groups):
            program = run(Recipe.parse("group"), program)
        self.program = program = masked_by_zeros(program)
        if isinstance(strength, str) and strength != AUTO:
            raise RecipeError(
                f"{type(self).__name__}: `strength` cannot be `{strength}`", f"a number, or `{AUTO}`: by the task"
            )
        self.strength = strength
        self.channels = Channels(program, module, over or self.over)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=self.channels.device))
        self.listens = strength == AUTO and type(self).value is not Penalty.value
        if self.listens:
            self.register_buffer("heard", torch.zeros((), dtype=torch.int64, device=self.channels.device))
            self.register_buffer("loudness", torch.zeros((), device=self.channels.device))
            self.register_buffer("found", torch.zeros((), device=self.channels.device))
        self.optimizer = optimizer
        self._handles: list[Any] = []
        if optimizer is not None:
            self._watch(optimizer)

    # ---- in the loop -----------------------------------------------------------------------------

    def forward(self) -> Tensor:
        """The term to add to the task's loss: ``weight()`` times ``value()``."""
        with torch.autocast(self.channels.device.type, enabled=False):
            return self.weight() * self.value()

    def weight(self) -> float:
        """How much the regulariser counts at this step. Raises ModelError where that is to be found through the
        optimizer and none was given."""
        if self.listens:
            if self.optimizer is None:
                raise ModelError(
                    f"{type(self).__name__} finds its strength through the optimizer",
                    "give it as the third argument, or a number as `strength`",
                )
            return float(self.found)
        return 0.0 if isinstance(self.strength, str) else self.strength

    def value(self) -> Tensor:
        """The regulariser, differentiable."""
        return torch.zeros((), device=self.channels.device)

    @torch.no_grad()
    def step(self) -> None:
        """Call once after every ``optimizer.step()``."""
        self.steps += 1

    def before(self, gradients: Mapping[str, Tensor]) -> None:
        """Called before the optimizer moves anything; gradients may be changed in place."""

    def after(self) -> None:
        """Called when the optimizer has moved the parameters."""

    def tensors(self) -> dict[str, nn.Parameter]:
        """The parameters that this is about, each once."""
        return self.channels.tensors()

    def weights(self) -> dict[str, nn.Parameter]:
        """Every trained parameter of the program with two axes or more: the weights, each once."""
        found = parameters(self.program, self.channels.module)
        names = {parameter: name for name, parameter in reversed(found.items()) if parameter.ndim > 1}
        return {name: parameter for parameter, name in reversed(names.items())}

    # ---- what was learned ------------------------------------------------------------------------

    def importance(self) -> Tensor:
        """Per channel, how much it is worth keeping."""
        return self.channels.norms()

    def kept(self) -> Tensor | None:
        """Per channel, whether the method itself decided to keep it; None where it leaves that to a budget."""
        return None

    @torch.no_grad()
    def scores(self) -> Scores:
        """The fact that ``mask`` reads: the importance, the same on every rank."""
        return Scores(type(self).__name__.lower(), self.channels.arrays(self.importance()))

    @torch.no_grad()
    def keep(self) -> Keep | None:
        """The fact that ``propagate`` reads. No group loses its last channel: the most important stays."""
        kept = self.kept()
        if kept is None:
            return None
        chosen, worth = self.channels.split(kept.clone()), self.channels.split(self.importance())
        for name, own in chosen.items():
            if not own.any():
                own[worth[name].argmax()] = 1
        return Keep({name: np.flatnonzero(own.cpu().numpy()) for name, own in chosen.items()})

    @torch.no_grad()
    def learned(self) -> Program:
        """The program with the weights as they are now, knowing the Scores and, where the method decides
        itself, the Keep: ready for ``gp.compile`` or for ``gp.run("mask{...},propagate", ...)``."""
        recipe = next((step.text for step in self.program.history if step.name == "group"), "group")
        fresh = masked_by_zeros(run(Recipe.parse(recipe), current(self.program, self.channels.module)))
        fresh = fresh.learn(self.scores()).note(f"channels were scored in training, by {type(self).__name__}")
        keep = self.keep()
        return fresh.learn(keep) if keep is not None else fresh

    # ---- state -----------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, int]:
        return {group.name: group.size for group in self.channels.groups}

    def set_extra_state(self, state: dict[str, int]) -> None:
        mine = self.get_extra_state()
        if state != mine:
            name = next(name for name in (*mine, *state) if mine.get(name) != state.get(name))
            raise ModelError(
                f"the saved state has {state.get(name, 'no')} channels of `{name}`, "
                f"this network {mine.get(name, 'none')}",
                "resume with the network that it was saved with",
            )

    def train_along(self, parameter: nn.Parameter) -> nn.Parameter:
        """Have the optimizer train ``parameter`` just as it trains the module's own: the same learning
        rate, schedule, momentum and decay. Raises ModelError without an optimizer."""
        optimizer = self.need_optimizer()
        own = {id(part.parameter) for part in self.channels.parts}
        groups = optimizer.param_groups
        group = next((g for g in groups if any(id(p) in own for p in g["params"])), groups[0])
        group["params"].append(parameter)
        if "param_names" in group:
            group["param_names"].append(f"{type(self).__name__}.{len(list(self.parameters()))}")
        return parameter

    def need_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer. Raises ModelError where none was given."""
        if self.optimizer is None:
            raise ModelError(f"{type(self).__name__} works through the optimizer", "give it as the third argument")
        return self.optimizer

    def remove(self) -> None:
        """Take everything out of the optimizer again: hooks, and the parameters that only this trains."""
        for handle in self._handles:
            handle.remove()
        own = {id(parameter) for parameter in self.parameters()}
        for group in self.optimizer.param_groups if self.optimizer else ():
            kept = [k for k, p in enumerate(group["params"]) if id(p) not in own]
            for key in ("params", "param_names"):
                if key in group:
                    group[key] = [group[key][k] for k in kept]
        for parameter in self.parameters():
            if self.optimizer is not None:
                self.optimizer.state.pop(parameter, None)

    def _watch(self, optimizer: torch.optim.Optimizer) -> None:
        kind = type(self)
        if kind.before is not Penalty.before or self.listens:
            self._handles.append(optimizer.register_step_pre_hook(lambda *_: self._before()))
        if kind.after is not Penalty.after:
            self._handles.append(optimizer.register_step_post_hook(lambda *_: self._after()))

    @torch.no_grad()
    def _before(self) -> None:
        found = {name: p.grad for name, p in self.tensors().items()}
        self.before({name: grad for name, grad in found.items() if grad is not None})
        if self.listens and not self.found:
            self._listen()

    def _listen(self) -> None:
        """Compare what the task alone asks of what the regulariser moves with what that asks."""
        moved = [p for p in (*self.channels.module.parameters(), *self.parameters()) if p.grad is not None]
        with torch.enable_grad(), torch.autocast(self.channels.device.type, enabled=False):
            value = self.value()
            asked = torch.autograd.grad(value, moved, allow_unused=True) if value.requires_grad else ()
        pairs = [(p.grad, own) for p, own in zip(moved, asked, strict=False) if own is not None and p.grad is not None]
        self.loudness += sum(float(wide(task)[own != 0].square().sum()) for task, own in pairs) ** 0.5
        self.heard += 1
        size = sum(float(wide(own).square().sum()) for _, own in pairs) ** 0.5
        if int(self.heard) >= LISTEN and size > 0:  # where it is flat there is nothing to compare yet
            self.found.copy_(self.BESIDE * self.loudness / self.heard / size)

    @torch.no_grad()
    def _after(self) -> None:
        self.after()


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
    return replace(program, host=host, source=host, facts={}, history=(), plan=Plan(), notes=())


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


WEIGHED = "a softmax or top-k weighs it against others, where zeros are no mask: training leaves it whole"


def masked_by_zeros(program: Program) -> Program:
    """The program without the groups that zeros in a module do not mask, with a note."""
    groups, weighed = program.fact(Groups), program.graph.weighed
    whole = [group for group in groups if group.dim in weighed]
    if not whole:
        return program
    rest = tuple(group for group in groups if group not in whole)
    frozen = (*groups.frozen, *(Frozen(group.name, group.size, WEIGHED) for group in whole))
    program = program.learn(replace(groups, groups=rest, frozen=frozen))
    return program.note(f"`{'`, `'.join(group.name for group in whole)}`: {WEIGHED}")
