"""score: how much each channel of a group is worth. Higher is more worth keeping."""

from __future__ import annotations

from dataclasses import dataclass

from ..criteria import COMBINE, NORMALIZE, Scoring, criteria
from ..errors import RecipeError, nearest
from ..ir.facts import Groups, Scores
from ..ir.program import Program
from ..pipeline.base import Pass


@dataclass(frozen=True)
class Score(Pass):
    """Score channels by a criterion: `graphprune passes score` lists them."""

    name = "score"
    needs = (Groups,)
    gives = (Scores,)

    by: str = "l2"
    over: str = "all"  # which weights of a group count: all, writers or readers
    combine: str = "mean"  # how they combine: mean, sum or max
    normalize: str = (
        "auto"  # how groups compare: mean, standard (zero mean, unit variance), none; auto: mean, lamp none
    )

    def __post_init__(self) -> None:
        allowed = {
            "by": criteria(),
            "over": ("all", "writers", "readers"),
            "combine": COMBINE,
            "normalize": ("auto", *NORMALIZE),
        }
        for option, choices in allowed.items():
            value = getattr(self, option)
            if value not in choices:
                raise RecipeError(f"`score`: `{option}` cannot be `{value}`", nearest(value, choices))

    def wants_data(self) -> bool:
        return criteria()[self.by].data

    def run(self, program: Program) -> Program:
        scoring = Scoring(program, program.fact(Groups), self.over, self.combine)
        criterion = criteria()[self.by]
        raw = criterion.score(scoring)
        scale = NORMALIZE[criterion.normalize if self.normalize == "auto" else self.normalize]
        for fact in scoring.learned:
            program = program.learn(fact)
        scores = Scores(self.by, {name: scale(score) for name, score in raw.items()})
        return program.learn(scores.signed(self.text())).note(*scoring.notes)
