"""Network slimming: sparse BatchNorm scales (Liu et al., 2017), of coupled channels together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..ir.program import Program
from .method import AUTO
from .penalty import Penalty


class Slimming(Penalty):
    """R = sum_i of the L2 norm of all the BatchNorm scales of channel i: |gamma_i| where there is one.

    As in the paper, but for scales that are coupled [derived: their L2 norm]. Groups that no BatchNorm scales have the
    score one, and no penalty. The paper's threshold over all layers is ``mask{allocate=global}``; its repetition is a
    loop of yours.
    """

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        strength: float | str = AUTO,
        **options: Any,
    ) -> None:
        super().__init__(program, module, optimizer, strength=strength, **options)
        norms = {
            op.inputs[1].name for op in self.program.graph.ops if op.kind == "batch_norm" and op.inputs[1] is not None
        }
        self.channels.parts = tuple(part for part in self.channels.parts if part.name in norms)
        if not self.channels.parts:
            raise ModelError("no BatchNorm scales any channel of the groups", "GroupLasso needs none")

    def value(self) -> Tensor:
        return self.channels.norms().sum()

    def importance(self) -> Tensor:
        return torch.where(self.channels.numel() > 0, self.channels.norms(), 1.0)
