"""Making up for what was cut, from calibration data. A method takes the cut program and what was kept, and returns
a pipeline.correction.Correct and a note, or none, of what is to say; adding one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..ir.facts import Keep
from ..ir.program import Program
from ..pipeline.correction import Correct
from .left_out import left_out
from .lsq import least_squares
from .mean import means
from .no_worse import further
from .statistics import recalibrate, renormalise

METHODS: Mapping[str, Callable[[Program, Keep], tuple[Correct, str]]] = {
    "lsq": least_squares,
    "mean": means,
    "bn": recalibrate,
    "renorm": renormalise,
}

__all__ = ["METHODS", "further", "left_out"]
