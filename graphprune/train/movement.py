"""Movement pruning: keep what training moves away from zero (Sanh et al., 2020), by channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..ir.program import Program
from .masked import Masked, top
from .options import whole
from .penalty import shares_of
from .schedule import cubic_at


class Movement(Masked):
    """Scores gather -w g, g at the masked weights (straight through the top-k). The share kept rests at one for
    ``warm_up`` steps, falls to ``keep`` along a cubic until ``total_steps``, and rests there; the number is exact at
    each step.

    A part of the paper: hard movement of whole channels (the sum over a channel's readers, as block movement has it);
    the soft form, with a learned threshold, is not here. Its scores have an optimizer of their own there, with a rate
    of its own; here they are the plain sum.
    """

    movement: Tensor

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        total_steps: int,
        keep: float | Mapping[str, float] = 0.5,
        warm_up: int = 0,
        **options: Any,
    ) -> None:
        whole("Movement", total_steps=total_steps)
        super().__init__(program, module, optimizer, **options)
        if not 0 <= warm_up < total_steps:
            raise RecipeError(f"Movement: warm_up={warm_up} of total_steps={total_steps}", "it is a part of them")
        self.shares, self.total_steps = shares_of(keep, self.channels.names, "Movement"), total_steps
        self.warm_up = warm_up
        self.register_buffer("movement", torch.zeros_like(self.channels.norms().detach()))
        self.begin()

    def chosen(self) -> Tensor:
        """Per channel, whether it is kept at this step."""
        each = self.channels.split(self.movement)
        done = (int(self.steps) - self.warm_up) / (self.total_steps - self.warm_up)
        return torch.cat([top(own, cubic_at(done, self.shares[name])) for name, own in each.items()]) > 0

    def masks(self) -> dict[str, Tensor]:
        return self.channels.mask(self.chosen().float())

    def revise(self, gradients: Mapping[str, Tensor]) -> None:
        dense = self.dense()
        moved = {name: torch.zeros_like(weight) for name, weight in dense.items()}
        moved |= {name: gradient * dense[name] for name, gradient in gradients.items()}
        self.movement.sub_(self.channels.fold(moved).to(self.movement.dtype))
        masks = self.masks()
        for name, gradient in gradients.items():
            gradient.mul_(masks[name])

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        self.impose()  # the share has fallen

    def importance(self) -> Tensor:
        return self.movement

    def kept(self) -> Tensor:
        return self.chosen()
