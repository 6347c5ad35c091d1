"""What all methods that train towards pruning have in common, of channels (``penalty``) and of ranks (``ranked``).

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
of a step that the scaler skips. Fused optimizers are called with scaled gradients, and for steps to be skipped: then
they are unscaled here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError, RecipeError
from ..ir.facts import Keep, Scores
from ..ir.program import Program
from .options import within
from .positions import Positions, wide

AUTO = "auto"
LISTEN = 4
"""For how many steps the regulariser rests where its strength is to be found."""


class Finished(type):
    """What a method does to the optimizer, it does when its whole constructor has gone through: one that raises leaves
    the optimizer as it was."""

    if not TYPE_CHECKING:  # whose signature would hide those of the constructors

        def __call__(cls, *args, **options):
            made = super().__call__(*args, **options)
            made.enter()
            return made

        @property
        def __signature__(cls):
            """The constructor's, for help()."""
            whole = inspect.signature(cls.__init__)
            return whole.replace(parameters=[*whole.parameters.values()][1:], return_annotation=inspect.Signature.empty)


class Method(nn.Module, metaclass=Finished):
    """A term of the loss over positions (channels, ranks) of the groups of a program. Subclasses say which.

    ``module``: the user's own, that ``program`` was loaded from, be it wrapped by torch.compile or
    DistributedDataParallel. ``strength``: what the regulariser is multiplied by; ``"auto"`` finds it: for the first
    four steps it rests, and then its gradient is ``BESIDE`` times as large as the task's was, of the entries that it
    moves [derived]. Raises ModelError where module and program do not fit, or the optimizer holds no parameter of the
    module.
    """

    BESIDE = 1.0
    """By how much a strength that is found exceeds the task: a quarter for those that stop it from learning else."""

    steps: Tensor
    heard: Tensor
    loudness: Tensor
    found: Tensor
    program: Program
    channels: Positions
    """What it is about."""

    def __init__(
        self,
        program: Program,
        channels: Positions,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        strength: float | str = AUTO,
    ) -> None:
        super().__init__()
        if isinstance(strength, str) and strength != AUTO:
            raise RecipeError(
                f"{type(self).__name__}: `strength` cannot be `{strength}`", f"a number, or `{AUTO}`: by the task"
            )
        if strength != AUTO:
            within(type(self).__name__, "[0, inf)", strength=strength)
        check_trains(optimizer, channels.module, type(self).__name__)
        self.program, self.channels, self.strength = program, channels, strength
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=self.channels.device))
        self.listens = strength == AUTO and type(self).value is not Method.value
        if self.listens:
            self.register_buffer("heard", torch.zeros((), dtype=torch.int64, device=self.channels.device))
            self.register_buffer("loudness", torch.zeros((), device=self.channels.device))
            self.register_buffer("found", torch.zeros((), device=self.channels.device))
        self.optimizer = optimizer
        self._along: list[nn.Parameter] = []
        self._handles: list[Any] = []

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

    # ---- what was learned ------------------------------------------------------------------------

    def importance(self) -> Tensor:
        """Per position, how much it is worth keeping."""
        raise NotImplementedError

    def learned(self) -> Program:
        """The program with the weights as they are now, knowing what was learned: ready for ``gp.compile``."""
        raise NotImplementedError

    def kept(self) -> Tensor | None:
        """Per position, whether the method itself decided to keep it; None where it leaves that to a budget."""
        return None

    @torch.no_grad()
    def scores(self) -> Scores:
        """The fact that ``mask`` reads: the importance, the same on every rank."""
        return Scores(type(self).__name__.lower(), self.channels.arrays(self.importance()))

    @torch.no_grad()
    def keep(self) -> Keep | None:
        """The fact that ``propagate`` reads. No group loses its last position: the most important stays."""
        kept = self.kept()
        if kept is None:
            return None
        chosen, worth = self.channels.split(kept.clone()), self.channels.split(self.importance())
        for name, own in chosen.items():
            if not own.any():
                own[worth[name].argmax()] = 1
        return Keep({name: np.flatnonzero(own.cpu().numpy()) for name, own in chosen.items()})

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
        rate, schedule, momentum and decay. Raises ModelError without an optimizer, and for one that has shared out
        its parameters among ranks already (ZeroRedundancyOptimizer) and would not see this."""
        optimizer = self.need_optimizer()
        inner = getattr(optimizer, "optim", None)  # that of one rank
        if isinstance(inner, torch.optim.Optimizer):
            raise ModelError(
                f"{type(self).__name__} trains parameters of its own, which {type(optimizer).__name__} would leave out",
                f"give a plain {type(inner).__name__}, or a method that has none, such as Catalyst",
            )
        self._along.append(parameter)
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

    def enter(self) -> None:
        """Hook into the optimizer, and have it train what is to be trained along."""
        if self.optimizer is None:
            return
        own = {id(parameter) for parameter in self.tensors().values()}
        groups = self.optimizer.param_groups
        group = next((g for g in groups if any(id(p) in own for p in g["params"])), groups[0])
        for number, parameter in enumerate(self._along):
            group["params"].append(parameter)
            if "param_names" in group:
                group["param_names"].append(f"{type(self).__name__}.{number}")
        kind = type(self)
        if kind.before is not Method.before or self.listens:
            self._handles.append(self.optimizer.register_step_pre_hook(self._called))
        if kind.after is not Method.after:
            self._handles.append(self.optimizer.register_step_post_hook(lambda *_: self._after()))

    def _called(self, _: torch.optim.Optimizer, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """The optimizer's ``step`` was called with these. Raises ModelError for a closure, whose gradients would come
        after they were to be seen."""
        if any(map(callable, (*args[1:], *options.values()))):
            raise ModelError(
                f"{type(self).__name__}: `optimizer.step` was given a closure, whose gradients come too late",
                "call `backward` first, and `optimizer.step()` without one",
            )
        self._before()

    def _skipped(self) -> bool:
        """Whether a GradScaler has a fused optimizer skip this step by itself."""
        return bool(getattr(self.optimizer, "found_inf", 0))

    @torch.no_grad()
    def _before(self) -> None:
        if self._skipped():
            return
        unscale(self.need_optimizer())
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
        if not self._skipped():
            self.after()


def unscale(optimizer: torch.optim.Optimizer) -> None:
    """Divide the gradients by the scale that a GradScaler left to a fused optimizer, which has then nothing to do."""
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(scale.to(parameter.grad.device))
        optimizer.grad_scale = None  # type: ignore[attr-defined]


def check_trains(optimizer: torch.optim.Optimizer | None, module: nn.Module, who: str) -> None:
    """Raise ModelError where the optimizer holds no parameter of the module: its steps would say nothing of it."""
    own = {id(parameter) for parameter in module.parameters()}
    if optimizer is not None and not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ModelError(
            f"{who}: the {type(optimizer).__name__} holds no parameter of this {type(module).__name__}",
            "give the optimizer that trains the module, made after what replaces its parameters (`.to`, a cut)",
        )
