"""Gates that are trained: each channel is read through a factor m_i, a function of parameters of its own.

The gradient of the loss with respect to a gate is that of mask * weight, folded: dL/dm_i = sum over i's slices
of (dL/dz) theta. It is exact, and costs no second pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..cost.static import macs
from ..ir.facts import Groups
from ..ir.program import Program
from .masked import Masked


class Gated(Masked):
    """Subclasses give ``gates()``, differentiable in parameters that ``train_along`` announced."""

    def __init__(
        self, program: Program, module: nn.Module, optimizer: torch.optim.Optimizer | None = None, **options: Any
    ) -> None:
        super().__init__(program, module, optimizer, **options)
        cost = macs(self.program.graph, self.program.host)
        self.cost = torch.compiler.disable(cost)  # a user's compiled step does not look into graphs
        self.dims = {group.name: group.dim for group in self.program.fact(Groups).channels}

    def gates(self) -> Tensor:
        """Per channel, the factor that it is read with."""
        raise NotImplementedError

    def masks(self) -> dict[str, Tensor]:
        return self.channels.mask(self.gates().detach())

    def revise(self, gradients: Mapping[str, Tensor]) -> None:
        if not gradients:
            return
        dense = self.dense()
        with torch.enable_grad():
            masks = self.channels.mask(self.gates())
            parts = [(masks[name] * (gradient * dense[name])).sum() for name, gradient in gradients.items()]
            torch.stack(parts).sum().backward()
        for name, gradient in gradients.items():
            gradient.mul_(masks[name].detach())

    def macs(self, gates: Tensor) -> Tensor:
        """What remains of the multiply-accumulates when every channel counts as its gate: the compiler's
        own cost model, differentiable."""
        left = {self.dims[name]: own.sum() for name, own in self.channels.split(gates).items()}
        remaining: Any = self.cost(left)
        share: Tensor = remaining / self.cost()
        return share

    def importance(self) -> Tensor:
        return self.gates().detach()

    def kept(self) -> Tensor | None:
        return self.importance() >= 0.5
