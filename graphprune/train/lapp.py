"""LAPP: a learned threshold for every group, under a cost (Zhai et al., LAPP: Layer Adaptive Progressive Pruning for
Compressing CNNs from Scratch, 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..ir.program import Program
from .gated import Gated
from .method import AUTO
from .options import whole, within

CLOSED = 0.5
"""When nothing of the bypass is left, as a share of the steps."""


class LAPP(Gated):
    """m_i = sigmoid((||g_i|| / mean norm - t) / T) with one threshold t a group, and R = (MACs left -
    ``target``)^2.

    [derived] Norms relative to their group's mean, so that one start and one temperature T fit all. T falls from
    ``temperature`` to ``cold`` over ``total_steps``, geometrically, where that is given; else it rests.

    ``bypass`` keeps information flowing through layers that become narrow: what a gate shuts out, 1 - m_i, is read
    through a share of that size, one number a group that is trained along; what is open of it falls to nothing on a
    line over the first half of ``total_steps``, so that nothing of it is left to cut [derived: the paper puts a light
    layer of its own beside each, which stays in the network that is deployed; here the user's forward is left alone].
    Digits gained nothing by it (docs/benchmarks.md, Training), so there is none by default.
    Raises RecipeError for a bypass without ``total_steps``: it would stay.
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
        bypass: float = 0.0,
        **options: Any,
    ) -> None:
        within("LAPP", "(0, 1]", target=target)
        within("LAPP", "(0, inf)", temperature=temperature, cold=cold)
        if total_steps is not None:
            whole("LAPP", total_steps=total_steps)
        super().__init__(program, module, optimizer, strength=strength, **options)
        self.target, self.temperature = target, temperature
        self.cold, self.total_steps = cold, total_steps
        if not 0 <= bypass < 1 or (bypass and total_steps is None):
            raise RecipeError(f"LAPP: bypass={bypass}", "a share, with `total_steps`, over which it closes")
        count = len(self.channels.groups)
        self.thresholds = self.train_along(nn.Parameter(torch.full((count,), 0.8, device=self.channels.device)))
        if bypass:
            self.shares = self.train_along(nn.Parameter(torch.full((count,), bypass, device=self.channels.device)))
        self.begin()

    def gates(self) -> Tensor:
        """With what the bypass lets through."""
        own = self.own_gates()
        if self.total_steps is None or "shares" not in self._parameters:
            return own
        opened = 1 - min(int(self.steps) / (CLOSED * self.total_steps), 1.0)
        sizes = torch.tensor([group.size for group in self.channels.groups], device=own.device)
        return own + (1 - own) * opened * self.shares.clamp(0, 1).repeat_interleave(sizes)

    def own_gates(self) -> Tensor:
        """m."""
        return torch.sigmoid(self.above() / self.heat())

    def above(self) -> Tensor:
        """How far norms are above their group's threshold."""
        norms = self.channels.norms(self.dense()).detach()
        each = self.channels.split(norms)
        relative = [
            own / own.mean().clamp_min(1e-12) - t for own, t in zip(each.values(), self.thresholds, strict=True)
        ]
        return torch.cat(relative)

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
        return (self.macs(self.own_gates()) - self.target).square()

    def importance(self) -> Tensor:
        """How far norms are above the threshold: gates come to be zero or one, to the last bit."""
        return self.above().detach()

    def kept(self) -> Tensor:
        return self.importance() >= 0
