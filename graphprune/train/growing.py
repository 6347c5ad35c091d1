"""GReg-1: an L2 penalty on what will go that grows, little by little, until it has gone (Wang et al., Neural
Pruning via Growing Regularization, 2021, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ir.program import Program
from .dress import DReSS
from .options import whole, within


class GrowingRegularization(DReSS):
    """R = 1/2 sum over the channels that go of ||g_i||^2, times a strength that starts at zero and gains
    ``strength`` every ``every`` steps, up to ``ceiling``.

    This is GReg-1; ``GReg2`` finds what goes as well. [derived] It is on coupled slices, and what goes is the Keep of
    any recipe; the paper takes the smallest filters of each layer by L1.
    """

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        strength: float = 1e-3,
        every: int = 1,
        ceiling: float = 1.0,
        over: str | None = None,
    ) -> None:
        whole("GrowingRegularization", every=every)
        within("GrowingRegularization", "[0, inf)", strength=strength, ceiling=ceiling)
        super().__init__(program, module, optimizer, strength=strength, power=2, over=over)
        self.growth, self.every, self.ceiling = strength, every, ceiling

    def value(self) -> Tensor:
        return super().value() / 2

    def weight(self) -> float:
        """What has grown until this step."""
        return min(self.growth * (int(self.steps) // self.every), self.ceiling)
