"""`--input`: the sizes, or values, of a model's inputs."""

from __future__ import annotations

import json
from typing import Any

import click

from ..errors import shown

DIGITS = 18
"""Of a size, at most: beyond, frameworks have no whole numbers."""


def _read(ctx: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, Any] | None:
    """By name: sizes as a tuple, a number, or an array of any value that JSON has."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, said = text.rpartition("=")
        if not equals or not name:
            raise click.BadParameter(f"`{text}` is not NAME=SIZES", ctx, option)
        if name in found:
            raise click.BadParameter(f"`{name}` is given twice", ctx, option)
        found[name] = _item(said, text, ctx, option)
    return found or None


def _item(said: str, text: str, ctx: click.Context, option: click.Parameter) -> Any:
    parts = said.split("x")
    if len(parts) > 1 and all(part.isdecimal() and len(part) <= DIGITS for part in parts):
        return tuple(map(int, parts))
    try:
        value = json.loads(said)
    except (ValueError, RecursionError):  # Python reads no whole number beyond 4300 digits
        value = None
    if isinstance(value, (bool, int, float)):
        return value
    if not isinstance(value, list):
        raise click.BadParameter(
            f"`{shown(text)}`: neither sizes such as 1x3x320x320 nor a value such as 16000", ctx, option
        )
    import numpy as np

    try:
        array = np.asarray(value)
    except ValueError as error:
        raise click.BadParameter(f"`{shown(text)}`: its rows differ in length", ctx, option) from error
    return array.astype(np.float32) if array.dtype.kind == "f" else array


input_option = click.option(
    "--input",
    "inputs",
    metavar="NAME=1x3x320x320",
    multiple=True,
    callback=_read,
    help="Sizes of an input, or its value (rate=16000, flag=true, length=[7]). May be repeated.",
)
fixed_option = click.option(
    "--fixed",
    metavar="NAME",
    multiple=True,
    help="An input that is the same for all calibration samples: a state, a rate. May be repeated.",
)
