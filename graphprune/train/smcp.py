"""SMCP: soft masking under a cost (Humble et al., Soft Masking for Cost-Constrained Channel Pruning, 2022)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..cost.latency.model import LatencyModel
from ..cost.latency.table import Table
from ..errors import RecipeError
from ..ir.facts import Groups, Keep, Scores
from ..ir.program import Program
from ..pipeline.recipe import Recipe
from ..pipeline.run import run
from .masked import Masked
from .options import whole
from .penalty import stays_first

WARM, RAMPED, COOL = 0.1, 0.5, 2 / 3
"""When the budget begins to fall, when it is met, and when the mask rests, as shares of the steps."""


class SMCP(Masked):
    """Forward with mask * weight, backward as if there were no mask, so that what is masked trains on and
    may come back; every ``every`` steps the mask is chosen anew, the best channels within ``budget``.
    With ``total_steps``, also where the ramp ends and where the cool-down begins: at the end the budget is met,
    however large ``every`` is.

    ``budget``: as ``mask`` takes it, ``"macs=0.5x"``. ``allocate``: how ``mask`` spends it on the scores: one
    threshold for all (``global``), or ``knapsack``, nearer to the paper. Scores are |w g| since the last choice, or
    before it where no step was made since (a GradScaler skips some).
    ``total_steps``: with it everything is alive for the first tenth of the steps (warm-up), what is left of the whole
    falls to the budget exponentially until a half (ramp), and for the last third the mask rests (cool-down); without it
    the mask is within the budget from the first step, and never rests.

    The paper's knapsack, one width of every group under a table of latencies, is ``budget="latency=0.5x"`` with
    ``table=gp.record(program, "onnx", out="onnx.jsonl")``; widths are multiples of ``grain``. Without a table a channel
    has a price. [derived: the lengths of the three phases]
    """

    saliency: Tensor
    alive: Tensor
    spent: Tensor
    """Whether the saliency was chosen by already: what is gathered next begins anew."""

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        budget: str = "macs=0.5x",
        every: int = 80,
        allocate: str = "global",
        table: Table | None = None,
        grain: int = 1,
        total_steps: int | None = None,
        **options: Any,
    ) -> None:
        whole("SMCP", every=every, grain=grain)
        if total_steps is not None:
            whole("SMCP", total_steps=total_steps)
        super().__init__(program, module, optimizer, **options)
        self.every, self.allocate, self.total_steps = every, allocate, total_steps
        self.budget, self.grain = budget, grain
        if table is not None:
            host, groups = self.program.host, self.program.fact(Groups)
            model = LatencyModel.of(self.program.graph, host, groups, table, None, "the table")
            self.program = self.program.learn(model)
        Recipe.parse(self._mask(budget))
        if total_steps is not None and not budget.endswith("x"):
            raise RecipeError(f"SMCP: budget={budget} cannot fall step by step", "give a share: macs=0.5x")
        norms = self.channels.norms().detach()
        self.register_buffer("saliency", norms.clone())
        self.register_buffer("alive", torch.ones_like(norms))
        self.register_buffer("spent", torch.zeros((), dtype=torch.bool, device=norms.device))
        self._rewire()
        self.begin()

    def masks(self) -> dict[str, Tensor]:
        return self.channels.mask(self.alive)

    def revise(self, gradients: Any) -> None:
        dense = self.dense()
        moved = {name: torch.zeros_like(weight) for name, weight in dense.items()}
        moved |= {name: gradient * dense[name] for name, gradient in gradients.items()}
        if self.spent:
            self.saliency.zero_()
            self.spent.fill_(False)
        self.saliency += self.channels.fold(moved).abs().to(self.saliency.dtype)

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        if self.chooses():
            self._rewire()
            self.impose()

    def _mask(self, budget: str) -> str:
        return f"mask{{{budget} allocate={self.allocate} grain={self.grain}}}"

    def chooses(self) -> bool:
        """Whether the mask is chosen anew after this many steps."""
        done = int(self.steps)
        ends = () if self.total_steps is None else (math.ceil(RAMPED * self.total_steps), int(COOL * self.total_steps))
        return done in ends or (done % self.every == 0 and not self.rests())

    def rests(self) -> bool:
        """Whether the cool-down has begun."""
        return self.total_steps is not None and int(self.steps) > COOL * self.total_steps

    def ramped(self) -> str:
        """The budget at this step; nothing where all may live."""
        if self.total_steps is None:
            return self.budget
        unit, _, share = self.budget.partition("=")
        done = (int(self.steps) / self.total_steps - WARM) / (RAMPED - WARM)
        left = f"{float(share[:-1]) ** min(max(done, 0.0), 1.0):.6f}x"
        return "" if left == "1.000000x" else f"{unit}={left}"

    def _rewire(self) -> None:
        self.spent.fill_(True)
        budget = self.ramped()
        if not budget:
            self.alive.fill_(1)
            return
        relative = [own / own.mean().clamp_min(1e-12) for own in self.channels.split(self.saliency).values()]
        scores = Scores("smcp", self.channels.arrays(torch.cat(relative)))
        keep = run(Recipe.parse(self._mask(budget)), self.program.learn(scores)).fact(Keep).keep
        for name, own in self.channels.split(self.alive).items():
            own.zero_()
            own[torch.from_numpy(keep[name]).to(own.device)] = 1

    def importance(self) -> Tensor:
        return stays_first(self.alive, self.channels.norms(self.dense()))

    def kept(self) -> Tensor:
        return self.alive > 0
