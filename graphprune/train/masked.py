"""Masks that are learned while the network trains: what the module runs with is mask * weight. See ``behind``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..ir.program import Program
from .behind import Behind
from .penalty import Penalty


class Masked(Behind, Penalty):
    """Subclasses say what the masks are and what gradients teach them.

    Channels are masked where they are *read*, so the masked network computes what the pruned one will. Groups that
    anything untrained reads are left whole, with a note: what is frozen is not masked, nor teaches what to mask.
    """

    over = "readers"
    exact = True

    def __init__(
        self, program: Program, module: nn.Module, optimizer: torch.optim.Optimizer | None, **options: Any
    ) -> None:
        super().__init__(program, module, optimizer, **options)
        self.need_optimizer()

    def masks(self) -> dict[str, Tensor]:
        """Per parameter, the factors that it runs with, shaped to multiply it."""
        raise NotImplementedError

    def running(self) -> dict[str, Tensor]:
        masks = self.masks()
        return {name: weight * masks[name].to(weight.dtype) for name, weight in self.dense().items()}


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
