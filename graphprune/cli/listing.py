"""`graphprune passes` and `targets`: what recipes and options can name."""

from __future__ import annotations

import click

from .complete import Names
from .console import echo, echo_json, json_option


@click.command(short_help="List the passes of a recipe, or the options of one.")
@click.argument("name", type=Names("pass"), required=False)
@json_option
def passes(name: str | None, as_json: bool) -> None:
    """List the passes that a recipe can name, with their options and defaults; of one pass, NAME, also
    what each option can be: criteria, allocations, compensations, those of plug-ins too.

    \b
    A recipe is their names in order, options in braces:
      group,score{by=l2},mask{macs=0.5x grain=8},propagate,fold

    \b
    Examples:
      graphprune passes
      graphprune passes score
      graphprune passes mask --json
    """
    from ..driver.auto import default_recipe
    from ..errors import RecipeError, nearest, shown
    from ..pipeline.base import passes as every
    from ..pipeline.published import published
    from ..report.listing import entry, listed, wrapped

    if name is not None and name not in every():
        raise RecipeError(f"unknown pass `{shown(name)}`", nearest(name, every()))
    found = [entry(kind) for own, kind in every().items() if name in (None, own)]
    if as_json:
        echo_json(found if name is None else found[0])
        return
    for one in found:
        click.secho(one["name"], bold=True)
        echo(listed(one, full=name is not None))
    if name is None:
        click.secho("auto", bold=True)
        echo("    What runs where no recipe is given.")
        for what, data in (("with data", True), ("without", False)):
            echo(f"      {what}:\n        {default_recipe('macs', '0.5x', data=data).text()}")
        click.secho("published recipes", bold=True)
        width = max(map(len, published()))
        for own, recipe in published().items():
            echo(wrapped(recipe.summary, " " * (width + 6), f"    {own:<{width}}  "))
        echo(
            "\n`graphprune passes score` lists the criteria, `passes mask` the allocations,\n"
            "`passes compensate` the ways to make up for a cut."
        )


@click.command(short_help="List the targets that code can be made for.")
@json_option
def targets(as_json: bool) -> None:
    """List the targets that `graphprune compile --target` can name, with their options and defaults.

    \b
    Options go in braces, a board's name stands for `edge` with that board:
      graphprune compile model.onnx --target 'tvm{layout=NCHW}' -o out
      graphprune compile model.onnx --target raspberry-pi-4 -o out
    A board of your own is a .toml file: `base = "aarch64"` and what differs.
    """
    from ..backends.boards import boards
    from ..backends.target import targets as every
    from ..report.listing import entry, listed, wrapped

    found = [entry(kind, kind.summary) for kind in every().values()]
    if as_json:
        echo_json({"targets": found, "boards": {name: board.summary for name, board in boards().items()}})
        return
    for one in found:
        click.secho(one["name"], bold=True)
        echo(listed(one))
    click.secho("boards", bold=True)
    width = max(map(len, boards()))
    for name, board in boards().items():
        echo(wrapped(board.summary, " " * (width + 6), f"    {name:<{width}}  "))
