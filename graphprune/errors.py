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
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


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


def one_line(name: str) -> str:
    """A name as it is shown: in one line, whatever is in it."""
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


SHOWN = 60
"""Characters of what somebody wrote that a message repeats."""


def shown(value: object) -> str:
    """A value as a message repeats it: shortened where it is long."""
    try:
        text = str(value)
    except ValueError:  # Python writes no whole number beyond 4300 digits
        return f"a {type(value).__name__} too long to write"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for a misspelt ``word``: the closest of ``choices``, or all of them."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"known: {', '.join(known)}"


def absent(path: Path) -> str:
    """A hint for a file that is not there: what is called nearly so beside it, else where it was looked for."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    close = difflib.get_close_matches(path.name, sorted(one.name for one in path.parent.iterdir()), n=1, cutoff=0.8)
    return f"did you mean `{path.parent / close[0]}`?" if close else f"looked in {path.parent.resolve()}"


def raised(error: BaseException) -> str:
    """What code of the user's raised, in one line: the kind, what it says, and the line of theirs that is nearest."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    lines = traceback.extract_tb(error.__traceback__)
    theirs = [line for line in lines if line.filename.startswith(os.sep) and not _installed(Path(line.filename))]
    where = f"{theirs[-1].filename}:{theirs[-1].lineno}: {type(error).__name__}: " if theirs else ""
    return where + first_line(error)


class Terminated(SystemExit):
    """Somebody outside ends the process, which is no error of what runs."""


@contextmanager
def users_own(where: str, hint: str) -> Iterator[None]:
    """Code of the user's, which may raise anything and even leave the process: a ModelError that names it."""
    try:
        yield
    except (GraphpruneError, Terminated):
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{where}: {raised(error)}", hint) from error


def _installed(file: Path) -> bool:
    """Whether a file is Python's own, a package's, or graphprune's."""
    ours, python = Path(__file__).parent, Path(os.__file__).parent
    return file.is_relative_to(ours) or file.is_relative_to(python) or "site-packages" in file.parts


def first_line(error: BaseException) -> str:
    """What a foreign error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
