"""DReSS: choose what will go first, regularise it while training, then prune (Data-driven Regularized
Structured Streamlining, 2025)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..ir.facts import Keep
from ..ir.program import Program
from .penalty import Penalty


class DReSS(Penalty):
    """R = sum over the channels that go of ||g_i||, or of its square (``power=2``).

    What goes is everything outside of the Keep that ``program`` knows, from any recipe:
    ``gp.run("group,score{by=wifv},mask{macs=0.5x}", program)``. Raises RecipeError where it knows none.
    """

    over = "all"
    goes: Tensor

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        strength: float = 1e-3,
        power: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(program, module, optimizer, strength=strength, **options)
        if not self.program.knows(Keep):
            raise RecipeError(
                f"{type(self).__name__} regularises what will go, and the program does not know what",
                'gp.run("group,score,mask{macs=0.5x}", program) chooses',
            )
        self.power = power
        stays = self.program.fact(Keep).keep
        goes = [torch.ones(group.size) for group in self.channels.groups]
        for group, own in zip(self.channels.groups, goes, strict=True):
            own[torch.from_numpy(stays[group.name])] = 0
        self.register_buffer("goes", torch.cat(goes).to(self.channels.device))

    def value(self) -> Tensor:
        return (self.goes * self.channels.norms() ** self.power).sum()

    def importance(self) -> Tensor:
        """The norms, with all that goes below all that stays."""
        norms = self.channels.norms()
        return norms / norms.max().clamp_min(1e-12) + (1 - self.goes)

    def kept(self) -> Tensor:
        return self.goes == 0
