"""Methods over the ranks of layers instead of channels: what ``factor`` opens, chosen in training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..coupling.contractions import contractions
from ..ir.host import Array
from ..ir.program import Program
from ..pipeline.factoring import Factor
from ..pipeline.recipe import Recipe
from ..pipeline.run import run
from .method import AUTO, Method
from .penalty import check_trainable, current
from .ranks import Ranks, factors


class Ranked(Method):
    """``layers``, ``orders``: as the pass ``factor`` takes them; a first layer that several share is not sought. Where
    so much of a rank stays that one weight is no larger than two, the layer is whole. See Method for the rest."""

    channels: Ranks

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        layers: str = "*",
        orders: str = "kernel",
        strength: float | str = AUTO,
    ) -> None:
        check_trainable(program)
        super().__init__(program, Ranks(program, module, layers, orders), optimizer, strength=strength)

    def bases(self) -> dict[str, Array]:
        """Per weight, an orthogonal basis of its smaller side, as columns: one a rank."""
        raise NotImplementedError

    @torch.no_grad()
    def learned(self) -> Program:
        """The program with the weights as they are now, two layers in the place of each, knowing the Scores of ranks
        and the Keep: ready for ``gp.compile`` or for ``gp.run("mask{...},propagate", ...)``."""
        fresh = current(self.program, self.channels.module)
        known = {layer.op.name: layer for layer in contractions(fresh.graph)}
        layers, bases = self.channels.layers, self.bases()
        made = {own.op: factors(own, known[own.op], fresh.host, bases[name]) for name, own in layers.items()}
        opened = run(Recipe.parse("group{only=*rank}"), Factor(made).apply(fresh))
        opened = opened.learn(self.scores()).note(f"ranks were scored in training, by {type(self).__name__}")
        keep = self.keep()
        return opened.learn(keep) if keep is not None else opened


def orthogonal(matrix: Tensor) -> Array:
    """The singular vectors of the smaller side, as columns, of the largest value first; float64."""
    wide = matrix.detach().double().cpu().numpy()
    left, _, right = np.linalg.svd(wide, full_matrices=False)
    basis: Array = left if len(wide) <= wide.shape[1] else right.T
    return basis
