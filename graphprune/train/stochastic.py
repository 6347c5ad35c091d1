"""Annealed stochastic masks: what will go is there at random, and ever more rarely (Whitaker and Whitley, Stochastic
Subnetwork Annealing, 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..ir.program import Program
from .dress import leaving
from .masked import Masked
from .options import whole
from .penalty import stays_first


class StochasticMasks(Masked):
    """The subnetwork is the Keep that ``program`` knows, from any recipe. What is outside of it is there with a
    probability that falls from one to zero along a cosine over the first ``annealed`` of ``total_steps``, drawn anew at
    every step; then the subnetwork trains alone.

    As in the paper; [derived] by coupled channels, along a cosine.

    The draws are of ``seed`` and the step, so every rank draws the same, and a resumed run what it would have drawn.
    Raises RecipeError where the program knows no Keep.
    """

    goes: Tensor
    there: Tensor

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        total_steps: int,
        annealed: float = 0.5,
        seed: int = 0,
        **options: Any,
    ) -> None:
        whole("StochasticMasks", total_steps=total_steps)
        super().__init__(program, module, optimizer, **options)
        if not 0 < annealed <= 1:
            raise RecipeError(
                f"StochasticMasks: annealed={annealed} is not a share", "of the steps, above 0 and up to 1"
            )
        self.total_steps, self.annealed, self.seed = total_steps, annealed, seed
        self.register_buffer("goes", leaving(self))
        self.register_buffer("there", torch.ones_like(self.goes))
        self._draw()
        self.begin()

    def probability(self) -> float:
        """That a channel which will go is there at this step."""
        done = min(int(self.steps) / (self.annealed * self.total_steps), 1.0)
        return float(0.5 * (1 + torch.cos(torch.tensor(torch.pi * done))))

    def masks(self) -> dict[str, Tensor]:
        return self.channels.mask(self.there)

    def revise(self, gradients: Any) -> None:
        masks = self.masks()
        for name, gradient in gradients.items():
            gradient.mul_(masks[name].to(gradient.dtype))

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        self._draw()
        self.impose()

    def _draw(self) -> None:
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.steps))
        drawn = (torch.rand(len(self.goes), generator=rng) < self.probability()).to(self.goes)
        self.there.copy_(1 - self.goes * (1 - drawn))

    def importance(self) -> Tensor:
        """The norms, with all that goes below all that stays."""
        return stays_first(1 - self.goes, self.channels.norms(self.dense()))

    def kept(self) -> Tensor:
        return self.goes == 0
