"""score: how much each channel of a group is worth. Higher is more worth keeping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..calibration.curvature import Curvature
from ..criteria import COMBINE, NORMALIZE, Scoring, criteria
from ..criteria.branches import METHODS, worth
from ..errors import RecipeError, nearest
from ..ir.facts import Groups, Scores
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
    normalize: str = "auto"  # how the scores of groups compare: auto (as the criterion says), mean, standard, none

    def __post_init__(self) -> None:
        allowed = {
            "by": criteria(),
            "over": ("all", "writers", "readers"),
            "combine": COMBINE,
            "branches": METHODS,
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
        for fact in scoring.learned:
            program = program.learn(fact)
        scores = Scores(self.by if channels else self.branches, found)
        return program.learn(scores.signed(self.text())).note(*scoring.notes)
