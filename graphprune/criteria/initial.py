"""Criteria for networks that are not trained yet: snip, grasp, synflow. ``mask`` leaves every group a channel, so that
none of them can empty a layer (Hayou et al., Robust Pruning at Initialization, 2021)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..errors import RecipeError
from ..ir.host import Array, as_real
from .gradient import mean_gradient, probed_once
from .scoring import ScoresByGroup, Scoring, criterion


@criterion("snip", loss=True)
def snip(scoring: Scoring) -> ScoresByGroup:
    """Connection sensitivity, before training (SNIP, Lee et al. 2019).

    Sum |g * w| over a slice, g the gradient of the mean loss over all samples. Unlike in taylor, effects of opposite
    sign within a slice do not cancel."""
    gradient = mean_gradient(scoring)
    return scoring.per_axis(
        partial(_summed, {name: np.abs(g * _weight(scoring, name)) for name, g in gradient.items()})
    )


@criterion("grasp", loss=True)
def grasp(scoring: Scoring) -> ScoresByGroup:
    """Gradient flow, before training (GraSP, Wang et al. 2020).

    Sum w * (H g) over a slice, g the gradient of the mean loss and H its Hessian: to first order half of what the
    squared norm of the gradient loses without the slice. May be negative: without it the gradient grows. Both are
    of the weights that count (``over``)."""
    gradient = mean_gradient(scoring)
    products = probed_once(scoring, gradient.__getitem__)  # g * (H g)
    flows = {}
    for name, g in gradient.items():
        curved = np.divide(products[name], g, out=np.zeros_like(g), where=g != 0)
        flows[name] = curved * _weight(scoring, name)
    return scoring.per_axis(partial(_summed, flows))


@criterion("synflow")
def synflow(scoring: Scoring) -> ScoresByGroup:
    """Synaptic flow, before training and without data (SynFlow, Tanaka et al. 2020).

    Sum |w| * dR/d|w| over a slice, R the sum of the outputs of the network with the absolute values of all parameters,
    on inputs of ones (of whole numbers: the example's); on torch, in float64. One round: the paper's hundred are a loop
    of yours (``gp.train.cubic``)."""
    host = scoring.program.host
    if not host.trainable:
        raise RecipeError("synflow takes gradients, which only torch models have", "l2, bn, fpgm (weights)")
    host = host.copy("float64")
    host.own()
    for name in scoring.program.graph.parameters:
        host.set_parameter(name, np.abs(host.parameter(name)))
    ones = [np.ones_like(x) if x.dtype.kind == "f" else x for x in host.example()]
    gradients = host.gradients(ones, _total, [])
    flows = {name: as_real(g) * as_real(host.parameter(name)) for name, g in gradients.items()}
    return scoring.per_axis(partial(_summed, flows))


def _total(outputs: Any) -> Any:
    """The sum of every floating-point output."""
    from torch.utils import _pytree as pytree

    return sum(x.sum() for x in pytree.tree_leaves(outputs) if x.is_floating_point())


def _weight(scoring: Scoring, name: str) -> Array:
    return as_real(scoring.program.host.parameter(name))


def _summed(values: dict[str, Array], name: str, axis: int) -> Array:
    """Per position of an axis, the sum over all others."""
    each = values[name].astype(np.float64)
    total: Array = each.sum(tuple(k for k in range(each.ndim) if k != axis))
    return total
