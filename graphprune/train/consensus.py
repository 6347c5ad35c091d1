"""A consensus subnetwork: binary gates whose draws are driven to agree (Zhi et al., Learning a Consensus Sub-Network
with Polarization Regularization and One Pass Training, 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ir.program import Program
from .gated import Gated
from .method import AUTO
from .options import within


class Consensus(Gated):
    """Channel i is open at a step with the probability p_i = sigmoid(a_i), drawn anew each time, and a_i gets the
    gradient of the gate straight through. R = mean_i p_i (1 - p_i) + (MACs left / ``target`` - 1)^2: the first is
    zero where all draws agree, p_i zero or one, and the second has p_i in place of the gates.

    A part of the paper: there a small module opens gates for every sample, and R drives the share of samples that open
    one to zero or one; here draws take the place of samples [derived], for parameters can be gated without a word of
    the user's forward. The draws are of ``seed`` and the step, the same on every rank and in a resumed run.
    """

    BESIDE = 0.25

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        target: float = 0.5,
        strength: float | str = AUTO,
        start: float = 2.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        within("Consensus", "(0, 1]", target=target)
        within("Consensus", "(-inf, inf)", start=start)
        super().__init__(program, module, optimizer, strength=strength, **options)
        self.target, self.seed = target, seed
        self.logits = self.train_along(nn.Parameter(torch.full_like(self.channels.norms().detach(), start)))
        self.begin()

    def gates(self) -> Tensor:
        open_ = torch.sigmoid(self.logits)
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.steps))
        drawn = (torch.rand(len(open_), generator=rng).to(open_) < open_).to(open_)
        return open_ + (drawn - open_).detach()

    def value(self) -> Tensor:
        open_ = torch.sigmoid(self.logits)
        return (open_ * (1 - open_)).mean() + (self.macs(open_) / self.target - 1).square()

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        self.impose()  # other draws

    def importance(self) -> Tensor:
        """a, of which the probability comes to be zero or one, to the last bit."""
        return self.logits.detach()

    def kept(self) -> Tensor:
        return self.importance() >= 0
