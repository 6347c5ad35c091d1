"""Polarization: gates driven to zero or to one, none in between (Zhuang et al., Polarization Regularizer, 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..ir.program import Program
from .gated import Gated
from .method import AUTO
from .options import within


class Polarization(Gated):
    """R = sum_i t |a_i| - |a_i - mean a|, the mean over all channels, a clamped to [0, 1].

    R alone is least with a share 1/2 + t/4 of the gates at zero and the others at one (theorem 1). ``keep``, the share
    of all channels that shall stay, sets t by that: t = 2 - 4 keep; RecipeError where both are given, or t is outside
    of [-2, 2]. With neither t is zero.

    A part of the paper: it puts R on BatchNorm's scales and prunes at the valley of their histogram; here it is on
    gates of their own, so that any group can have it, cut at one half.
    """

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        strength: float | str = AUTO,
        t: float | None = None,
        keep: float | None = None,
        **options: Any,
    ) -> None:
        if keep is not None and t is not None:
            raise RecipeError(f"Polarization: t={t} and keep={keep}", "one of the two: t is 2 - 4 keep")
        if keep is not None and not 0 < keep < 1:
            raise RecipeError(f"Polarization: keep={keep} is not a share", "say what remains, between 0 and 1")
        self.t = (t or 0.0) if keep is None else 2 - 4 * keep
        within("Polarization", "[-2, 2]", t=self.t)
        super().__init__(program, module, optimizer, strength=strength, **options)
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
