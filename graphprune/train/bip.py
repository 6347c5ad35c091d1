"""BiP: pruning as bi-level optimisation (Zhang et al., Advancing Model Pruning via Bi-level Optimization, 2022).

    min over binary m of  loss(m * theta(m)),  theta(m) = argmin loss(m * theta) + gamma/2 ||theta||^2

The lower level is the optimizer's own step on m * gradient, with its weight decay for gamma. The upper level is
a step with momentum on real scores s along the implicit gradient, and a projection onto exactly k survivors:

    v <- mu v + (theta - (1/gamma) m * g) * g,   s <- s - beta v,   m <- top-k[s],   g = the gradient at m * theta

Constants and the opening at s = |theta| are those of the authors' code (CIFAR-10: beta = 0.1, mu = 0.9,
1/gamma = 1e-4, 100 epochs). In it scores and weights are moreover one tensor, so that each step moves both; here
they are two, as in the paper.

[derived] The paper gives each level a batch of its own. Here one backward pass serves both: when a batch
revises the mask, the weights that it looks at were made by the batches before it.

Of single weights it keeps far more accuracy than one-shot pruning and fine-tuning of the same length. Of channels it
does not in hundreds of steps, where the paper has 39,000: one that comes back has weights that were not trained
meanwhile. docs/benchmarks.md, Training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..ir.program import Program
from .masked import Masked
from .penalty import shares_of


class BiP(Masked):
    """``keep``: what remains, a share of every group or, by name, of each (of every weight tensor, where
    not ``structured``); met exactly after every step, rounded to whole channels.

    ``structured``: whole channels, by the L2 norm of the scores of what reads them; else single weights.
    ``lr`` is beta, and goes to a tenth at half and to a hundredth at three quarters of ``total_steps``
    where that is given; ``momentum`` is mu, ``curvature`` 1/gamma in the implicit gradient.
    """

    def __init__(
        self,
        program: Program,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        keep: float | Mapping[str, float] = 0.5,
        structured: bool = True,
        lr: float = 0.1,
        momentum: float = 0.9,
        curvature: float = 1e-4,
        total_steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(program, module, optimizer, **options)
        self.structured, self.lr, self.momentum = structured, lr, momentum
        self.curvature, self.total_steps = curvature, total_steps
        self.shares = shares_of(keep, self.channels.names if structured else self.tensors(), "BiP")
        for k, parameter in enumerate(self.tensors().values()):
            self.register_buffer(f"score{k}", parameter.detach().abs())
            self.register_buffer(f"velocity{k}", torch.zeros_like(parameter))
        self.begin()

    def tensors(self) -> dict[str, nn.Parameter]:
        return self.channels.tensors() if self.structured else self.weights()

    def real_scores(self) -> dict[str, Tensor]:
        """Per parameter, s: one number a weight."""
        return {name: self.get_buffer(f"score{k}") for k, name in enumerate(self.tensors())}

    def masks(self) -> dict[str, Tensor]:
        if self.structured:
            return self.channels.mask(self.chosen().float())
        return {name: top(score, self.shares[name]) for name, score in self.real_scores().items()}

    def chosen(self) -> Tensor:
        """Per channel, whether it survives."""
        pooled = self.channels.split(self.pooled())
        return torch.cat([top(own, self.shares[name]) for name, own in pooled.items()]) > 0

    def pooled(self) -> Tensor:
        """Per channel, the L2 norm of the scores; one that has fallen below zero speaks for nothing."""
        return self.channels.norms({name: score.clamp_min(0) for name, score in self.real_scores().items()})

    def revise(self, gradients: Mapping[str, Tensor]) -> None:
        masks, dense = self.masks(), self.dense()
        for k, (name, score) in enumerate(self.real_scores().items()):
            if name in gradients:
                gradient, velocity = gradients[name], self.get_buffer(f"velocity{k}")
                masked = masks[name] * gradient
                velocity.mul_(self.momentum).add_((dense[name] - self.curvature * masked) * gradient)
                score.sub_(self.rate() * velocity)
                gradient.copy_(masked)

    def rate(self) -> float:
        """beta at this step."""
        if self.total_steps is None:
            return self.lr
        done = int(self.steps) / self.total_steps
        return self.lr * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)

    def importance(self) -> Tensor:
        return self.pooled() if self.structured else self.channels.norms()

    def kept(self) -> Tensor | None:
        return self.chosen() if self.structured else None


def top(score: Tensor, share: float) -> Tensor:
    """Ones at the highest of ``score``, ``share`` of them and at least one; ties go to one side, so that
    the number is exact."""
    count = min(max(round(share * score.numel()), 1), score.numel())
    mask = torch.zeros(score.numel(), dtype=score.dtype, device=score.device)
    mask[score.flatten().topk(count).indices] = 1
    return mask.reshape(score.shape)
