"""A layer's weight as the product of two, from its singular values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from ..coupling.contractions import Contraction
from ..coupling.factors import Factors, Within, matrix, parts
from ..ir.host import Array, Host
from .least_squares import Covariance

DAMP = 1e-6
"""What is added to the inputs' second moments, in their mean: what no calibration sample has still counts."""
HALF = 0.5
"""Of a layer's parameters: where ways to factor it are compared by what they lose."""


def orders(layer: Contraction) -> list[Within]:
    """The ways in which the taps of a layer may lie in two: the kernel first; where the windows leave no place out,
    single positions first; and of a kernel along two axes, first along one, then along the other. So that parameters
    and multiply-accumulates say the same of what is smaller."""
    spatial = layer.weight_shape[2:] if layer.op.kind == "conv" else ()
    whole = (True,) * len(spatial)
    as_large = layer.value.shape is not None and layer.out.shape is not None
    as_large = as_large and layer.value.shape[2:] == layer.out.shape[2:]  # type: ignore[index]
    if layer.taps == 1 or not as_large:
        return [whole]
    found = list[Within]()
    for first in product((True, False), repeat=len(spatial)):
        normal = tuple(own or n == 1 for own, n in zip(first, spatial, strict=True))
        if normal not in found and (all(first) or not any(first) or len(spatial) == 2):
            found.append(normal)
    return found


def factored(
    layers: Sequence[Contraction], host: Host, sums: Covariance | None, orders: Sequence[Within]
) -> tuple[Factors, float]:
    """Layers that read the same, with one first part, and what is lost where half of their parameters remain; of
    ``orders`` that one which loses least so.

    W S = A diag(s) B', with S S' the inputs' second moment (the identity without ``sums``), gives W = A (A' W): no
    inverse of S is needed, and of the first r columns of A no other pair of rank r comes closer to the outputs on the
    data (SVD-LLM, Wang et al. 2024, section 3.1; DRONE, Chen et al. 2021, theorem 1). The sign of each column of A
    makes its largest entry positive. Several layers: the same of their weights, one below the other.

    Of a convolution W is (outputs and some of the taps, inputs and the others), see coupling.factors.matrix. Where taps
    are among the rows, a rank costs what its change of the inputs is worth alone, overlaps of windows left out.
    """
    moment = None if sums is None else _second_moment(sums, layers[0].taps)
    weights = [layer.matrix(host)[0] for layer in layers]
    weights = [weight.reshape(len(weight), -1) for weight in weights]
    inputs, taps = weights[0].shape[1] // layers[0].taps, _taps(layers[0])
    whole = sum(weight.size for weight in weights)
    found: tuple[float, Within, Array, Array, Array] | None = None
    for first in orders:
        stacked = np.concatenate([matrix(w.reshape(len(w), inputs, *taps), first) for w in weights])
        basis, values = _basis(stacked, None if moment is None else _seen(moment, inputs, taps, first))
        lost = float((values[int(HALF * whole / sum(stacked.shape)) :] ** 2).sum())
        if found is None or lost < found[0]:
            found = lost, first, stacked, basis, values
    assert found is not None
    lost, first, stacked, basis, values = found
    outers, inner, at = {}, basis.T @ stacked, 0
    for layer, weight in zip(layers, weights, strict=True):
        rows = len(stacked) * len(weight) // sum(map(len, weights))
        outers[layer.op.name], made = parts(basis[at : at + rows], inner, layer, first, len(weight), inputs)
        at += rows
    return Factors(made, outers, values), lost


def lost_apart(each: Mapping[str, tuple[Factors, tuple[int, ...]]]) -> float:
    """What is lost of layers that are factored by themselves where half of the parameters of all remain; of each its
    (outputs, inputs). Ranks go where they are worth most for their parameters."""
    ranks = [
        (float(value) ** 2 / sum(shape[:2]), sum(shape[:2]), float(value) ** 2)
        for one, shape in each.values()
        for value in one.values
    ]
    left = HALF * sum(shape[0] * shape[1] for _, shape in each.values())
    lost = 0.0
    for _, price, energy in sorted(ranks, reverse=True):
        left -= price
        lost += energy if left < 0 else 0.0
    return lost


def _taps(layer: Contraction) -> tuple[int, ...]:
    return layer.weight_shape[2:] if layer.op.kind == "conv" else ()


def _second_moment(sums: Covariance, taps: int) -> Array:
    """Of (inputs x taps)."""
    gram, mean = sums.centred()
    moment = (gram[0] + np.outer(mean[0], mean[0])).reshape(taps, -1, taps, gram.shape[1] // taps)
    ordered: Array = moment.transpose(1, 0, 3, 2).reshape(gram[0].shape)
    return ordered


def _seen(moment: Array, inputs: int, taps: Sequence[int], first: Within) -> Array:
    """The second moment of the inputs with the taps of the first part, its mean over those of the second."""
    shape, spatial = (inputs, *taps), len(taps)
    order = [0, *(1 + k for k, own in enumerate(first) if own), *(1 + k for k, own in enumerate(first) if not own)]
    laid = moment.reshape(*shape, *shape).transpose(*order, *(k + spatial + 1 for k in order))
    others = int(np.prod([n for n, own in zip(taps, first, strict=True) if not own]))
    mine = len(moment) // others
    seen: Array = np.einsum("iaja->ij", laid.reshape(mine, others, mine, others)) / others
    return seen


def _basis(weight: Array, moment: Array | None) -> tuple[Array, Array]:
    """The left singular vectors of W S, as columns, and the singular values."""
    seen = weight
    if moment is not None:
        scale = max(float(np.trace(moment)) / len(moment), np.finfo(np.float64).tiny)
        seen = weight @ np.linalg.cholesky(moment / scale + DAMP * np.eye(len(moment))) * np.sqrt(scale)
    basis, values, _ = np.linalg.svd(seen, full_matrices=False)
    largest = np.take_along_axis(basis, np.abs(basis).argmax(0)[None], 0)
    return basis * np.where(largest < 0, -1.0, 1.0), values
