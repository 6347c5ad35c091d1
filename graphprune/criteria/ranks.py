"""Scores of ranks: what a layer that was factored loses without each, from its singular values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..axes.dim import find
from ..ir.facts import Groups
from ..ir.host import Array
from ..ir.program import Program
from ..pipeline.factoring import Factor, undecided
from .scoring import ScoresByGroup


def energy(values: Array) -> Array:
    """The share that a rank has of what the layer makes: its singular value, squared."""
    share: Array = values**2 / (values**2).sum()
    return share


def error(values: Array) -> Array:
    """The layer's relative error, in the operator norm, if it is cut there.

    One threshold for all layers then minimises the largest of them, as ALDS does (Liebenwein et al. 2021, section 3).
    """
    relative: Array = values / values[0]
    return relative


RANKS: Mapping[str, Callable[[Array], Array]] = {"energy": energy, "error": error}
"""Per rank, from the singular values of its layer, falling."""


def worth_of_ranks(program: Program, groups: Groups, by: str) -> ScoresByGroup:
    """Of every group that is a rank whose layer is as ``factor`` made it."""
    values = {name: one.values for edit in program.plan.of(Factor) for name, one in edit.layers.items()}
    layers = {find(rank.dim): values[rank.outers[0]] for rank in undecided(program)}
    found = {group.name: layers[group.dim] for group in groups if group.dim in layers}
    return {name: RANKS[by](own) if own[0] > 0 else own for name, own in found.items()}
