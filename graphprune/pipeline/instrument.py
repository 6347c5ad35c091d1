"""What is told of every pass while a recipe runs."""

from __future__ import annotations

from typing import Protocol

from ..ir.program import Program
from .base import Pass


class Instrument(Protocol):
    """Called between the passes of a recipe: ``gp.run(recipe, program, instruments=[...])``.

    A program never changes, so an instrument may keep what it is given. What one raises ends the run.
    """

    def before(self, step: Pass, program: Program) -> None:
        """``step`` is about to run on ``program``."""

    def after(self, step: Pass, program: Program, seconds: float) -> None:
        """``step`` made ``program`` in ``seconds``; of a step that raises only ``before`` is called."""
