"""Criteria from weights alone: l1, l2, bn, lamp, fpgm, random."""

from __future__ import annotations

import zlib

import numpy as np

from ..axes.index import shares
from ..ir.host import Array, as_real
from .scoring import ScoresByGroup, Scoring, criterion, folded


@criterion("l1")
def l1(scoring: Scoring) -> ScoresByGroup:
    """The L1 norm of every slice: Li et al., Pruning Filters for Efficient ConvNets (2017)."""
    return scoring.per_axis(lambda name, axis: slices(scoring.program.host.parameter(name), axis, 1))


@criterion("l2")
def l2(scoring: Scoring) -> ScoresByGroup:
    """The L2 norm of every slice: He et al., Soft Filter Pruning (2018)."""
    return scoring.per_axis(lambda name, axis: slices(scoring.program.host.parameter(name), axis, 2), np.sqrt)


@criterion("lamp", normalize="none")
def lamp(scoring: Scoring) -> ScoresByGroup:
    """The squared norm, layer-adaptive (LAMP, Lee et al. 2021).

    The squared norm as a share of what is left in its
    group with everything smaller gone. The largest of each group scores exactly 1, so that one threshold
    over all groups (``mask{allocate=global}``) empties none; any other scale of a group would undo that."""
    squares = scoring.per_axis(lambda name, axis: slices(scoring.program.host.parameter(name), axis, 2))
    return {name: lamp_of(own) for name, own in squares.items()}


def lamp_of(squares: Array) -> Array:
    order = np.argsort(squares, kind="stable")
    left = np.cumsum(squares[order][::-1])[::-1]
    out = np.empty_like(squares, dtype=np.float64)
    out[order] = squares[order] / np.where(left > 0, left, 1)
    return out


@criterion("fpgm")
def fpgm(scoring: Scoring) -> ScoresByGroup:
    """Distance to the other filters (FPGM, He et al. 2019).

    The sum of a filter's distances to the
    others of its axis. A channel that is near to all the others is one they can stand in for."""

    def distances(name: str, axis: int) -> Array:
        weight = as_real(scoring.program.host.parameter(name)).astype(np.float64)
        rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        squares = np.square(rows).sum(1)
        apart = np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0)
        total: Array = np.sqrt(apart).sum(1)
        return total

    return scoring.per_axis(distances)


@criterion("bn")
def bn(scoring: Scoring) -> ScoresByGroup:
    """|gamma| of BatchNorms (Network Slimming, Liu et al. 2017), the mean over the group's.

    Groups without a BatchNorm get their L2 norms, brought to the same mean by ``normalize``.
    """
    program, groups = scoring.program, scoring.groups
    gammas: dict[str, list[Array]] = {group.name: [] for group in groups}
    by_leaf = {group.dim: group for group in groups}
    for op in program.graph.ops:
        gamma = op.inputs[1] if op.kind == "batch_norm" and len(op.inputs) > 1 else None
        if gamma is None or gamma.name not in program.graph.parameters:
            continue
        values = np.abs(program.host.parameter(gamma.name)).astype(np.float64)
        for leaf, (at, index) in shares(gamma.dims[0]).items():
            if leaf in by_leaf:
                group = by_leaf[leaf]
                gammas[group.name].append(folded(values, at, index, group.size))
    norms = l2(scoring)
    return {name: np.mean(found, 0) if found else norms[name] for name, found in gammas.items()}


@criterion("random")
def random(scoring: Scoring) -> ScoresByGroup:
    """Uniform in [0.5, 1.5): the control that every criterion must beat."""
    seeds = {group.name: [scoring.program.seed, zlib.crc32(group.name.encode())] for group in scoring.groups}
    return {group.name: np.random.default_rng(seeds[group.name]).random(group.size) + 0.5 for group in scoring.groups}


def slices(weight: Array, axis: int, power: int) -> Array:
    """Per position of ``axis``, the sum of |w| or w*w over everything else."""
    before = int(np.prod(weight.shape[:axis], dtype=np.int64))
    w = (as_real(weight) if power == 2 else np.abs(weight)).reshape(before, weight.shape[axis], -1)
    total = np.einsum("abc,abc->b", w, w) if power == 2 else np.einsum("abc->b", w)
    summed: Array = total.astype(np.float64)
    return summed
