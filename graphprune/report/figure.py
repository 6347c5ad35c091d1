"""Drawings as SVG files: the same drawing gives the same bytes, and a file is whole or not there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.atomic import stage, unwritable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def drawing(settings: Mapping[str, Any]) -> Iterator[None]:
    """While it lasts matplotlib draws texts as they are (a name like ``$x_1$`` is no formula, one in a script that its
    font has not an empty box), and no ids at random."""
    import matplotlib

    always = {"svg.hashsalt": "graphprune", "text.parse_math": False, "text.usetex": False}
    chosen: Any = {**always, **settings}
    with matplotlib.rc_context(chosen), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def write(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, in the place of a file that is there. Raises OutputError."""
    drawn = BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": "graphprune"})
    with stage(path) as place:
        made = place.new / path.name
        try:
            made.write_bytes(drawn.getvalue())
            made.replace(path)
        except OSError as error:
            raise unwritable(path, error) from error
