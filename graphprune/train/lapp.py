"""LAPP: a learned threshold for every group, under a cost (Learned layer-wise adaptive pruning)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ir.program import Program
from .gated import Gated
from .method import AUTO


class LAPP(Gated):
    """m_i = sigmoid((||g_i|| / mean norm - t) / T) with one threshold t a group, and R = (MACs left -
    ``target``)^2.

    [derived] Norms relative to their group's mean, so that one start and one temperature T fit all. T falls from
    ``temperature`` to ``cold`` over ``total_steps``, geometrically, where that is given; else it rests.

    A part of the paper: the light bypass around each layer, which it trains along to keep information flowing and
    then folds away, is not here.
    """

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        target: float = 0.5,
        strength: float | str = AUTO,
        temperature: float = 0.1,
        cold: float = 0.01,
        total_steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(program, module, optimizer, strength=strength, **options)
        self.target, self.temperature = target, temperature
        self.cold, self.total_steps = cold, total_steps
        count = len(self.channels.groups)
        self.thresholds = self.train_along(nn.Parameter(torch.full((count,), 0.8, device=self.channels.device)))
        self.begin()

    def gates(self) -> Tensor:
        norms = self.channels.norms(self.dense()).detach()
        each = self.channels.split(norms)
        relative = [
            own / own.mean().clamp_min(1e-12) - t for own, t in zip(each.values(), self.thresholds, strict=True)
        ]
        return torch.sigmoid(torch.cat(relative) / self.heat())

    def heat(self) -> float:
        """T at this step."""
        if self.total_steps is None:
            return self.temperature
        done = min(int(self.steps) / self.total_steps, 1.0)
        return float(self.temperature * (self.cold / self.temperature) ** done)

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        if self.total_steps is not None:
            self.impose()  # T has fallen

    def value(self) -> Tensor:
        return (self.macs(self.gates()) - self.target).square()
