"""BiP: pruning as bi-level optimisation (Zhang et al., Advancing Model Pruning via Bi-level Optimization, 2022).

    min over binary m of  loss(m * theta(m)),  theta(m) = argmin loss(m * theta) + gamma/2 ||theta||^2

The lower level is the optimizer's own step on m * gradient, with its weight decay for gamma. The upper level is
a step with momentum on real scores s along the implicit gradient, and a projection onto exactly k survivors:

    v <- mu v + (theta - (1/gamma) m * g) * g,   s <- s - beta v,   m <- top-k[s],   g = the gradient at m * theta

Constants and the opening at s = |theta| are those of the authors' code (CIFAR-10: beta = 0.1, mu = 0.9,
1/gamma = 1e-4, 100 epochs). In it scores and weights are moreover one tensor, so that each step moves both
(``tied``); by default they are two, as in the paper.

[derived] The paper gives each level a batch of its own. Here one backward pass serves both: when a batch
revises the mask, the weights that it looks at were made by the batches before it.

The rate of the paper, 0.1, is for 39,000 steps. In hundreds, with all weights competing, it swaps too much at a few per
cent; the default is a hundredth of it (0.03x of the weights: 97.7, at the rate zero 96.2, at the paper's 84.5; at 0.1x
all are alike). Of channels no rate tried beat the rate zero (95.4 against 91.5 to 93.9 on three seeds: one that comes
back has weights that were not trained meanwhile), so there the mask rests unless ``warm_up`` lets it move, and what is
left of the method is one-shot pruning by magnitude, trained masked. Figures: docs/benchmarks.md, Training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError, nearest
from ..ir.program import Program
from .masked import Masked, highest, top
from .options import whole, within
from .penalty import shares_of

SCOPES = ("global", "tensor")
"""Among what single weights compete."""


class BiP(Masked):
    """``keep``: what remains, a share of every group or, by name, of each (of every weight tensor, where
    not ``structured``); met exactly after every step, rounded to whole channels.

    ``structured``: whole channels, by the L2 norm of the scores of what reads them; else single weights, the highest
    of all tensors together and at least one of each (``scope="global"``, as the authors' code), or the share of each
    (``scope="tensor"``, and where ``keep`` is by name). ``tied``: the scores are the weights' magnitudes, and a step of
    theirs moves the weights [derived: along their sign].
    ``warm_up``: the share of ``total_steps`` in which the mask is revised; then it rests. By default one for single
    weights and zero for channels. Raises RecipeError for any other without ``total_steps``, of which it is a share, and
    for a ``scope`` of whole channels, whose ``keep`` is of every group.
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
        scope: str = "global",
        tied: bool = False,
        lr: float = 1e-3,
        momentum: float = 0.9,
        curvature: float = 1e-4,
        total_steps: int | None = None,
        warm_up: float | None = None,
        **options: Any,
    ) -> None:
        if scope not in SCOPES:
            raise RecipeError(f"BiP: `scope` cannot be `{scope}`", nearest(scope, SCOPES))
        if structured and scope != SCOPES[0]:
            raise RecipeError(f"BiP: `scope={scope}` says nothing of whole channels", "structured=False")
        if total_steps is not None:
            whole("BiP", total_steps=total_steps)
        if warm_up is not None:
            within("BiP", "[0, 1]", warm_up=warm_up)
            if 0 < warm_up < 1 and total_steps is None:
                raise RecipeError(f"BiP: warm_up={warm_up} of no number of steps", "give `total_steps`")
        within("BiP", "(0, inf)", curvature=curvature)
        within("BiP", "[0, inf)", lr=lr)
        within("BiP", "[0, 1)", momentum=momentum)
        super().__init__(program, module, optimizer, **options)
        self.structured, self.tied, self.lr, self.momentum = structured, tied, lr, momentum
        self.curvature, self.total_steps = curvature, total_steps
        self.warm_up = (0.0 if structured else 1.0) if warm_up is None else warm_up
        self.shares = shares_of(keep, self.channels.names if structured else self.tensors(), "BiP")
        self.together = not structured and scope == "global" and isinstance(keep, (int, float))
        for k, parameter in enumerate(self.tensors().values()):
            if not tied:
                self.register_buffer(f"score{k}", parameter.detach().abs())
            self.register_buffer(f"velocity{k}", torch.zeros_like(parameter))
        self.begin()

    def tensors(self) -> dict[str, nn.Parameter]:
        return self.channels.tensors() if self.structured else self.weights()

    def real_scores(self) -> dict[str, Tensor]:
        """Per parameter, s: one number a weight."""
        if self.tied:
            return {name: weight.abs() for name, weight in self.dense().items()}
        return {name: self.get_buffer(f"score{k}") for k, name in enumerate(self.tensors())}

    def masks(self) -> dict[str, Tensor]:
        if self.structured:
            return self.channels.mask(self.chosen().float())
        scores = self.real_scores()
        if self.together:
            return highest(scores, next(iter(self.shares.values())))
        return {name: top(score, self.shares[name]) for name, score in scores.items()}

    def chosen(self) -> Tensor:
        """Per channel, whether it survives."""
        pooled = self.channels.split(self.pooled())
        return torch.cat([top(own, self.shares[name]) for name, own in pooled.items()]) > 0

    def pooled(self) -> Tensor:
        """Per channel, the L2 norm of the scores; one that has fallen below zero speaks for nothing."""
        return self.channels.norms({name: score.clamp_min(0) for name, score in self.real_scores().items()})

    def revise(self, gradients: Mapping[str, Tensor]) -> None:
        masks, dense = self.masks(), self.dense()
        for k, name in enumerate(self.tensors()):
            if name in gradients:
                gradient, velocity = gradients[name], self.get_buffer(f"velocity{k}")
                masked = masks[name] * gradient
                velocity.mul_(self.momentum).add_((dense[name] - self.curvature * masked) * gradient)
                if self.tied:  # the step of |theta|, in theta
                    dense[name].sub_(self.rate() * velocity * dense[name].sign())
                else:
                    self.get_buffer(f"score{k}").sub_(self.rate() * velocity)
                gradient.copy_(masked)

    def rate(self) -> float:
        """beta at this step."""
        if self.warm_up == 0:
            return 0.0
        if self.total_steps is None:
            return self.lr
        done = int(self.steps) / self.total_steps
        if done >= self.warm_up:
            return 0.0
        return self.lr * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)

    def importance(self) -> Tensor:
        return self.pooled() if self.structured else self.channels.norms()

    def kept(self) -> Tensor | None:
        return self.chosen() if self.structured else None
