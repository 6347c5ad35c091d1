"""Catalyst: an auxiliary parameter for every channel, so that magnitude does not decide.

Jung and Lee, Catalyst: a Novel Regularizer for Structured Pruning with Auxiliary Extension of Parameter Space, 2025.

The parameter space is extended by D_i beside the slices F_i of channel i. Extending and dropping are
lossless where D_i F_i = 0, and the regulariser R = sum_i |D_i| ||F_i|| is zero exactly there.

[derived, from the flow of R alone]

    dD/dt = -||F||,  d||F||/dt = -D   =>   ||F||(t) = ||F|| cosh t - D sinh t,  D(t) = D cosh t - ||F|| sinh t

D^2 - ||F||^2 is conserved, and the flow ends where the smaller of the two is zero, at t = atanh(min / max): the
ratio D_i / ||F_i|| decides, one is the saddle, and a decision once made widens by itself.

[derived, how it is used here: R is no term of the loss, and has no strength]
1. Opening: every D_i begins at ||F_i||, all ratios at one, and R rests. What the task makes of ||F_i|| meanwhile tips
   the ratios, not how large a channel was; and, a little, unless ``lean`` is none, what it would lose without one.
2. The decision: in each group as many as wanted, of the lowest ratios, stay. D is put so that no ratio is nearer to
   one than the margin, on either side, and is held there.
3. Closing: after every step of the optimizer F and D move along the exact flow, for a time such that all channels
   arrive together by half of the steps. The rest of the steps recovers, with what goes at zero.

Because the flow is no gradient of the optimizer's, it is the same under any: adaptive moments do not bend it. It is
exact for groups that share no parameter; those that do are moved one by the other's factor too (a splitting of first
order in the step).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..ir.facts import Scores
from ..ir.program import Program
from .masked import top
from .options import whole
from .penalty import Penalty, shares_of

MARGIN = 3.0
"""How far from the saddle a decided ratio is held, as a factor; what stays loses 1 - sqrt(8/9) = 6 % of its norm."""

OPENING, CLOSED = 0.25, 0.5
"""When the decision falls and when the flow has ended, as shares of the steps."""

TAYLOR = "taylor"

LEAN = 0.1
"""The power of a lean beside growth. Where the task makes channels grow apart (by several per cent, in a network that
has much to learn) growth decides, and the lean among what grew alike; where it does not (some tenths of a per cent) the
lean decides alone, as scores differ by much more than that."""


class Catalyst(Penalty):
    """``keep``: how many stay, a share of every group's channels or a share for each by name; met exactly.
    ``total_steps``: how many steps the training has. There is no strength to choose, and no term in the loss.
    Groups that anything untrained reads are left whole, with a note: what reads a channel goes to zero with it, or
    dropping it would be lossless only where zero is kept on the way.

    ``lean``: a score, relative to its group's mean, whose tenth root (``LEAN``) ratios are divided by: what has little
    of it has to gain on the others to stay. ``"taylor"``, the default, is gathered in the opening, through the
    optimizer: the sum over its steps of |dL/dm_i|, m_i the factor of channel i (its gate). Scores of a recipe count
    from the start.

    ``None`` is the paper's own: no channel has a start over another, and magnitude no say: where the norms of a
    perceptron are drawn, its function the same, fate does not go with them. (With norms that training made it does, by
    what had gone into them.) Then the opening has to be long and bold enough for the task to tell channels apart by
    their growth. In a trained network it hardly can: the mean of dL/dm_i is near zero at an optimum, and what it makes
    of the norms in a short opening or at a low rate is noise; the mean of |dL/dm_i| is not, and goes with what removal
    costs. It does go with the norm too (rank correlation about one half). Figures: docs/benchmarks.md, Training.
    """

    over = "all"
    exact = True
    auxiliary: Tensor
    goes: Tensor
    taylor: Tensor

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        total_steps: int,
        keep: float | Mapping[str, float] = 0.5,
        lean: Scores | str | None = TAYLOR,
        over: str | None = None,
    ) -> None:
        whole("Catalyst", total_steps=total_steps)
        super().__init__(program, module, optimizer, over=over)
        self.shares = shares_of(keep, self.channels.names, "Catalyst")
        self.opening, self.closing = (max(round(share * total_steps), 1) for share in (OPENING, CLOSED))
        if isinstance(lean, str) and lean != TAYLOR:
            raise RecipeError(f"Catalyst: `lean` cannot be `{lean}`", f"`{TAYLOR}`, or Scores of the program's groups")
        self.gathers = lean == TAYLOR
        if self.gathers:
            self.need_optimizer()
        auxiliary = self.channels.norms().detach()
        if isinstance(lean, Scores):
            auxiliary = auxiliary / self._leaning(lean)
        self.register_buffer("auxiliary", auxiliary)
        self.register_buffer("goes", torch.zeros(len(auxiliary), dtype=torch.bool, device=auxiliary.device))
        self.register_buffer("taylor", torch.zeros_like(auxiliary))

    def before(self, gradients: Mapping[str, Tensor]) -> None:
        if self.gathers and int(self.steps) < self.opening:
            live = self.channels.tensors()
            moved = {name: torch.zeros_like(weight) for name, weight in live.items()}
            moved |= {name: gradient * live[name] for name, gradient in gradients.items()}
            self.taylor += self.channels.fold(moved).abs().to(self.taylor.dtype)

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        done = int(self.steps)
        if done == self.opening:
            if self.gathers:
                self.auxiliary.div_(self._relative(self.taylor))
            self.goes.copy_(~self._wanted())
        if done >= self.opening:
            self._hold()
            self._flow(max(self.closing - done, 0) + 1)

    def _wanted(self) -> Tensor:
        each = self.channels.split(-self.ratios())
        return torch.cat([top(own, self.shares[name]) for name, own in each.items()]) > 0

    def _hold(self) -> None:
        """No ratio comes nearer to the saddle than the margin: what was decided stays so."""
        norms = self.channels.norms()
        nearest = torch.where(self.goes, norms * MARGIN, norms / MARGIN)
        self.auxiliary.copy_(torch.where(self.goes, self.auxiliary.max(nearest), self.auxiliary.min(nearest)))

    def _flow(self, left: int) -> None:
        """An equal part of the way that is left, in ``left`` steps, to the channel that is farthest from its end."""
        norms = self.channels.norms()
        time = float(arrival(norms, self.auxiliary).max()) / left
        shorter, auxiliary = flow(norms, self.auxiliary, time)
        self.auxiliary.copy_(auxiliary)
        factors = self.channels.mask(shorter / norms.clamp_min(torch.finfo(norms.dtype).tiny))
        for name, parameter in self.channels.tensors().items():
            parameter.mul_(factors[name].to(parameter.dtype))

    def ratios(self) -> Tensor:
        """D_i / ||F_i||: above one is on its way out."""
        norms = self.channels.norms().detach()
        return self.auxiliary / norms.clamp_min(torch.finfo(norms.dtype).tiny)

    def closed(self) -> bool:
        """Whether D_i F_i = 0 for every channel: from here on dropping is lossless."""
        return not bool((self.auxiliary * self.channels.norms().detach()).any())

    def importance(self) -> Tensor:
        """||F|| / (||F|| + D): one half is the saddle."""
        return 1 / (1 + self.ratios())

    def kept(self) -> Tensor:
        return ~self.goes if int(self.steps) >= self.opening else self._wanted()

    def _leaning(self, lean: Scores) -> Tensor:
        missing = [name for name in self.channels.names if name not in lean.scores]
        if missing:
            raise RecipeError(f"Catalyst: `lean` has no scores of `{missing[0]}`", "score the groups that are trained")
        return self._relative(self.channels.join(lean.scores).clamp_min(0))

    def _relative(self, score: Tensor) -> Tensor:
        """To the mean of its group, to the power of a lean."""
        each = self.channels.split(score).values()
        return torch.cat([own.div(own.mean().clamp_min(1e-12)).clamp_min(1e-6) for own in each]) ** LEAN


def arrival(norms: Tensor, auxiliary: Tensor) -> Tensor:
    """When the flow ends, per channel: where the smaller of the two reaches zero."""
    small, large = torch.minimum(norms, auxiliary), torch.maximum(norms, auxiliary)
    return torch.atanh(small / large.clamp_min(torch.finfo(large.dtype).tiny))


def flow(norms: Tensor, auxiliary: Tensor, time: float) -> tuple[Tensor, Tensor]:
    """Norms and D after ``time`` along the flow of R, exactly; what arrives earlier stays there."""
    end = arrival(norms, auxiliary)
    over, t = end <= time, end.clamp_max(time)
    f, d = norms * t.cosh() - auxiliary * t.sinh(), auxiliary * t.cosh() - norms * t.sinh()
    first = norms < auxiliary
    return f.masked_fill(over & first, 0).clamp_min(0), d.masked_fill(over & ~first, 0).clamp_min(0)
