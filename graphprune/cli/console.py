"""What commands print."""

from __future__ import annotations

import io
import sys

import click

from ..errors import printable


def echo(text: object, err: bool = False) -> None:
    """A line on stdout, or on stderr; what a terminal would obey in it (a model's names are anybody's) is spelt out."""
    click.echo(printable(str(text)), err=err)


def plain_streams() -> None:
    """Characters that the encoding of a stream does not have are spelt out, where they would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
