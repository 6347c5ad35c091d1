"""The positions of a program's groups (channels, ranks) as one vector, group after group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..ir.facts import Group
from ..ir.host import Array


class Positions:
    """Subclasses say where the module has them: ``tensors``."""

    def __init__(self, groups: tuple[Group, ...], module: nn.Module, device: torch.device) -> None:
        self.groups, self.module, self.device = groups, module, device
        self.total = sum(group.size for group in groups)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.groups)

    def tensors(self) -> dict[str, nn.Parameter]:
        """The parameters that they are in, each once."""
        raise NotImplementedError

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector over all positions as one vector a group."""
        sizes = [group.size for group in self.groups]
        return dict(zip(self.names, torch.split(vector, sizes), strict=True))

    def arrays(self, vector: Tensor) -> dict[str, Array]:
        return {name: own.detach().double().cpu().numpy() for name, own in self.split(vector).items()}

    def join(self, by_group: Mapping[str, Any]) -> Tensor:
        """One vector from one entry, or one vector, a group."""
        parts = [np.broadcast_to(np.asarray(by_group[g.name], dtype=np.float64), (g.size,)) for g in self.groups]
        return torch.from_numpy(np.concatenate(parts)).float().to(self.device)


def wide(tensor: Tensor) -> Tensor:
    """Half precision as single: squares would overflow."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
