"""score: how much each channel of a group is worth. Higher is more worth keeping."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..dims import Dim, Indices, find, leaves, shares
from ..errors import RecipeError, nearest
from ..facts import Group, Groups, Scores
from ..ir import Array, Program
from ..pipeline import Pass
from ..reads import moments, reads

Criterion = Callable[["Score", Program, Groups], dict[str, Array]]


@dataclass(frozen=True)
class Score(Pass):
    """Score channels: by l1, l2, bn, random, or wifv (needs data)."""

    name = "score"
    needs = (Groups,)
    gives = (Scores,)

    by: str = "l2"
    over: str = "all"  # which weights of a group count: all, writers or readers
    combine: str = "mean"  # how they combine: mean, sum or max
    normalize: str = "mean"  # how groups compare: mean, standard (zero mean, unit variance) or none

    def __post_init__(self) -> None:
        allowed = {"by": CRITERIA, "over": ("all", "writers", "readers"), "combine": COMBINE, "normalize": NORMALIZE}
        for option, choices in allowed.items():
            value = getattr(self, option)
            if value not in choices:
                raise RecipeError(f"`score`: `{option}` cannot be `{value}`", nearest(value, choices))

    def wants_data(self) -> bool:
        return self.by in ("wifv",)

    def run(self, program: Program) -> Program:
        groups = program.fact(Groups)
        raw = CRITERIA[self.by](self, program, groups)
        return program.learn(Scores(self.by, {name: NORMALIZE[self.normalize](score) for name, score in raw.items()}))


def _magnitude(score: Score, program: Program, groups: Groups, power: int) -> dict[str, Array]:
    """The L1 or L2 norm of every slice, combined over the group's weights."""
    sums: dict[tuple[str, int], Array] = {}
    places: dict[Dim, dict[Dim, tuple[Indices, Indices]]] = {}  # a wide concat is an axis of many groups
    out = {}
    for group in groups:
        members = []
        for parameter, axis, dim in _weights(score, group):
            if (parameter, axis) not in sums:
                sums[parameter, axis] = _slices(program.host.parameter(parameter), axis, power)
            if find(dim) not in places:
                places[find(dim)] = shares(dim)
            members.append(_fold(sums[parameter, axis], *places[find(dim)][group.dim], group.size) ** (1 / power))
        out[group.name] = COMBINE[score.combine](np.stack(members)) if members else np.ones(group.size)
    return out


def _weights(score: Score, group: Group) -> Iterator[tuple[str, int, Dim]]:
    roles = {"all": ("writer", "reader"), "writers": ("writer",), "readers": ("reader",)}[score.over]
    for member in group.members:
        if member.role in roles and not member.parameter.endswith(("bias", "running_mean", "running_var")):
            yield member.parameter, member.axis, member.dim


def _slices(weight: Array, axis: int, power: int) -> Array:
    """Per position of ``axis``, the sum of |w| or w*w over everything else."""
    before = int(np.prod(weight.shape[:axis], dtype=np.int64))
    w = weight.reshape(before, weight.shape[axis], -1)
    total = np.einsum("abc,abc->b", w, w) if power == 2 else np.einsum("abc->b", np.abs(w))
    summed: Array = total.astype(np.float64)
    return summed


def _fold(values: Array, at: Indices, index: Indices, size: int) -> Array:
    """Sum values of an axis into the positions of one of its leaves: see dims.shares."""
    folded: Array = np.bincount(index, weights=values[at], minlength=size)
    return folded


def _l1(score: Score, program: Program, groups: Groups) -> dict[str, Array]:
    """Li et al., Pruning Filters for Efficient ConvNets (2017)."""
    return _magnitude(score, program, groups, 1)


def _l2(score: Score, program: Program, groups: Groups) -> dict[str, Array]:
    """He et al., Soft Filter Pruning (2018)."""
    return _magnitude(score, program, groups, 2)


def _bn(score: Score, program: Program, groups: Groups) -> dict[str, Array]:
    """|gamma| of the group's BatchNorms (Liu et al., Network Slimming, 2017), the mean over them.

    Groups without a BatchNorm get their L2 norms, brought to the same mean by ``normalize``.
    """
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
                gammas[group.name].append(_fold(values, at, index, group.size))
    norms = _l2(score, program, groups)
    return {name: np.mean(found, 0) if found else norms[name] for name, found in gammas.items()}


def _random(score: Score, program: Program, groups: Groups) -> dict[str, Array]:
    """Uniform in [0.5, 1.5): the control that every criterion must beat."""
    seeds = {group.name: [program.seed, zlib.crc32(group.name.encode())] for group in groups}
    return {group.name: np.random.default_rng(seeds[group.name]).random(group.size) + 0.5 for group in groups}


def _wifv(score: Score, program: Program, groups: Groups) -> dict[str, Array]:
    """Weighted input feature variance, FLAP (An et al., 2024), section 3.2: the variance of a
    reader's input channel times the squared norm of the weights that read it, over calibration data.

    Groups that no conv or linear reads get their L2 norms, brought to the same mean by ``normalize``.
    """
    by_leaf = {group.dim: group for group in groups}
    found = [read for read in reads(program.graph) if any(leaf in by_leaf for leaf in leaves(read.dim))]
    stats = moments(program.host, found, program.data)
    layers: dict[str, list[Array]] = {group.name: [] for group in groups}
    for read in found:
        energy = np.square(read.matrix(program.host)).sum((1, 3)).ravel()
        values = stats[read.value.name, read.axis].variance * energy
        for leaf, (at, index) in shares(read.dim).items():
            if leaf in by_leaf:
                group = by_leaf[leaf]
                layers[group.name].append(_fold(values, at, index, group.size))
    norms = _l2(score, program, groups)
    return {name: COMBINE[score.combine](np.stack(own)) if own else norms[name] for name, own in layers.items()}


CRITERIA: dict[str, Criterion] = {"l1": _l1, "l2": _l2, "bn": _bn, "random": _random, "wifv": _wifv}
COMBINE: dict[str, Callable[[Array], Array]] = {
    "mean": lambda x: x.mean(0),
    "sum": lambda x: x.sum(0),
    "max": lambda x: x.max(0),
}
NORMALIZE: dict[str, Callable[[Array], Array]] = {
    "mean": lambda x: x / x.mean() if x.mean() > 0 else x,
    "standard": lambda x: (x - x.mean()) / x.std() if x.std() > 0 else x - x.mean(),
    "none": lambda x: x,
}
