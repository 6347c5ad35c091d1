"""Masks that are learned while the network trains: what the module runs with is mask * weight.

Between optimizer steps every masked parameter *is* mask * weight, so that the user's forward, backward, saving
and evaluation all see the pruned network. Around ``optimizer.step`` the dense weights come back, so that
momentum, decay and adaptive moments act on them as on any weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..ir.program import Program
from .penalty import Penalty


class Masked(Penalty):
    """Subclasses say what the masks are and what gradients teach them; they call ``begin`` when ready.

    Channels are masked where they are *read*, so the masked network computes what the pruned one will.
    """

    over = "readers"

    def __init__(
        self, program: Program, module: nn.Module, optimizer: torch.optim.Optimizer | None, **options: Any
    ) -> None:
        super().__init__(program, module, optimizer, **options)
        self.need_optimizer()

    def masks(self) -> dict[str, Tensor]:
        """Per parameter, the factors that it runs with, shaped to multiply it."""
        raise NotImplementedError

    def revise(self, gradients: Mapping[str, Tensor]) -> None:
        """Learn from the gradients of the loss with respect to mask * weight, and turn them in place into
        those that the weights shall get."""

    def dense(self) -> dict[str, Tensor]:
        """The weights behind the masks, as they were after the last step."""
        return {name: self.get_buffer(f"dense{k}") for k, name in enumerate(self.tensors())}

    @torch.no_grad()
    def begin(self) -> None:
        """From here on the module runs masked."""
        for k, parameter in enumerate(self.tensors().values()):
            self.register_buffer(f"dense{k}", parameter.detach().clone())
        self.impose()

    @torch.no_grad()
    def impose(self) -> None:
        """Make the module's parameters mask * weight."""
        masks, dense = self.masks(), self.dense()
        for name, parameter in self.tensors().items():
            parameter.copy_(dense[name] * masks[name].to(parameter.dtype))

    def before(self, gradients: Mapping[str, Tensor]) -> None:
        self.revise(gradients)
        for name, weight in self.dense().items():
            self.tensors()[name].copy_(weight)

    def after(self) -> None:
        for name, weight in self.dense().items():
            weight.copy_(self.tensors()[name])
        self.impose()


def top(score: Tensor, share: float) -> Tensor:
    """Ones at the highest of ``score``, ``share`` of them and at least one; ties go to one side, so that
    the number is exact."""
    count = min(max(round(share * score.numel()), 1), score.numel())
    mask = torch.zeros(score.numel(), dtype=score.dtype, device=score.device)
    mask[score.flatten().topk(count).indices] = 1
    return mask.reshape(score.shape)


def highest(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Ones at the highest of all tensors together, ``share`` of them; the best of each tensor is among them, so that
    none is empty."""
    flat = [score.flatten().index_fill(0, score.argmax(), torch.inf) for score in scores.values()]
    total = sum(map(len, flat))
    mask = top(torch.cat(flat), max(share, len(flat) / total))
    parts = mask.split([len(one) for one in flat])
    return {name: part.reshape(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}
