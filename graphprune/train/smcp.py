"""SMCP: soft masking under a cost (Humble et al., Soft Masking for Cost-Constrained Channel Pruning, 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ir.facts import Keep, Scores
from ..ir.program import Program
from ..pipeline.recipe import Recipe
from ..pipeline.run import run
from .masked import Masked


class SMCP(Masked):
    """Forward with mask * weight, backward as if there were no mask, so that what is masked trains on and
    may come back; every ``every`` steps the mask is chosen anew, the best channels within ``budget``.

    ``budget``: as ``mask`` takes it, ``"macs=0.5x"``. [derived] The choice is the compiler's own (one
    threshold for the scores of all groups) on |w g| gathered since the last, where the paper solves a
    multiple-choice knapsack.
    """

    saliency: Tensor
    alive: Tensor

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        budget: str = "macs=0.5x",
        every: int = 80,
        **options: Any,
    ) -> None:
        super().__init__(program, module, optimizer, **options)
        self.every = every
        self.choose = Recipe.parse(f"mask{{{budget} allocate=global}}")
        norms = self.channels.norms().detach()
        self.register_buffer("saliency", norms.clone())
        self.register_buffer("alive", torch.ones_like(norms))
        self._rewire()
        self.begin()

    def masks(self) -> dict[str, Tensor]:
        return self.channels.mask(self.alive)

    def revise(self, gradients: Any) -> None:
        dense = self.dense()
        moved = {name: torch.zeros_like(weight) for name, weight in dense.items()}
        moved |= {name: gradient * dense[name] for name, gradient in gradients.items()}
        self.saliency += self.channels.fold(moved).abs().to(self.saliency.dtype)

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        if int(self.steps) % self.every == 0:
            self._rewire()
            self.impose()
            self.saliency.zero_()

    def _rewire(self) -> None:
        relative = [own / own.mean().clamp_min(1e-12) for own in self.channels.split(self.saliency).values()]
        scores = Scores("smcp", self.channels.arrays(torch.cat(relative)))
        keep = run(self.choose, self.program.learn(scores)).fact(Keep).keep
        for name, own in self.channels.split(self.alive).items():
            own.zero_()
            own[torch.from_numpy(keep[name]).to(own.device)] = 1

    def importance(self) -> Tensor:
        return self.alive + self.channels.norms(self.dense()) / 1e6

    def kept(self) -> Tensor:
        return self.alive > 0
