"""GReg-2: all weights are pressed, ever more; how they resist says what is important (Wang et al., Neural Pruning via
Growing Regularization, 2021, section 3.3 and algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..ir.program import Program
from .masked import top
from .options import whole, within
from .penalty import Penalty, shares_of, stays_first


class GReg2(Penalty):
    """R = 1/2 sum_i s_i ||g_i||^2. In the first ``picking`` of ``total_steps`` the strength is the same for all and
    grows from zero to ``pressure``: a weight of curvature h comes to h / (h + strength) of what it was, so that what
    the loss holds on to stays large (theorem 3.1: importance by the Hessian, which is never computed). Then the largest
    norms of each group stay, ``keep`` of them, with no strength at all; that of the others grows on, as in GReg-1, up
    to ``ceiling`` at the end.

    [derived] L2 norms of coupled slices in the place of the mean of |w| of a filter; the two phases are shares of the
    steps, where the paper waits for a strength to be reached. Pressing all of a network hurts it for as long: the
    second phase is also its recovery.
    """

    over = "all"
    goes: Tensor

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        total_steps: int,
        keep: float | Mapping[str, float] = 0.5,
        picking: float = 0.25,
        pressure: float = 0.01,
        ceiling: float = 1.0,
        over: str | None = None,
    ) -> None:
        whole("GReg2", total_steps=total_steps)
        within("GReg2", "[0, inf)", pressure=pressure, ceiling=ceiling)
        super().__init__(program, module, optimizer, strength=ceiling, over=over)
        if not 0 < picking < 1:
            raise RecipeError(f"GReg2: picking={picking} is not a share", "of the steps, between 0 and 1")
        self.shares = shares_of(keep, self.channels.names, "GReg2")
        self.total_steps, self.pressure, self.ceiling = total_steps, pressure, ceiling
        self.picked = max(round(picking * total_steps), 1)
        self.register_buffer("goes", torch.zeros(self.channels.total, device=self.channels.device))

    def strengths(self) -> Tensor:
        """Per channel, s at this step."""
        done = int(self.steps)
        if done < self.picked:
            return torch.full_like(self.goes, self.pressure * done / self.picked)
        past = min((done - self.picked) / max(self.total_steps - self.picked, 1), 1.0)
        return self.goes * (self.pressure + (self.ceiling - self.pressure) * past)

    def weight(self) -> float:
        return 1.0

    def value(self) -> Tensor:
        return (self.strengths() * self.channels.norms().square()).sum() / 2

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        if int(self.steps) == self.picked:
            self.goes.copy_(~self._largest())

    def importance(self) -> Tensor:
        """The norms, with all that goes below all that stays."""
        return stays_first(1 - self.goes, self.channels.norms())

    def kept(self) -> Tensor:
        return self.goes == 0 if int(self.steps) >= self.picked else self._largest()

    def _largest(self) -> Tensor:
        norms = self.channels.split(self.channels.norms())
        return torch.cat([top(own, self.shares[name]) for name, own in norms.items()]) > 0
