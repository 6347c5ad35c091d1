"""ACIP: one run, models of any size (Genzel et al., Choose Your Model Size: Any Compression of Large Language Models
Without Re-Computation, 2025)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..cost.static import params
from ..errors import BudgetError
from ..ir.host import Array
from ..ir.program import Program
from ..pipeline.factoring import undecided
from .behind import Behind
from .options import whole, within
from .ranked import Ranked, orthogonal

WARM, CLOSED = 0.1, 0.6
"""When ranks begin to go, and when ``target`` is reached, as shares of the steps."""
MEMORY = 0.99
"""Of the mean square of a gate's gradient, what a step leaves."""


class ACIP(Behind, Ranked):
    """Each weight runs as U diag(m) U' W, U the singular vectors that it had at the start, m binary with a score p
    behind each, one at first. All p shrink, and a rank whose p comes to zero goes and stays away, until ``target`` of
    the network's parameters are left after six tenths of the ``total_steps``, for the others to recover. The score of a
    rank is when it went, or would go (the paper's score map): ranks of a smaller budget are among those of a larger
    one, so that one run gives models of any size:
    ``gp.run("mask{params=0.7x allocate=global},propagate", penalty.learned())``.

    As in the paper: the parametrisation, binary masks straight through, l1 that grows until the smallest size is there,
    the order of going as the score. [derived] Its masks have an optimizer of their own (Adam, at a rate and a growth of
    l1 to choose); under Adam, with gradients of mean zero as a trained network has them, a score shrinks as the
    reciprocal of the root mean square of its gate's gradient. Here that is its pace, and time runs so that ``target``
    is met when it shall be: no strength to choose, and no term in the loss. There weights rest but for low-rank
    adapters, so that what had gone still fits when a larger model has it back; here whatever the optimizer trains is
    trained, and therefore ``nested`` of the steps after ``target`` is met run at a larger size, drawn of all that there
    were (as in nested dropout, Rippel et al. 2014); the last step leaves ``target``. BatchNorm's statistics are then of
    many sizes: take them anew (``compensate{by=bn}``). Zero trains for ``target`` alone.

    Raises BudgetError where one rank a layer is more than ``target``.
    """

    shrinking: Tensor
    spread: Tensor
    fell: Tensor
    clock: Tensor

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        total_steps: int,
        target: float = 0.5,
        nested: float = 0.5,
        layers: str = "*",
        orders: str = "kernel",
    ) -> None:
        whole("ACIP", total_steps=total_steps)
        within("ACIP", "(0, 1]", target=target)
        within("ACIP", "[0, 1]", nested=nested)
        super().__init__(program, module, optimizer, layers=layers, orders=orders)
        self.need_optimizer()
        self.total_steps, self.target, self.nested = total_steps, target, nested
        opened = self.channels.opened
        self.cost = params(opened.graph, opened.host, ranks=undecided(opened))
        self.dims = {group.name: group.dim for group in self.channels.groups}
        least = self._share(torch.cat([torch.arange(group.size) == 0 for group in self.channels.groups]))
        if least > target:
            raise BudgetError(
                f"ACIP: target={target} of the parameters, and one rank a layer is {least:.3f} of them",
                "a larger target, or more `layers`",
            )
        for k, layer in enumerate(self.channels.layers.values()):
            matrix = layer.matrix(layer.parameter.detach())
            self.register_buffer(f"basis{k}", torch.from_numpy(orthogonal(matrix)).to(matrix))
        ones = torch.ones(self.channels.total, dtype=torch.float64, device=self.channels.device)
        self.register_buffer("shrinking", ones)
        self.register_buffer("spread", torch.zeros_like(ones))
        self.register_buffer("fell", torch.full_like(ones, torch.inf))
        self.register_buffer("clock", torch.zeros((), dtype=torch.float64, device=self.channels.device))
        self.begin()

    # ---- what runs -------------------------------------------------------------------------------

    def closed(self) -> bool:
        """Whether ``target`` is met."""
        return self._share(self.fell.isinf()) <= self.target

    def chosen(self, since: float = torch.inf) -> Tensor:
        """Per rank, whether it is there where all are that had not gone by then; once ``target`` is met, all of a layer
        that is no smaller as two."""
        alive = self.fell >= since
        if not self.closed():
            return alive
        pairs = zip(self.channels.layers.values(), self.channels.split(alive).values(), strict=True)
        return torch.cat([own if layer.pays(int(own.sum())) else torch.ones_like(own) for layer, own in pairs])

    def size(self) -> float:
        """Since when what has gone is left out at this step: an earlier time is a larger size."""
        done, gone = int(self.steps), self.fell[self.fell.isfinite()].sort().values
        rng = torch.Generator().manual_seed(done)  # the same on every rank, and in a resumed run
        if (
            not len(gone)
            or done >= self.total_steps
            or not self.closed()
            or torch.rand((), generator=rng) >= self.nested
        ):
            return torch.inf
        return float(gone[torch.randint(len(gone), (), generator=rng)])

    def running(self) -> dict[str, Tensor]:
        return self._through(self.dense())

    def _through(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each without the terms of the ranks that are not there."""
        out = {}
        for name, (basis, mask) in self._parts().items():
            out[name] = tensors[name]
            if not mask.all():
                layer = self.channels.layers[name]
                matrix = layer.matrix(tensors[name])
                kept = basis[:, mask]
                inside = kept @ (kept.T @ matrix) if _left(matrix) else (matrix @ kept) @ kept.T
                out[name] = layer.weight(inside)
        return out

    def _parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        masks = self.channels.split(self.chosen(self.size())).values()
        return {
            name: (self.get_buffer(f"basis{k}"), mask)
            for k, (name, mask) in enumerate(zip(self.channels.layers, masks, strict=True))
        }

    def revise(self, gradients: Mapping[str, Tensor]) -> None:
        dense, gates = self.dense(), []
        for name, (basis, mask) in self._parts().items():
            own = torch.zeros(len(mask), dtype=torch.float64, device=mask.device)
            if name in gradients:
                layer = self.channels.layers[name]
                gradient, weight = layer.matrix(gradients[name]), layer.matrix(dense[name])
                if _left(weight):
                    own += ((basis.T @ gradient) * (basis.T @ weight)).sum(1)
                else:
                    own += ((gradient @ basis) * (weight @ basis)).sum(0)
            gates.append(own)
        self.spread.mul_(MEMORY).add_(torch.cat(gates).square(), alpha=1 - MEMORY)
        for name, inside in self._through({**dense, **gradients}).items():
            if name in gradients:
                gradients[name].copy_(inside)

    # ---- what goes -------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        done = int(self.steps)
        if done >= WARM * self.total_steps:
            self._shrink(max(round(CLOSED * self.total_steps) - done, 0) + 1)
        self.impose()

    def _shrink(self, steps: int) -> None:
        """An equal part of the time that is left until the budget is met, in ``steps`` steps."""
        until = self._until()
        order = until.argsort(stable=True)
        low, high = 0, int(until.isfinite().sum())
        while low < high:  # how many have to go
            middle = (low + high) // 2
            alive = self.fell.isinf()
            alive[order[:middle]] = False
            low, high = (low, middle) if self._share(alive) <= self.target else (middle + 1, high)
        if low == 0:
            return
        time = until[order[low - 1]] / steps
        goes = order[:low][until[order[:low]] <= time]
        self.fell[goes] = self.clock + until[goes]
        self.shrinking.sub_(time * self._pace()).clamp_min_(0)
        self.clock += time

    def _pace(self) -> Tensor:
        return self.spread.clamp_min(torch.finfo(torch.float64).tiny).rsqrt()

    def _until(self) -> Tensor:
        """Per rank, the time until it goes: infinite for what has gone, and the last of each layer."""
        until = torch.where(self.fell.isinf(), self.shrinking / self._pace(), -1.0)
        for own in self.channels.split(until).values():
            own[own.argmax()] = torch.inf
        return until.masked_fill(~self.fell.isinf(), torch.inf)

    def _share(self, alive: Tensor) -> float:
        """Of the network's parameters."""
        left = {self.dims[name]: float(own.sum()) for name, own in self.channels.split(alive).items()}
        return float(self.cost(left) / self.cost())

    # ---- what was learned ------------------------------------------------------------------------

    def importance(self) -> Tensor:
        """When it went, or will go at its pace of now."""
        until = self.clock + self._until()
        expected = torch.where(until.isinf(), 2 * until.masked_fill(until.isinf(), 0).max() + 1, until)
        return torch.where(self.fell.isinf(), expected, self.fell)

    def kept(self) -> Tensor:
        return self.chosen()

    def bases(self) -> dict[str, Array]:
        """Those of the start, orthogonal to the last digit."""
        out = {}
        for k, name in enumerate(self.channels.layers):
            basis = self.get_buffer(f"basis{k}").double().cpu().numpy()
            exact, triangle = np.linalg.qr(basis)
            out[name] = exact * np.sign(np.diag(triangle))
        return out

    @torch.no_grad()
    def learned(self) -> Program:
        """With all ranks, those that went too: a budget chooses, or else the Keep of ``target``."""
        for name, weight in self.dense().items():
            self.tensors()[name].copy_(weight)
        try:
            return super().learned()
        finally:
            self.impose()


def _left(matrix: Tensor) -> bool:
    """Whether the basis is that of the rows."""
    return matrix.shape[0] <= matrix.shape[1]
