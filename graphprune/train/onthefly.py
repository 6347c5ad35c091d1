"""Pruning On-the-Fly: what is near zero is pushed to it, all else away from it, and the cut wants no fine-tuning (Liu
and Liu, Pruning On-the-Fly: A Recoverable Pruning Method without Fine-tuning, 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..ir.program import Program
from .masked import top
from .method import AUTO
from .penalty import Penalty, shares_of


class OnTheFly(Penalty):
    """R = sum_i s_i ||g_i|| / c, c the root mean square of the group's norms, s_i minus one for the largest norms of
    every group, ``keep`` of them, and one for all others: chosen anew at every step, so that a channel may recover.

    [derived] The paper normalises every layer's weights to a sphere and has single weights. On the sphere of a group's
    norms R is least where all that goes is at zero and all that stays at one length, so neither side needs a bound.
    Its other half, the values cut replaced by their mean, is the pass ``compensate{by=mean}``, of what the next layer
    reads: ``gp.run("propagate,compensate{by=mean}", penalty.learned())`` of a program that was loaded with data.
    """

    over = "all"

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        keep: float | Mapping[str, float] = 0.5,
        strength: float | str = AUTO,
        **options: Any,
    ) -> None:
        super().__init__(program, module, optimizer, strength=strength, **options)
        self.shares = shares_of(keep, self.channels.names, "OnTheFly")

    def value(self) -> Tensor:
        total = torch.zeros((), device=self.channels.device)
        for name, norms in self.channels.split(self.channels.norms()).items():
            away = top(norms.detach(), self.shares[name])
            scale = norms.square().mean().clamp_min(torch.finfo(norms.dtype).tiny).sqrt()
            total = total + ((1 - 2 * away) * norms).sum() / scale
        return total

    def kept(self) -> Tensor:
        norms = self.channels.split(self.channels.norms())
        return torch.cat([top(own, self.shares[name]) for name, own in norms.items()]) > 0
