"""Where torch, onnx_ir and ONNX Runtime are called: what they raise has no base of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import GraphpruneError, ModelError, first_line


@contextmanager
def refusing(what: str, hint: str | None = None) -> Iterator[None]:
    """Whatever is raised within and is not graphprune's own becomes a ModelError: a model that cannot
    be read is no fault of the program that reads it."""
    try:
        yield
    except GraphpruneError:
        raise
    except Exception as error:
        raise ModelError(f"{what} ({first_line(error)})", hint) from error


DRAWN = "random numbers are drawn for every position of it"
"""Why the axes of a random op stay as they are: cut, it would draw others."""
