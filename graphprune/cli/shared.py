"""Options that several commands take alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click


def portion(ctx: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """The callback of an option that is a share."""
    from ..pipeline.options import portion as read

    try:
        found = None if value is None else read(value)
    except ValueError:
        found = -1.0
    if found is not None and not 0 <= found <= 1:
        raise click.BadParameter(f"{value!r} is not a share: 0.1, 0.1x and 10% are one", ctx, option)
    return found


def widths(ctx: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """The callback of ``--width``: by name, each once."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, width = text.rpartition("=")
        if not equals or not name:
            raise click.UsageError(f"--width takes NAME=24 or NAME=0.5x, not {text!r}", ctx)
        if name in found:
            raise click.UsageError(f"--width gives `{name}` twice: {found[name]} and {width}", ctx)
        found[name] = width
    return found


def svg(ctx: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    """The callback of an option that names a picture: no other file is written over by a slip, and what cannot be
    written is said before the work."""
    from ..errors import OutputError

    if value is not None and value.suffix != ".svg":
        raise click.BadParameter(f"the picture is SVG: {str(value)!r} does not end in .svg", ctx, option)
    if value is not None and not value.parent.is_dir():
        raise OutputError(f"{value} cannot be written: there is no folder {value.parent}", "make the folder")
    return value


def images_options(command: Callable[..., None]) -> Callable[..., None]:
    """What becomes of a folder of images, as ``images``: None where nothing is said."""

    @click.option(
        "--mean", metavar="0.485,0.456,0.406", callback=_numbers, help="Of images: subtracted, a channel each."
    )
    @click.option("--std", metavar="0.229,0.224,0.225", callback=_numbers, help="Of images: then divided by.")
    @click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="Of images, where the model does not say it.")
    @click.option(
        "--resize",
        metavar="256",
        type=click.IntRange(min=1),
        help="Of images: the shorter side becomes so long and the middle is cut out; else they are stretched.",
    )
    @wraps(command)
    def called(
        *args: Any, mean: tuple[float, ...], std: tuple[float, ...], layout: str | None, resize: int | None, **rest: Any
    ) -> None:
        from ..calibration.images import Images

        said = mean or std or layout or resize
        command(*args, images=Images(mean, std, layout or "", resize or 0) if said else None, **rest)

    return called


def _numbers(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...]:
    try:
        return tuple(map(float, value.split(","))) if value else ()
    except ValueError:
        raise click.BadParameter(f"{value!r} is not numbers with commas between", ctx, option) from None
