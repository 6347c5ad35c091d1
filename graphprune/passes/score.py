"""score: how much each channel of a group is worth. Higher is more worth keeping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..calibration.curvature import Curvature
from ..criteria import COMBINE, NORMALIZE, Scoring, criteria
from ..criteria.branches import METHODS, worth
from ..criteria.ranks import RANKS, worth_of_ranks
from ..errors import DataError, ModelError, RecipeError, nearest
from ..ir.facts import Groups, Scores
from ..ir.host import Array
from ..ir.program import Program
from ..pipeline.base import Pass
from ..pipeline.options import summary


@dataclass(frozen=True)
class Score(Pass):
    """Score channels by a criterion, and branches by what the network loses without them."""

    name = "score"
    needs = (Groups,)
    gives = (Scores,)
    also = (Curvature,)

    by: str = "l2"  # the criterion: what a channel is worth
    over: str = "all"  # which weights of a group count: all, writers or readers
    combine: str = "mean"  # how they combine: mean, sum or max
    branches: str = "output"  # what a branch is worth, where `branches` offers any
    ranks: str = "energy"  # what a rank is worth, where `factor` opened any
    normalize: str = "auto"  # how the scores of groups compare: auto (as the criterion says), mean, standard, none

    def __post_init__(self) -> None:
        allowed = {
            "by": criteria(),
            "over": ("all", "writers", "readers"),
            "combine": COMBINE,
            "branches": METHODS,
            "ranks": RANKS,
            "normalize": ("auto", *NORMALIZE),
        }
        for option, choices in allowed.items():
            value = getattr(self, option)
            if value not in choices:
                raise RecipeError(f"`score`: `{option}` cannot be `{value}`", nearest(value, choices))

    @classmethod
    def choices(cls) -> Mapping[str, Mapping[str, str]]:
        wants = {name: "loss: " if one.loss else "data: " if one.data else "" for name, one in criteria().items()}
        return {
            "by": {name: f"{wants[name]}{summary(one.score)}" for name, one in criteria().items()},
            "branches": {name: summary(function) for name, function in METHODS.items()},
            "ranks": {name: summary(function) for name, function in RANKS.items()},
        }

    def wants_data(self) -> bool:
        return criteria()[self.by].data

    def wants_loss(self) -> bool:
        return criteria()[self.by].loss or self.branches == "loss"

    def run(self, program: Program) -> Program:
        channels, gates = program.fact(Groups).channels, program.fact(Groups).gates
        found = worth(program, gates, self.branches) if gates else {}
        scoring = Scoring(program, channels, self.over, self.combine)
        criterion = criteria()[self.by]
        if channels:
            scale = NORMALIZE[criterion.normalize if self.normalize == "auto" else self.normalize]
            found = {**{name: scale(score) for name, score in criterion.score(scoring).items()}, **found}
        _check_finite(program, channels, found)
        for fact in scoring.learned:
            program = program.learn(fact)
        found.update(worth_of_ranks(program, channels, self.ranks))
        scores = Scores(self.by if channels else self.branches, found)
        return program.learn(scores.signed(self.text())).note(*scoring.notes)


def _check_finite(program: Program, groups: Groups, found: Mapping[str, Array]) -> None:
    """Raises ModelError, or DataError, where a score is no number: it names the weight that is to blame, else it is
    what the network makes of the data."""
    for group in groups:
        if not np.isnan(found.get(group.name, ())).any():
            continue
        for member in group.members:
            weight = program.host.parameter(member.parameter)
            if infinite := int(np.isinf(weight).sum()):
                raise ModelError(
                    f"weight `{member.parameter}` has {infinite} infinite of {weight.size} numbers, so the channels of "
                    f"`{group.name}` have no score",
                    f"`group{{freeze={group.name}}}` leaves them alone",
                )
        raise DataError(
            f"the scores of `{group.name}` are no numbers: what the network makes of the data is too large to square",
            "calibration data has to be as the network was trained on",
        )
