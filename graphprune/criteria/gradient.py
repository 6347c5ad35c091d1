"""Criteria from a loss: taylor, fisher, hessian. The loss is a callable in Python; torch host only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from ..errors import RecipeError
from ..ir.host import Array
from ..ir.program import Loss
from .scoring import ScoresByGroup, Scoring, criterion

PROBES = 8
"""Rademacher vectors a batch, for the trace of the Hessian."""


@criterion("taylor", loss=True)
def taylor(scoring: Scoring) -> ScoresByGroup:
    """|sum g * w| over a slice, g the gradient of the mean loss over the data: what removing the channel
    changes the loss by, to first order (Molchanov et al., Importance Estimation, 2019)."""
    batches = list(_gradients(scoring))
    mean = {name: np.mean([one[name] for one in batches], 0) for name in batches[0]}
    return scoring.per_axis(partial(_products, scoring, mean), np.abs)


@criterion("fisher", loss=True)
def fisher(scoring: Scoring) -> ScoresByGroup:
    """The mean over batches of (sum g * w)^2: the empirical Fisher information's estimate of the change
    (Theis et al., Faster gaze prediction, 2018; Liu et al., Group Fisher Pruning, 2021)."""
    total: ScoresByGroup = {}
    for gradients in _gradients(scoring):
        one = scoring.per_axis(partial(_products, scoring, gradients), np.square)
        total = {name: score + total.get(name, 0.0) for name, score in one.items()}
    return {name: score / len(scoring.program.data) for name, score in total.items()}


@criterion("hessian", loss=True)
def hessian(scoring: Scoring) -> ScoresByGroup:
    """Tr(H_pp) / numel * |w_p|^2 per slice p (Yu et al., Hessian-aware pruning, 2022), the trace by
    Hutchinson's estimate with Rademacher vectors, in eval mode. Negative traces count as zero."""
    program, loss = scoring.program, _loss(scoring)
    rng = np.random.default_rng(program.seed)
    shapes = {name: program.host.parameter(name).shape for name in _weights(scoring)}
    trace = {name: np.zeros(shape) for name, shape in shapes.items()}
    for number, batch in enumerate(program.data):
        for _ in range(PROBES):
            probe = {name: rng.choice([-1.0, 1.0], shape) for name, shape in shapes.items()}
            for name, value in program.host.gradients(batch, loss.function, loss.rest[number], probe).items():
                trace[name] += value / (PROBES * len(program.data))

    def values(name: str, axis: int) -> Array:
        weight = program.host.parameter(name).astype(np.float64)
        others = tuple(k for k in range(weight.ndim) if k != axis)
        numel = weight.size / weight.shape[axis]
        score: Array = np.maximum(trace[name].sum(others), 0) / numel * np.square(weight).sum(others)
        return score

    return scoring.per_axis(values)


def _loss(scoring: Scoring) -> Loss:
    loss = scoring.program.loss
    if loss is None:
        raise RecipeError(
            "this criterion takes a loss, and there is none",
            "gp.load(model, inputs, data=(images, labels), loss=torch.nn.functional.cross_entropy); "
            "without a loss: obs, wifv, wanda (data), l2, bn, fpgm (weights)",
        )
    return loss


def _weights(scoring: Scoring) -> list[str]:
    return sorted({parameter for group in scoring.groups for parameter, _, _ in scoring.weights(group)})


def _gradients(scoring: Scoring) -> Iterator[Mapping[str, Array]]:
    program, loss, names = scoring.program, _loss(scoring), set(_weights(scoring))
    for number, batch in enumerate(program.data):
        found = program.host.gradients(batch, loss.function, loss.rest[number])
        yield {name: value for name, value in found.items() if name in names}


def _products(scoring: Scoring, gradients: Mapping[str, Array], name: str, axis: int) -> Array:
    """Per position of an axis, the sum of gradient times weight."""
    product = gradients[name].astype(np.float64) * scoring.program.host.parameter(name)
    total: Array = product.sum(tuple(k for k in range(product.ndim) if k != axis))
    return total
