"""`graphprune curve`: one model compiled to several budgets, and a page over all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cost.units import UNITS
from .complete import Names
from .console import echo, echo_json, json_option, loudness, progress, quiet
from .example import fixed_option, input_option
from .shared import images_options, portion, widths

if TYPE_CHECKING:
    from ..calibration.images import Images


@click.command(short_help="Compile to several budgets, and set what is saved against what is lost.")
@click.argument("model")
@click.option(
    "--budgets",
    metavar="0.3..0.9",
    default="0.3..0.9",
    show_default=True,
    help="What remains: seven points of a range, 0.3..0.9/4 for four, or 0.3,0.5,0.8.",
)
@click.option(
    "--of", "unit", type=click.Choice([*UNITS]), default="macs", show_default=True, help="What budgets are of."
)
@click.option("--data", metavar="DATA", type=click.Path(path_type=Path), help="As for compile.")
@images_options
@click.option("--eval", "evaluate", metavar="package.module:function", help="Your own figure, as for compile.")
@click.option("--freeze", metavar="GLOB", multiple=True, help="As for compile. Repeatable.")
@click.option("--only", metavar="GLOB", multiple=True, help="As for compile. Repeatable.")
@click.option("--width", metavar="GLOB=24", multiple=True, callback=widths, help="As for compile. Repeatable.")
@click.option("--floor", metavar="0.1", callback=portion, help="As for compile.")
@click.option("--grain", metavar="8", type=click.IntRange(min=1), help="As for compile.")
@click.option(
    "--target", "targets_", metavar="NAME", type=Names("target"), multiple=True, help="Measure on it. May be repeated."
)
@click.option(
    "--threads", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="As for compile."
)
@click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True, help="As for compile.")
@fixed_option
@input_option
@json_option
@click.option("--force", is_flag=True, help="Replace the curve of something else in OUT.")
@click.option("-o", "--out", metavar="OUT", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@loudness
def curve(
    model: str,
    budgets: str,
    unit: str,
    data: Path | None,
    images: Images | None,
    evaluate: str | None,
    freeze: tuple[str, ...],
    only: tuple[str, ...],
    width: dict[str, str],
    floor: float | None,
    grain: int | None,
    targets_: tuple[str, ...],
    threads: int,
    seed: int,
    fixed: tuple[str, ...],
    inputs: dict[str, Any] | None,
    as_json: bool,
    force: bool,
    out: Path,
) -> None:
    """Compile MODEL to several budgets, and set sizes and latencies against the change of its outputs.

    OUT gets a folder per point, as `compile` writes it (without code for targets), curve.json, and curve.html,
    a page with a slider over the points. It is there after the first point; run again, it goes on where it was.

    \b
    Examples:
      graphprune curve model.onnx --data calibration.npz -o curve
      graphprune curve model.onnx --data x.npz --budgets 0.2..0.8/13 -o curve
      graphprune curve model.onnx --data x.npz --eval mine:accuracy -o curve
    """
    from .. import api
    from ..driver.curve import PAGE, table

    with progress() as told:
        made = api.curve(
            model,
            inputs,
            budgets=budgets,
            unit=unit,
            data=data,
            images=images,
            fixed=fixed,
            evaluate=evaluate,
            freeze=freeze,
            only=only,
            width=width,
            floor=floor,
            grain=grain,
            targets=targets_,
            threads=threads,
            seed=seed,
            out=out,
            force=force,
            progress=told,
        )
    if as_json:
        echo_json(made)
    if as_json or quiet():
        return
    echo(table(made))
    for point in made["points"]:
        if "error" in point:
            echo(f"{point['budget']}: {point['error']}")
    echo(f"\npage: {out / PAGE}")
