"""TRP: Trained Rank Pruning (Xu et al., TRP: Trained Rank Pruning for Efficient Deep Neural Networks, 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..ir.host import Array
from ..ir.program import Program
from .options import whole
from .ranked import Ranked, orthogonal


class TRP(Ranked):
    """Every ``every`` steps, and at ``total_steps``, each weight is put to the least rank that leaves no more than
    ``energy`` of the sum of its squared singular values out; between, it trains as ever (section 3.1). R is the nuclear
    norm, the sum of all singular values, at the steps right after (section 3.2): its gradient there is U V', of the
    singular vectors that are left.

    What the cut network computes is what the module does after a truncation, and so after ``total_steps``. The score of
    a rank is its share of the energy of its weight. ``orders="separable"`` is the paper's decomposition in space, the
    default that in channels. ``strength`` is 3e-4 as in the authors' code, where it counts at every step.
    """

    left: Tensor

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        total_steps: int,
        energy: float = 0.02,
        every: int = 20,
        strength: float | str = 3e-4,
        layers: str = "*",
        orders: str = "kernel",
    ) -> None:
        whole("TRP", total_steps=total_steps)
        super().__init__(program, module, optimizer, layers=layers, orders=orders, strength=strength)
        if not 0 <= energy < 1 or every < 1:
            raise RecipeError(
                f"TRP: energy={energy}, every={every}", "a share from 0 to below 1, and a number of steps"
            )
        self.total_steps, self.energy, self.every = total_steps, energy, every
        sizes = [group.size for group in self.channels.groups]
        self.register_buffer("left", torch.tensor(sizes, device=self.channels.device))

    def truncates(self) -> bool:
        """Whether the weights were put to a lower rank after this many steps."""
        done = int(self.steps)
        return done > 0 and (done % self.every == 0 or done == self.total_steps)

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        if self.truncates():
            for k, layer in enumerate(self.channels.layers.values()):
                u, values, v = torch.linalg.svd(layer.matrix(layer.parameter), full_matrices=False)
                rank = least(values, self.energy)
                layer.parameter.copy_(layer.weight((u[:, :rank] * values[:rank]) @ v[:rank]))
                self.left[k] = rank

    def value(self) -> Tensor:
        total = torch.zeros((), device=self.channels.device)
        if self.truncates():
            for layer, rank in zip(self.channels.layers.values(), self.left.tolist(), strict=True):
                matrix = layer.matrix(layer.parameter)
                u, _, v = torch.linalg.svd(matrix.detach(), full_matrices=False)
                total = total + (matrix * (u[:, :rank] @ v[:rank])).sum()
        return total

    def importance(self) -> Tensor:
        shares = []
        for layer in self.channels.layers.values():
            energy = torch.linalg.svdvals(layer.matrix(layer.parameter.detach())).square()
            shares.append(energy / energy.sum().clamp_min(torch.finfo(energy.dtype).tiny))
        return torch.cat(shares)

    def kept(self) -> Tensor:
        sizes = [group.size for group in self.channels.groups]
        return torch.cat([torch.arange(n) < rank for n, rank in zip(sizes, self.left.tolist(), strict=True)])

    def bases(self) -> dict[str, Array]:
        return {name: orthogonal(layer.matrix(layer.parameter)) for name, layer in self.channels.layers.items()}


def least(values: Tensor, energy: float) -> int:
    """Of falling singular values, how many have to stay so that the others have no more than ``energy`` of all squares;
    one at least."""
    squares = values.double().square()
    out = squares.sum() - squares.cumsum(0)  # what is left out where so many and one more stay
    return min(int((out > energy * squares.sum()).sum()) + 1, len(values))
