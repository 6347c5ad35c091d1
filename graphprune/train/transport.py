"""Differentiable transport: a soft top-k that meets a budget exactly (Li et al., Differentiable Transportation Pruning,
2023; Xie et al., Differentiable Top-k with Optimal Transport, 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ir.program import Program
from .gated import Gated
from .options import whole, within

HALVINGS = 40


class Transport(Gated):
    """m_i = sigmoid((s_i - nu) / T): the plan of least cost, with entropy T, that carries channels to one of two
    places, `stays` and `goes`. nu is whatever makes the MACs that are left just ``target`` of the whole, so that there
    is no strength and no term in the loss; the gradient of s goes through nu too (implicit differentiation). Scores s
    are trained; they begin as norms relative to their group's mean. T falls from ``warm`` to ``cold`` over
    ``total_steps``.

    [derived] The papers' budget is a number of channels; here it is the compiler's cost of the whole network.
    """

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        total_steps: int,
        target: float = 0.5,
        warm: float = 0.3,
        cold: float = 1e-3,
        **options: Any,
    ) -> None:
        whole("Transport", total_steps=total_steps)
        within("Transport", "(0, 1]", target=target)
        within("Transport", "(0, inf)", warm=warm, cold=cold)
        super().__init__(program, module, optimizer, **options)
        self.total_steps, self.target, self.warm, self.cold = total_steps, target, warm, cold
        norms = self.channels.norms().detach()
        relative = torch.cat([own / own.mean().clamp_min(1e-12) for own in self.channels.split(norms).values()])
        self.ranking = self.train_along(nn.Parameter(relative))
        self.begin()

    def temperature(self) -> float:
        done = min(int(self.steps) / self.total_steps, 1.0)
        return float(self.warm * (self.cold / self.warm) ** done)

    def gates(self) -> Tensor:
        """Bisection for nu without gradients, then one step of Newton with them: zero in value, and what implicit
        differentiation gives in gradient."""
        heat, scores = self.temperature(), self.ranking
        with torch.no_grad():
            low, high = scores.min() - 30 * heat, scores.max() + 30 * heat
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                over = self.macs(torch.sigmoid((scores - middle) / heat)) > self.target
                low, high = torch.where(over, middle, low), torch.where(over, high, middle)
        with torch.enable_grad():
            at = ((low + high) / 2).detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.macs(torch.sigmoid((scores.detach() - at) / heat)), at)
            left = self.macs(torch.sigmoid((scores - at.detach()) / heat))
            offset = (left - left.detach()) / slope.clamp_max(-1e-12)
            return torch.sigmoid((scores - (at.detach() - offset)) / heat)

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        self.impose()  # T has fallen

    def importance(self) -> Tensor:
        """s, by which gates are ordered: they themselves come to be zero or one, to the last bit."""
        return self.ranking.detach()

    @torch.no_grad()
    def kept(self) -> Tensor:
        """The highest scores, as many as the budget has room for."""
        ranks = self.ranking.argsort(descending=True, stable=True).argsort()
        low, high = 0, len(ranks)
        while low < high:
            middle = (low + high + 1) // 2
            fits = float(self.macs((ranks < middle).to(self.ranking.dtype))) <= self.target
            low, high = (middle, high) if fits else (low, middle - 1)
        return ranks < low
