"""Criteria from a loss: taylor, fisher, hessian. The loss is a callable in Python; torch host only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import sqrt

import numpy as np

from ..calibration.batches import bound, rows, sample_axes, samples
from ..errors import RecipeError
from ..ir.host import Array, Batch, as_real
from ..ir.program import Loss
from .scoring import ScoresByGroup, Scoring, criterion

PROBES = 8, 256
"""Rademacher vectors for the trace of the Hessian: at least, and at most."""
ERROR = 0.05
"""The standard error of any score, as a share of the largest, at which no more vectors are drawn."""


@criterion("taylor", loss=True)
def taylor(scoring: Scoring) -> ScoresByGroup:
    """What removing it changes the loss by, to first order (Molchanov et al. 2019).

    |sum g * w| over a slice, g the gradient of the mean loss over all samples: what removing the channel
    changes the loss by, to first order (Molchanov et al., Importance Estimation, 2019). The loss of a batch
    is taken for the mean over its samples."""
    return scoring.per_axis(partial(_products, scoring, mean_gradient(scoring)), np.abs)


def mean_gradient(scoring: Scoring) -> dict[str, Array]:
    """The gradient of the mean loss over all samples, per weight of the groups."""
    program, mean = scoring.program, dict[str, Array]()
    shares = _shares(scoring)
    for number, share in enumerate(shares):
        for name, gradient in _gradient(scoring, program.data[number], _loss(scoring).rest[number]).items():
            mean[name] = mean.get(name, 0.0) + share * as_real(gradient).astype(np.float64)
        program.progress("gradients", number + 1, len(shares))
    return mean


@criterion("fisher", loss=True)
def fisher(scoring: Scoring) -> ScoresByGroup:
    """Fisher information: mean squared gradient times weight (Theis et al. 2018).

    The mean over *samples* of (sum g * w)^2, g the gradient of one sample's loss: the empirical Fisher
    information's estimate of the change (Theis et al., Faster gaze prediction, 2018; Liu et al., Group Fisher
    Pruning, 2021). Each sample is run by itself, repeated where the batch size is fixed."""
    total: ScoresByGroup = {}
    count = sum(_counts(scoring))
    for number, (batch, rest) in enumerate(_singles(scoring)):
        one = scoring.per_axis(partial(_products, scoring, _gradient(scoring, batch, rest)), np.square)
        total = {name: score + total.get(name, 0.0) for name, score in one.items()}
        scoring.program.progress("gradients of samples", number + 1, count)
    return {name: score / count for name, score in total.items()}


@criterion("hessian", loss=True)
def hessian(scoring: Scoring) -> ScoresByGroup:
    """Trace of the Hessian times the squared norm (Yu et al. 2022).

    Tr(H_pp) / numel * |w_p|^2 per slice p (Yu et al., Hessian-aware pruning, 2022), the trace by
    Hutchinson's estimate with Rademacher vectors, in eval mode, until every score's standard error is below
    ``ERROR`` of the largest score, or ``PROBES`` are spent. A slice along which the loss curves
    down has a negative score."""
    program, rng = scoring.program, np.random.default_rng(scoring.program.seed)
    if odd := [name for name in _weights(scoring) if program.graph.parameters[name].dtype.startswith("complex")]:
        raise RecipeError(f"hessian: `{odd[0]}` has complex numbers", "taylor and fisher take them")
    axes = sorted({(name, axis) for group in scoring.groups for name, axis, _ in scoring.weights(group)})
    mean = {key: np.zeros(program.host.parameter(key[0]).shape[key[1]]) for key in axes}
    squares = {key: np.zeros_like(each) for key, each in mean.items()}
    for drawn in range(1, PROBES[1] + 1):
        for key, value in _probed(scoring, axes, rng).items():
            change = value - mean[key]
            mean[key] += change / drawn
            squares[key] += change * (value - mean[key])  # Welford
        error = sqrt(max(each.max() for each in squares.values()) / max(drawn - 1, 1) / drawn)
        size = max(np.abs(each).max() for each in mean.values())
        program.progress("Hessian probes", drawn, PROBES[1])
        if drawn >= PROBES[0] and error <= ERROR * size:
            break
    else:
        scoring.notes.append(
            f"hessian: after {PROBES[1]} probes scores are known to {error / size if size else 1:.0%} of the largest"
        )
    return scoring.per_axis(lambda name, axis: mean[name, axis])


def _probed(
    scoring: Scoring, axes: Sequence[tuple[str, int]], rng: np.random.Generator
) -> dict[tuple[str, int], Array]:
    """One draw of every score: v (H v) summed over each slice, over its size, times its squared norm."""
    program = scoring.program
    trace = probed_once(scoring, lambda name: rng.choice([-1.0, 1.0], program.host.parameter(name).shape))
    out = {}
    for name, axis in axes:
        weight = program.host.parameter(name).astype(np.float64)
        others = tuple(k for k in range(weight.ndim) if k != axis)
        out[name, axis] = trace[name].sum(others) * weight.shape[axis] / weight.size * np.square(weight).sum(others)
    return out


def probed_once(scoring: Scoring, vector: Callable[[str], Array]) -> dict[str, Array]:
    """v (H v), H the Hessian of the mean loss over all samples; ``vector`` gives v of a weight, each batch anew."""
    program, loss, total = scoring.program, _loss(scoring), dict[str, Array]()
    for number, share in enumerate(_shares(scoring)):
        probe = {name: vector(name) for name in _weights(scoring)}
        for name, value in program.host.gradients(
            program.data[number], loss.function, loss.rest[number], probe
        ).items():
            total[name] = total.get(name, 0.0) + share * value
    return total


def _counts(scoring: Scoring) -> list[int]:
    data = scoring.program.data
    axes = sample_axes(data, scoring.program.graph.inputs)
    return [samples(batch, axes) for batch in data]


def _shares(scoring: Scoring) -> list[float]:
    """The share of all samples that each batch has: the last one is often short."""
    counts = _counts(scoring)
    return [count / sum(counts) for count in counts]


def _singles(scoring: Scoring) -> Iterator[tuple[Batch, Batch]]:
    """Every sample as a batch of its own: of one where the batch axis is open, else of itself again and again."""
    program, loss = scoring.program, _loss(scoring)
    inputs, axes = program.graph.inputs, sample_axes(program.data, program.graph.inputs)
    times = bound(program.data, inputs) or 1
    for number, count in enumerate(_counts(scoring)):
        for k in range(count):
            at = np.full(times, k)
            yield rows(program.data[number], at, axes), rows(loss.rest[number], at)


def _loss(scoring: Scoring) -> Loss:
    loss = scoring.program.loss
    if loss is None:
        raise RecipeError(
            "this criterion takes a loss, and there is none",
            "--loss cross_entropy, or gp.load(..., data=(images, labels), loss='cross_entropy'); "
            "without a loss: obs, wifv, wanda (data), l2, bn, fpgm (weights)",
        )
    return loss


def _weights(scoring: Scoring) -> list[str]:
    return sorted({parameter for group in scoring.groups for parameter, _, _ in scoring.weights(group)})


def _gradient(scoring: Scoring, batch: Batch, rest: Batch) -> dict[str, Array]:
    found, names = scoring.program.host.gradients(batch, _loss(scoring).function, rest), set(_weights(scoring))
    return {name: value for name, value in found.items() if name in names}


def _products(scoring: Scoring, gradients: Mapping[str, Array], name: str, axis: int) -> Array:
    """Per position of an axis, the sum of gradient times weight."""
    product = as_real(gradients[name]).astype(np.float64) * as_real(scoring.program.host.parameter(name))
    total: Array = product.sum(tuple(k for k in range(product.ndim) if k != axis))
    return total
