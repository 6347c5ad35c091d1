"""Scores of ranks: what a layer that was factored loses without each, from its singular values."""

from __future__ import annotations

from ..axes.dim import find
from ..ir.facts import Groups
from ..ir.program import Program
from ..pipeline.factoring import Factor, undecided
from .scoring import ScoresByGroup

RANKS = {
    "energy": lambda values: values**2 / (values**2).sum(),
    "error": lambda values: values / values[0],
}
"""Per rank, from singular values: its share of the layer's output energy; or the relative error, in the operator norm,
of cutting there: what ALDS (Liebenwein et al. 2021, section 3) brings to the same for all layers."""


def worth_of_ranks(program: Program, groups: Groups, by: str) -> ScoresByGroup:
    """Of every group that is a rank whose layer is as ``factor`` made it."""
    values = {name: one.values for edit in program.plan.of(Factor) for name, one in edit.layers.items()}
    layers = {find(rank.dim): values[rank.outers[0]] for rank in undecided(program)}
    found = {group.name: layers[group.dim] for group in groups if group.dim in layers}
    return {name: RANKS[by](own) if own[0] > 0 else own for name, own in found.items()}
