"""compensate: make up for what was cut, without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from ..compensation import METHODS, further, left_out
from ..compensation.lsq import least_squares
from ..errors import RecipeError, nearest
from ..ir.facts import Keep
from ..ir.program import Program
from ..pipeline.base import Pass
from ..pipeline.bypass import Bypass
from ..pipeline.correction import Correct
from ..pipeline.edits import Cut
from ..pipeline.options import summary


@dataclass(frozen=True)
class Compensate(Pass):
    """Correct the layers after a cut from calibration data: by least squares, or biases by means."""

    name = "compensate"
    rewrites = True

    by: str = "lsq"  # how: lsq fits layers, mean biases, bn and renorm BatchNorm statistics
    bias: bool = True  # whether a layer that has no bias may get one: a class of the user's may have no place for it

    def __post_init__(self) -> None:
        if self.by not in METHODS:
            raise RecipeError(f"`compensate`: `by` cannot be `{self.by}`", nearest(self.by, METHODS))
        if not self.bias and self.by != "lsq":
            raise RecipeError(f"`compensate{{by={self.by}}}` fits no weights", "bias=false is for by=lsq")

    @classmethod
    def choices(cls) -> Mapping[str, Mapping[str, str]]:
        return {"by": {name: summary(function) for name, function in METHODS.items()}}

    def wants_data(self) -> bool:
        return True

    def makes_biases(self) -> bool:
        return self.fits() and self.bias

    def run(self, program: Program) -> Program:
        """See graphprune.compensation for the methods. Raises RecipeError before `propagate`, after `fold`,
        and after more than one cut."""
        cuts, gone = program.plan.of(Cut), program.plan.of(Bypass)
        fine = (Cut, Bypass, *((Correct,) if self.by in ("bn", "renorm") else ()))
        others = [edit for edit in program.plan.edits if not (edit.opens or isinstance(edit, fine))]
        if len(cuts) > 1 or len(gone) > 1 or not (cuts or gone) or others:
            raise RecipeError(
                f"`compensate` follows one `propagate`, here {len(cuts)} cuts and {len(others)} other edits were made",
                "put it right after `propagate`, and `fold` after it",
            )
        keep = cuts[0].fact() if cuts else Keep({})
        fit = METHODS[self.by] if self.bias else partial(least_squares, biases=False)
        correction, said = fit(program, keep)
        branches = "`compensate{by=mean}` makes up for channels, not for branches: by=lsq does"
        more = left_out(program, keep, self.by == "lsq") if self.fits() else further(program, correction, self.by)
        notes = branches if gone and self.by == "mean" else "", said, more
        return correction.apply(program).note(*filter(None, notes))

    def fits(self) -> bool:
        """Whether it promises no larger error, and layers that it cannot fit are worth a word; BatchNorm statistics are
        measured whatever reads them, and whatever comes of it."""
        return self.by in ("lsq", "mean")
