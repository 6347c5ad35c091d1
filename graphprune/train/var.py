"""VAR: amplify the variance of the weights, so that one-shot pruning by magnitude has less to lose.

Yun, Jo and Lee, Weight Variance Amplifier Improves Accuracy in High-Sparsity One-Shot Pruning, 2025.

    R = sum over tensors of 1 / (Var(w~) + eps),  w~ = sqrt(w^2 + r),  Var = mean(w~^2) - mean(w~)^2

[derived: the print at hand has mean(w~) for mean(w~^2), which is no variance; r = eps = 1e-8 are the paper's]
    dR/dw = -(Var + eps)^-2 (2/n) (w~ - mean w~) w / w~

Grouped, w~_i = sqrt(||g_i||^2 + r) over the channels of a group. R is scale-free in neither the weights nor
their number: small weights far from each other count as alike, and ``strength`` has to fit the initial scale and the
decay, against which R grows the weights. Relative [derived: each term times n mean(w~^2) of its n weights], R is as
free of the scale as layers before a BatchNorm are.

Where it helps and where not: docs/benchmarks.md, Training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ir.program import Program
from .method import AUTO
from .penalty import Penalty
from .positions import wide

R = EPS = 1e-8


def inverse_variance(smoothed: Tensor) -> Tensor:
    """1 / (Var + eps) of one tensor of smoothed magnitudes."""
    return 1 / (smoothed.var(correction=0) + EPS)


class VAR(Penalty):
    """``grouped``: the variance of a group's channel norms, for structured pruning; else of the single
    weights of every tensor with at least two axes. ``relative``: free of their scale. The score is the magnitude.

    ``strength`` goes with the optimizer's decay: of single weights, with a decay of 5e-3, ten times the usual, 1e-4 did
    best where ``relative`` (1e-5 with convolutions and no norm), 1e-3 on a perceptron where not. It is for high
    sparsity, about nine tenths.
    """

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        strength: float | str = AUTO,
        grouped: bool = True,
        relative: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(program, module, optimizer, strength=strength, **options)
        self.grouped, self.relative = grouped, relative

    def value(self) -> Tensor:
        if self.grouped:
            norms = self.channels.norms()
            several = [own for own in self.channels.split((norms.square() + R).sqrt()).values() if len(own) > 1]
        else:
            several = [(wide(weight).square() + R).sqrt() for weight in self.weights().values() if weight.numel() > 1]
        total = torch.zeros((), device=self.channels.device)
        for smoothed in several:
            scale = smoothed.numel() * smoothed.square().mean() if self.relative else 1.0
            total = total + scale * inverse_variance(smoothed)
        return total
