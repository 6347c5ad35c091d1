"""loosen: let every reader keep channels of its own."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration.curvature import Curvature
from ..coupling.groups import everything
from ..errors import RecipeError
from ..ir.facts import Groups, Keep, Scores
from ..ir.program import Program
from ..pipeline.base import Pass
from ..pipeline.edits import Reindex
from ..pipeline.factoring import ranks
from ..pipeline.recipe import Recipe
from ..reorder.carried_scores import carried, descended
from ..reorder.per_reader import unopened


@dataclass(frozen=True)
class Loosen(Pass):
    """Open a site before every reader that shares channels, from which on it keeps channels of its own."""

    name = "loosen"
    needs = (Groups,)
    gives = (Groups,)
    carries = (Scores,)
    also = (Curvature,)  # where scores are made anew by what learns it
    rewrites = True

    writers: bool = False  # also after every writer that shares channels in a sum

    def run(self, program: Program) -> Program:
        """The groups are found anew by the pass that found them. Scores are made anew by the pass that made
        them, where they say which; others (a user's own, those of training) are carried to the groups that
        theirs were split into. A Keep is dropped, with a note. A program whose sites are open stays as it is.
        Raises RecipeError where scores say nothing of a channel that is now chosen by itself."""
        if ranks(program):
            raise RecipeError(
                "`loosen` does not follow `factor`: which layers are two is settled by the cut", "leave out one of them"
            )
        sites = unopened(program, writers=self.writers)
        if not sites:
            return program
        old = program.fact(Groups)
        opened = Reindex(sites).apply(program)
        if program.knows(Keep):
            opened = opened.note(
                f"`{self.text()}`: the Keep of the groups before is dropped, their readers choose anew"
            )
        opened = _again(old.made, opened) if old.made else opened.learn(descended(everything(opened.graph), old))
        if not program.knows(Scores):
            return opened
        scores = program.fact(Scores)
        if scores.made:
            return _again(scores.made, opened)
        return opened.learn(carried(scores, old, opened.fact(Groups)))


def _again(made: str, program: Program) -> Program:
    for step in Recipe.parse(made).steps:
        program = step.run(program)
    return program
