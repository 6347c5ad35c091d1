"""Making up for what was cut, from calibration data. A method takes the cut program and what was kept,
and returns a pipeline.correction.Correct; adding one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..ir.facts import Keep
from ..ir.program import Program
from ..pipeline.correction import Correct
from .left_out import left_out
from .lsq import least_squares
from .mean import means
from .no_worse import no_worse
from .statistics import recalibrate, renormalise

METHODS: Mapping[str, Callable[[Program, Keep], Correct]] = {
    "lsq": least_squares,
    "mean": means,
    "bn": recalibrate,
    "renorm": renormalise,
}
NEVER_WORSE = frozenset(("lsq", "mean"))
"""The methods of which no more is used than brings the outputs nearer on the calibration data: see no_worse."""

__all__ = ["METHODS", "NEVER_WORSE", "left_out", "no_worse"]
