"""Robustness kept through a cut, without adversarial examples: the HSIC bottleneck, beside distillation (Jian et al.,
Pruning Adversarially Robust Neural Networks without Adversarial Examples, 2022; HBaR, Wang et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError, RecipeError
from .distil import NOT_RUN, watch
from .options import within


class HSICBottleneck(nn.Module):
    """``inputs`` * sum_l HSIC(x, z_l) - ``labels`` * sum_l HSIC(y, z_l), z_l what the submodules at ``at`` return:
    features that depend little on the input and much on the label are moved little by small changes of the input.

        bottleneck = gp.train.HSICBottleneck(module, at=("layer1", "layer2"))
        logits = module(x)
        loss = gp.train.answers(logits, teacher(x)) + bottleneck(x, y)

    ``teacher`` is the robust network as it was before the cut (self-distillation). ``y``: classes, of which only counts
    which are the same (their kernel is that of one-hot rows, with a column for each class of the batch), or one row a
    sample; kernels are Gaussian, of ``width`` times the square root of the number of entries; batches want some tens
    of samples. Both strengths are to be tuned: they go with the scale of the task, and no default fits all.

    [derived] Beside any of the methods here, or after a cut; the paper's own masks come of ADMM. Raises ModelError for
    a path that is not there, or returns no tensor, RecipeError for fewer than two samples.
    """

    def __init__(
        self, module: nn.Module, at: Sequence[str], *, inputs: float = 1e-3, labels: float = 5e-3, width: float = 5.0
    ) -> None:
        within("HSICBottleneck", "[0, inf)", inputs=inputs, labels=labels)
        within("HSICBottleneck", "(0, inf)", width=width)
        super().__init__()
        self.at, self.inputs, self.labels, self.width = tuple(at), inputs, labels, width
        self._seen: dict[str, Tensor] = {}
        self._handles = watch(module, self.at, self._seen)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if set(self._seen) != set(self.at):
            raise ModelError("the module has not run yet", NOT_RUN)
        sizes = {"x": len(x), "y": len(y)} | {f"`{path}`": len(seen) for path, seen in self._seen.items()}
        if len(x) < 2 or len({*sizes.values()}) > 1:
            raise RecipeError(
                f"HSICBottleneck: samples of {', '.join(f'{name}: {size}' for name, size in sizes.items())}",
                "as many of each, and two or more",
            )
        with torch.autocast(x.device.type, enabled=False):
            labels = y if y.is_floating_point() else F.one_hot(y.unique(return_inverse=True)[1]).float()
            given, wanted = gaussian(x, self.width), gaussian(labels, self.width)
            total = torch.zeros((), device=x.device)
            for path in self.at:
                own = gaussian(self._seen[path], self.width)
                total = total + self.inputs * hsic(given, own) - self.labels * hsic(wanted, own)
        self._seen.clear()
        return total

    def remove(self) -> None:
        """Take the hooks out of the module again."""
        for handle in self._handles:
            handle.remove()


def gaussian(samples: Tensor, width: float) -> Tensor:
    """exp(-||a - b||^2 / (2 sigma^2)) of every two samples, sigma = width sqrt(d)."""
    flat = samples.reshape(len(samples), -1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    squares = flat.square().sum(1)
    distances = (squares[:, None] + squares[None] - 2 * flat @ flat.T).clamp_min(0)
    return torch.exp(-distances / (2 * width**2 * flat.shape[1]))


def hsic(a: Tensor, b: Tensor) -> Tensor:
    """tr(A H B H) / (n - 1)^2 of two kernel matrices, H = I - 1/n: the biased estimate (Gretton et al., Measuring
    Statistical Dependence with Hilbert-Schmidt Norms, 2005, definition 2)."""
    centred = a - a.mean(0, keepdim=True) - a.mean(1, keepdim=True) + a.mean()
    return (centred * b).sum() / (len(a) - 1) ** 2
