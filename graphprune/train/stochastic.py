"""Annealed stochastic masks: every channel is there with a learned probability, ever more surely.

The concrete relaxation (Maddison et al., 2017; Louizos et al., 2018): m = sigmoid((logit + noise) / T), with
logistic noise, T falling to ``cold`` over ``total_steps``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ir.program import Program
from .gated import Gated


class StochasticMasks(Gated):
    """R = n (MACs left without the noise - ``target``)^2 for n channels in all: each feels a pull that does
    not depend on n, and it is the compiled network that meets the target when T is low. The noise is of
    ``seed`` and the step, so every rank draws the same, and a resumed run what it would have drawn."""

    noise: Tensor

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        total_steps: int,
        target: float = 0.5,
        strength: float = 1.0,
        warm: float = 1.0,
        cold: float = 0.1,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(program, module, optimizer, strength=strength, **options)
        self.total_steps, self.target, self.warm, self.cold, self.seed = total_steps, target, warm, cold, seed
        like = self.channels.norms().detach()
        self.logits = self.train_along(nn.Parameter(torch.full_like(like, 2.0)))
        self.register_buffer("noise", torch.zeros_like(like))
        self._draw()
        self.begin()

    def gates(self) -> Tensor:
        return torch.sigmoid((self.logits + self.noise) / self.temperature())

    def temperature(self) -> float:
        done = min(int(self.steps) / self.total_steps, 1.0)
        return float(self.warm * (self.cold / self.warm) ** done)

    def value(self) -> Tensor:
        left = self.macs(torch.sigmoid(self.logits / self.temperature()))
        return self.channels.total * (left - self.target).square()

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        self._draw()
        self.impose()

    def _draw(self) -> None:
        """Logistic noise, none once the time is over."""
        if int(self.steps) >= self.total_steps:
            self.noise.zero_()
            return
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.steps))
        uniform = torch.rand(len(self.noise), generator=rng).clamp(1e-6, 1 - 1e-6)
        self.noise.copy_(torch.logit(uniform))

    def importance(self) -> Tensor:
        return torch.sigmoid(self.logits.detach())
