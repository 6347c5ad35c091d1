"""`graphprune inspect`, `sweep` and `bisect`: what can be pruned, what it would cost, where outputs change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .complete import Names
from .console import echo, echo_json, json_option, loudness, note, progress
from .example import fixed_option, input_option
from .recipe import find_recipe
from .shared import svg


@click.command(short_help="Show what can be pruned, and what cannot and why.")
@click.argument("model")
@click.option(
    "--graph",
    metavar="OUT.svg",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=svg,
    help="Draw the network and its groups.",
)
@click.option("--all", "everything", is_flag=True, help="Every group with its parameter axes, and all that is frozen.")
@json_option
@click.option("--text", is_flag=True, help="Print the program as graphprune reads it, op by op.")
@input_option
@loudness
def inspect(
    model: str,
    graph: Path | None,
    everything: bool,
    as_json: bool,
    text: bool,
    inputs: dict[str, Any] | None,
) -> None:
    """Show what of MODEL can be pruned, and what cannot and why.

    A group is a set of channels that live or die together. Its members are parameter axes: writers make
    the channels, readers contract them, carriers (biases, norms, depthwise weights) go along. Of residual
    branches, which can go whole, it shows what goes along with each.

    \b
    Examples:
      graphprune inspect model.onnx
      graphprune inspect model.onnx --all
      graphprune inspect model.onnx --json
      graphprune inspect model.onnx --graph network.svg
      graphprune inspect mynet.models:resnet --text
    """
    if as_json and text:
        raise click.UsageError("one of --json and --text")

    from .. import api
    from ..coupling.groups import find_groups
    from ..report.branches import listed, rows
    from ..report.listing import describe
    from ..report.overview import overview, screen

    with progress() as told:
        told("reading the model", 0, 1)
        program = api.load(model, inputs, check=False)
        groups = find_groups(program.graph)
        found = overview(program, groups)
    if text:
        echo(program.graph.text())
    elif as_json:
        echo_json({**found, "branches": rows(program.graph, program.host)[0]})
    else:
        echo(describe(groups) if everything else screen(found))
        if branches := listed(program.graph, program.host, everything):
            echo(f"\n{branches}")
    for one in program.notes:
        note(one)
    if graph:
        from ..driver.layers import channels, layers
        from ..driver.output import put
        from ..report.network import picture

        put(graph, picture(layers(program, program), channels(program, groups)))
        echo(f"\ngraph: {graph}", err=as_json)


@click.command(short_help="Measure how sensitive the outputs are to each group.")
@click.argument("model")
@click.option("--data", metavar="DATA", type=click.Path(path_type=Path), required=True, help="As for compile.")
@click.option(
    "--by", type=Names("criterion"), default="obs", show_default=True, help="The criterion by which channels go."
)
@click.option(
    "--plot",
    metavar="OUT.svg",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=svg,
    help="Draw it as a heat map.",
)
@json_option
@fixed_option
@input_option
@loudness
def sweep(
    model: str,
    data: Path,
    by: str,
    plot: Path | None,
    as_json: bool,
    fixed: tuple[str, ...],
    inputs: dict[str, Any] | None,
) -> None:
    """Remove channels of one group of MODEL after the other, and measure what the outputs lose.

    The table has a line per group: the mean squared change of the outputs, as a share of their variance,
    with the lowest-scored channels removed and the layers that read the rest fitted to it.

    \b
    Example:
      graphprune sweep model.onnx --data calibration.npz --plot sensitivity.svg
    """
    from .. import api
    from ..driver import sensitivity

    with progress() as told:
        told("reading the model", 0, 1)
        curves = sensitivity.sweep(api.load(model, inputs, data=data, fixed=fixed), by, told)
    if as_json:
        echo_json(curves)
    else:
        echo(sensitivity.table(curves))
    if plot:
        sensitivity.plot(curves, plot)
        echo(f"\nplot: {plot}", err=as_json)


@click.command(short_help="Find the pass, and its groups, that make the outputs differ.")
@click.argument("model")
@click.option(
    "--passes", "passes_", metavar="RECIPE", type=Names("recipe"), help="The recipe as text; see `graphprune passes`."
)
@click.option(
    "--recipe", metavar="NAME|FILE.toml", help="A published recipe or `auto` (half of the MACs); or one as TOML."
)
@click.option("--data", metavar="DATA", type=click.Path(path_type=Path), help="As for compile; else the example.")
@click.option(
    "--tolerance", metavar="X", type=float, default=1e-3, show_default=True, help="The relative error that passes."
)
@click.option(
    "--against",
    type=click.Choice(["original", "masked"]),
    default="original",
    show_default=True,
    help="The model as it was given, or with the same channels zeroed where they are read.",
)
@fixed_option
@input_option
@loudness
@click.pass_context
def bisect(
    ctx: click.Context,
    model: str,
    passes_: str | None,
    recipe: str | None,
    data: Path | None,
    tolerance: float,
    against: str,
    fixed: tuple[str, ...],
    inputs: dict[str, Any] | None,
) -> None:
    """Find the first pass of a recipe that makes the outputs of MODEL differ by more than a tolerance, and
    a least set of groups whose cut in that pass is enough for it.

    Against the original it says which groups cost most; against the masked model, which a right cut equals
    to rounding, it finds faults of graphprune.

    Exit codes: 0 no pass is over the tolerance, 3 one is; 1 and 2 as everywhere.

    \b
    Examples:
      graphprune bisect net.onnx --passes 'group,score,mask{macs=0.5x},propagate'
      graphprune bisect net.onnx --recipe r.toml --data data.npz --against masked
    """
    if (passes_ is None) == (recipe is None):
        raise click.UsageError("give the recipe by one of --passes and --recipe")

    from .. import api
    from ..driver import bisect as bisection
    from ..driver.auto import AUTO, default_recipe
    from ..pipeline.published import published

    with progress() as told:
        told("reading the model", 0, 1)
        steps = find_recipe(recipe) if recipe is not None else passes_ or ""
        if steps == AUTO:
            steps = default_recipe("macs", "0.5x", data=data is not None)
        elif isinstance(steps, str) and steps in published():
            steps = published()[steps].recipe("macs", "0.5x")
        program = api.load(model, inputs, data=data, fixed=fixed)
        found = bisection.bisect(program, steps, tolerance=tolerance, against=against, progress=told)
    echo(bisection.table(found))
    if found.found is not None:
        ctx.exit(3)
