"""Polarization: gates driven to zero or to one, none in between (Zhuang et al., Polarization Regularizer, 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ir.program import Program
from .gated import Gated


class Polarization(Gated):
    """R = sum_i t |a_i| - |a_i - mean a|, the mean over all channels, a clamped to [0, 1].

    R alone is least with a share 1/2 + t/4 of the gates at zero and the others at one. The paper puts it on
    BatchNorm's scales; here it is on gates, so that any group can have it.
    """

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        strength: float = 1e-3,
        t: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(program, module, optimizer, strength=strength, **options)
        self.t = t
        self.auxiliary = self.train_along(nn.Parameter(torch.full_like(self.channels.norms().detach(), 0.9)))
        self.begin()

    def gates(self) -> Tensor:
        return self.auxiliary.clamp(0, 1)

    def value(self) -> Tensor:
        gates = self.auxiliary
        return (self.t * gates.abs() - (gates - gates.mean()).abs()).sum()

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        self.auxiliary.clamp_(0, 1)
