"""What commands print, and how much of it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..errors import printable

if TYPE_CHECKING:
    from ..pipeline.base import Progress

_KEY = "graphprune.loudness"


def loudness(command: Callable[..., None]) -> Callable[..., None]:
    """``-q`` and ``-v`` for a command: ``progress`` and ``note`` heed them."""
    quiet = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=lambda ctx, option, value: _said(ctx, -1 if value else 0),
        help="Print results and errors alone: no progress, no notes.",
    )
    verbose = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=lambda ctx, option, value: _said(ctx, 1 if value else 0),
        help="Print every step as it begins, with the time since the start.",
    )
    return quiet(verbose(command))


def _said(ctx: click.Context, how: int) -> None:
    before = ctx.meta.get(_KEY, 0)
    if how and before:
        raise click.UsageError("one of --quiet and --verbose", ctx)
    ctx.meta[_KEY] = how or before


def _how() -> int:
    return int(click.get_current_context().meta.get(_KEY, 0))


@contextmanager
def progress() -> Iterator[Progress]:
    """Progress on stderr, as much as was asked for."""
    from ..report.progress import shown

    with shown(_how()) as told:
        yield told


def quiet() -> bool:
    return _how() < 0


def echo(text: object, err: bool = False) -> None:
    """A line on stdout, or on stderr; what a terminal would obey in it (a model's names are anybody's) is spelt out."""
    click.echo(printable(str(text)), err=err)


def note(text: object) -> None:
    """A remark on stderr, unless --quiet."""
    if not quiet():
        echo(f"note: {text}", err=True)


json_option = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


def echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))  # ASCII: nothing for a terminal to obey


def plain_streams() -> None:
    """Characters that the encoding of a stream does not have are spelt out, where they would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
