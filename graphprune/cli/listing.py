"""`graphprune passes` and `targets`: what recipes and options can name."""

from __future__ import annotations

import click

from .console import echo


@click.command(short_help="List the passes of a recipe, with options and defaults.")
def passes() -> None:
    """List the passes that a recipe can name, with their options and defaults.

    \b
    A recipe is their names in order, options in braces:
      group,score{by=l2},mask{macs=0.5x grain=8},propagate,fold
    """
    from ..api import default_recipe
    from ..pipeline.base import passes as every
    from ..report.listing import facts, indented, options, summary

    for name, kind in every().items():
        click.secho(name, bold=True)
        echo(indented([summary(kind), *facts(kind), *(f"  {line}" for line in options(kind))]))
    click.secho("auto", bold=True)
    recipes = {
        what: default_recipe("macs", "0.5x", data=what == "with data").text() for what in ("with data", "without")
    }
    echo(indented(["What runs where no recipe is given.", *(f"  {what}: {text}" for what, text in recipes.items())]))


@click.command(short_help="List the targets that code can be made for.")
def targets() -> None:
    """List the targets that `graphprune compile --target` can name, with their options and defaults.

    \b
    Options go in braces, a board's name stands for `edge` with that board:
      graphprune compile model.onnx --target onnx --target 'tvm{layout=NCHW}' -o out
      graphprune compile model.onnx --target raspberry-pi-4 -o out
    A board of your own is a .toml file: `base = "aarch64"` and what differs.
    """
    from ..backends.boards import boards
    from ..backends.target import targets as every
    from ..report.listing import indented, options, summary

    for name, kind in every().items():
        click.secho(name, bold=True)
        echo(indented([kind.summary or summary(kind), *(f"  {line}" for line in options(kind))]))
    click.secho("boards", bold=True)
    width = max(map(len, boards()))
    echo(indented([f"{name:<{width}}  {board.summary}" for name, board in boards().items()]))
