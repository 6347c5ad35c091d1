"""The templates of pages and pictures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .units import count, duration, error

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup


def templates() -> jinja2.Environment:
    """Names in them are escaped, and what is missing is an error; numbers have the filters of ``units``, sentences
    ``said``."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("graphprune.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "duration": duration, "error": error, "said": said}
    return environment


def said(sentence: str) -> Markup:
    """A sentence of ours, escaped; what it has between backticks is code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))
