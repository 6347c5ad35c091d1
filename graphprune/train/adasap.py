"""AdaSAP: sharpness-aware steps that perturb the unimportant most, so that losing them hurts least (Bair et
al., Adaptive Sharpness-Aware Pruning, 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ir.program import Program
from .options import within
from .penalty import Penalty
from .positions import wide


class AdaSAP(Penalty):
    """Channel i is perturbed along its gradient by a radius between ``low`` and ``high``, the greater the
    smaller its norm is among its group's [derived: linear in the norm between the group's extremes].

        task(module(x), y).backward()
        with penalty.perturbed():            # zeroes the gradients, moves the weights, moves them back
            task(module(x), y).backward()
        optimizer.step()

    There is no term in the loss: ``penalty()`` is zero. Along a gradient that overflowed (under a GradScaler) nothing
    is moved. A part of the paper: its first step, the training before the cut; the cut itself is the compiler's.
    """

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        low: float = 0.01,
        high: float = 0.1,
        **options: Any,
    ) -> None:
        within("AdaSAP", "[0, inf)", low=low)
        within("AdaSAP", f"[{low}, inf)", high=high)
        super().__init__(program, module, optimizer, **options)
        self.low, self.high = low, high

    def radii(self) -> Tensor:
        """Per channel, how far it is moved."""
        out = []
        for own in self.channels.split(self.channels.norms().detach()).values():
            place = (own - own.min()) / (own.max() - own.min()).clamp_min(1e-12)
            out.append(self.high - (self.high - self.low) * place)
        return torch.cat(out)

    def perturbed(self) -> Perturbed:
        return Perturbed(self)


class Perturbed:
    """The weights at the worst point nearby, for the length of a with block."""

    def __init__(self, penalty: AdaSAP) -> None:
        self.penalty = penalty
        self.old: dict[str, Tensor] = {}

    @torch.no_grad()
    def __enter__(self) -> None:
        channels = self.penalty.channels
        live = channels.tensors()
        gradients = {name: _direction(parameter) for name, parameter in live.items()}
        lengths = channels.norms(gradients)
        factors = channels.mask(self.penalty.radii() / lengths.clamp_min(1e-12))
        self.old = {name: parameter.clone() for name, parameter in live.items()}
        for name, parameter in live.items():
            parameter.add_((gradients[name] * factors[name]).to(parameter.dtype))
        for parameter in channels.module.parameters():
            parameter.grad = None

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for name, parameter in self.penalty.channels.tensors().items():
            parameter.copy_(self.old[name])


def _direction(parameter: nn.Parameter) -> Tensor:
    """The gradient, zero where there is none or it overflowed; at least float32, for factors of half precision do."""
    if parameter.grad is None:
        return torch.zeros_like(wide(parameter))
    return wide(parameter.grad).masked_fill(~parameter.grad.isfinite(), 0)
