"""DReSS: choose what will go first, regularise it while training, then prune (Data-driven Regularized
Structured Streamlining, 2025)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..ir.facts import Keep
from ..ir.program import Program
from .method import AUTO
from .options import within
from .penalty import Penalty, stays_first


class DReSS(Penalty):
    """R = sum over the channels that go of ||g_i||, or of its square (``power=2``).

    What goes is everything outside of the Keep that ``program`` knows, from any recipe:
    ``gp.run("group,score{by=wifv},mask{macs=0.5x}", program)``. Raises RecipeError where it knows none.
    The whole of the paper's first two steps, on any network; there it is on language models, with few data.
    """

    over = "all"
    goes: Tensor

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        strength: float | str = AUTO,
        power: int = 1,
        **options: Any,
    ) -> None:
        within("DReSS", "[1, 2]", power=power)
        super().__init__(program, module, optimizer, strength=strength, **options)
        self.power = power
        self.register_buffer("goes", leaving(self))

    def value(self) -> Tensor:
        return (self.goes * self.channels.norms() ** self.power).sum()

    def importance(self) -> Tensor:
        """The norms, with all that goes below all that stays."""
        return stays_first(1 - self.goes, self.channels.norms())

    def kept(self) -> Tensor:
        return self.goes == 0


def leaving(penalty: Penalty) -> Tensor:
    """Per channel, one where it is outside of the Keep that the program knows; RecipeError where it knows none."""
    if not penalty.program.knows(Keep):
        raise RecipeError(
            f"{type(penalty).__name__} is about what will go, and the program does not know what",
            'gp.run("group,score,mask{macs=0.5x}", program) chooses',
        )
    stays = penalty.program.fact(Keep).keep
    goes = [torch.ones(group.size) for group in penalty.channels.groups]
    for group, own in zip(penalty.channels.groups, goes, strict=True):
        own[torch.from_numpy(stays[group.name])] = 0
    return torch.cat(goes).to(penalty.channels.device)
