"""Where torch, onnx_ir and ONNX Runtime are called: what they raise has no base of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import GraphpruneError, ModelError, first_line

BEYOND = "index out of range in self"
"""What torch says of a number that is looked up in a table and has no row there."""


@contextmanager
def refusing(what: str, hint: str | None = None) -> Iterator[None]:
    """Whatever is raised within and is not graphprune's own becomes a ModelError: a model that cannot
    be read is no fault of the program that reads it."""
    try:
        yield
    except GraphpruneError:
        raise
    except Exception as error:
        if BEYOND in str(error):
            hint = "the data has numbers that a table has no row for: tokens of another vocabulary?"
        raise ModelError(f"{what} ({first_line(error)})", hint) from error


DRAWN = "random numbers are drawn for every position of it"
"""Why the axes of a random op stay as they are: cut, it would draw others."""
