"""Everything graphprune raises on purpose.

GraphpruneError          where, what, the numbers, and a hint
|-- ModelError           the file or module is not a model that can be compiled
|-- ShapeError           axes that must agree do not
|-- RecipeError          an unknown pass, option or fact; a recipe that cannot run
|-- BudgetError          a budget that cannot be met
|-- DataError            calibration data that does not fit the model
|-- TargetError          a target that is not there or cannot build
|-- OutputError          the result cannot be written
`-- VerificationError    the result does not compute what it should
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class GraphpruneError(Exception):
    """Base of every deliberate error: one message, and a hint that says what to do. ``around``: the lines of the
    program where it happened, the op at fault marked."""

    around: str | None = None

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        hint = f"  hint: {self.hint}" if self.hint else None
        return printable("\n".join(part for part in (self.message, self.around, hint) if part))


class ModelError(GraphpruneError):
    """The file or module is not a model that can be compiled."""


class ShapeError(GraphpruneError):
    """Axes that must agree do not."""


class RecipeError(GraphpruneError):
    """An unknown pass, option or fact, or a recipe that cannot run."""


class BudgetError(GraphpruneError):
    """A budget that cannot be met."""


class DataError(GraphpruneError):
    """Calibration data that does not fit the model."""


class TargetError(GraphpruneError):
    """A target that is not there or cannot build."""


class OutputError(GraphpruneError):
    """The result cannot be written."""


class VerificationError(GraphpruneError):
    """The result does not compute what it should."""


_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text with what a terminal would obey or a file cannot hold spelt out as Python does: control characters but for
    new lines and tabs, marks of direction, halves of characters. Names are somebody else's."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for a misspelt ``word``: the closest of ``choices``, or all of them."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"known: {', '.join(known)}"


def first_line(error: BaseException) -> str:
    """What a foreign error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
