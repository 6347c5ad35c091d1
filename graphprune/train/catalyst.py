"""Catalyst: an auxiliary parameter for every channel, so that magnitude does not decide.

Jung and Lee, Catalyst: a Novel Regularizer for Structured Pruning with Auxiliary Extension of Parameter Space, 2025.

The parameter space is extended by D_i beside the slices F_i of channel i. Extending and dropping are
lossless where D_i F_i = 0, and the regulariser R = sum_i |D_i| ||F_i|| is zero exactly there.

[derived, from the flow of R alone]  With every D_i opened at c ||F_i||:

    dD/dt = -lambda ||F||,  d||F||/dt = -lambda D   =>   D^2 - ||F||^2 is conserved

    c < 1: the channel stays; D reaches 0 and ||F|| tends to ||F_0|| sqrt(1 - c^2)
    c > 1: the channel goes;  ||F|| reaches 0
    both when tanh(lambda t) = min(c, 1/c);  c = 1 is the saddle, both decay as exp(-lambda t)

So the ratio D_i / ||F_i|| decides, and it opens the same for all: what tips it over one or under is what the
task's gradient does to F_i meanwhile, not how large F_i was. A decision once made widens by itself.

It takes its time: with 128 small steps to close in, the strength that this needs destroys a trained ResNet-20
(docs/benchmarks.md, Training). For short fine-tuning other methods are better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..ir.program import Program
from .penalty import Penalty, shares_of

CLOSED = 1e-2
"""A channel on its way out is set to zero when its norm has come down to this share of what it was:
steps of finite length would otherwise jump about the zero that the flow reaches and keeps."""

MARGIN = 1.5
"""How far from the saddle a ratio is put, as a factor, once a wanted number has been decided."""

LIMIT = 2.0
"""The most that balancing makes of a D, as a multiple of what the channel's norm was at first."""


class Catalyst(Penalty):
    """``strength`` is lambda; ``start`` is c, just below or above one to lean towards keeping or dropping.

    The decisions are made after about 1.5 / (lambda times the sum of effective step sizes) of training:
    with SGD of momentum 0.9, rate 0.1 and 1000 steps (a sum of 1000), lambda = 2e-3 leaves time to settle.
    D is trained by the same optimizer as the module: construct this before the first step and give D no
    other decay than the weights have, or the ratio drifts.

    ``keep`` (a share of each group's channels, or a share for each group by name) fixes how many stay:
    through the first ``opening`` steps D is scaled, group by group, so that just as many ratios are below
    one, and then held there [derived: the training of a whole network drifts all ratios alike, which would
    decide for all]. Without it the number is what comes of it.
    """

    over = "all"

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        strength: float = 2e-3,
        start: float = 1.0,
        keep: float | Mapping[str, float] | None = None,
        opening: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(program, module, optimizer, strength=strength, **options)
        if start <= 0:
            raise RecipeError(f"Catalyst: start={start} is not a ratio", "1 is the saddle; below it channels stay")
        norms = self.channels.norms().detach()
        self.shares = None if keep is None else shares_of(keep, self.channels.names, "Catalyst")
        self.opening = opening
        self.start: Tensor
        self.register_buffer("start", norms.clone())
        self.held: Tensor  # decided by count: what goes has the least that its D may be, what stays -1; 0 is open
        self.register_buffer("held", torch.zeros_like(norms))
        self.auxiliary = self.train_along(nn.Parameter(start * norms))

    def value(self) -> Tensor:
        """R."""
        return (self.auxiliary.abs() * self.channels.norms()).sum()

    @torch.no_grad()
    def step(self) -> None:
        """Where the flow stops at zero, stop: D at its sign change, F when it is all but gone."""
        super().step()
        self.auxiliary.clamp_min_(0)
        if self.shares is not None and int(self.steps) <= self.opening:
            self._balance()
        self._hold()
        if int(self.steps) > self.opening:
            norms = self.channels.norms()
            gone = (norms < CLOSED * self.start) & (self.auxiliary > norms)
            for name, factor in self.channels.mask((~gone).to(norms.dtype)).items():
                parameter = self.channels.tensors()[name]
                parameter.mul_(factor.to(parameter.dtype))

    def _balance(self) -> None:
        """Scale D, group by group, so that the wanted number of ratios is below one; when the opening is
        over, decide for good."""
        auxiliary, held, start = map(self.channels.split, (self.auxiliary, self.held, self.start))
        for name, ratios in self.channels.split(self.ratios()).items():
            count = min(max(round((self.shares or {})[name] * len(ratios)), 1), len(ratios))
            ordered, order = ratios.sort(stable=True)
            below, above = float(ordered[count - 1]), float(ordered[count]) if count < len(ratios) else math.inf
            if not below < 1 < above and above > 0:
                middle = math.sqrt(max(below, above / 4) * min(above, 4 * below)) if below else above / 2
                auxiliary[name].div_(middle).clamp_(max=LIMIT * start[name])
            if int(self.steps) == self.opening:
                floor = MARGIN * torch.maximum(start[name], auxiliary[name])
                held[name].copy_(floor.index_fill(0, order[:count], -1.0))

    def _hold(self) -> None:
        """What was decided stays so: D of what goes does not fall again, D of what stays is kept from rising."""
        stays = torch.minimum(self.auxiliary, self.channels.norms() / MARGIN)
        goes = torch.maximum(self.auxiliary, self.held)
        self.auxiliary.copy_(torch.where(self.held < 0, stays, torch.where(self.held > 0, goes, self.auxiliary)))

    def ratios(self) -> Tensor:
        """|D_i| / ||F_i||: above one is on its way out."""
        return self.auxiliary.detach() / self.channels.norms().detach().clamp_min(1e-12)

    def closed(self, tolerance: float = 1e-4) -> bool:
        """Whether R has come down to ``tolerance`` times where it began: every decision is made, and what
        goes is gone. Where it does not close, ``strength`` is too low for the task's gradient."""
        began = (self.start * self.start).sum()
        return bool(self.value().detach() <= tolerance * began)

    def importance(self) -> Tensor:
        """||F|| / (||F|| + |D|): one half is the saddle."""
        norms, auxiliary = self.channels.norms(), self.auxiliary.detach()
        return norms / (norms + auxiliary).clamp_min(1e-12)

    def kept(self) -> Tensor:
        return self.importance() >= 0.5
