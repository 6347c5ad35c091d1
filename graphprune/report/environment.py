"""The templates of pages and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .units import count, duration, error

if TYPE_CHECKING:
    import jinja2


def templates() -> jinja2.Environment:
    """Names in them are escaped, and what is missing is an error; numbers have the filters of ``units``."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("graphprune.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "duration": duration, "error": error}
    return environment
