"""The command line: parse, call, print. Everything heavy is imported inside the commands."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .errors import GraphpruneError

if TYPE_CHECKING:
    from .pipeline.recipe import Recipe


class _Commands(click.Group):
    """Commands in the order of their definition; a GraphpruneError is a message and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GraphpruneError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="graphprune")
def main() -> None:
    """Compile a trained network into a smaller one that provably computes what the masked one does.

    A MODEL is an ONNX file (model.onnx), a torch.export file (model.pt2), or package.module:factory,
    a function that returns (module, example_inputs), looked up from the current directory.

    \b
    Start here:
      graphprune inspect model.onnx                          what can be pruned, and what not and why
      graphprune compile model.onnx --macs 0.5x -o out       half the multiply-accumulates
      open out/report.html                                   what happened

    Exit codes: 0 done, 1 an error that is explained on stderr, 2 wrong usage.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # of libraries, about libraries


def _budget(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """At most one budget is given."""
    given: list[str] = ctx.meta.setdefault("graphprune.budgets", [])
    if value is not None:
        given.append(f"--{option.name}")
    if len(given) > 1:
        raise click.UsageError(f"one budget at a time, not {' and '.join(given)}", ctx)
    return value


@main.command(short_help="Prune a model to a budget, verify it, and write it with a report.")
@click.argument("model")
@click.option("--channels", metavar="0.5x", callback=_budget, help="What remains of the channels of each group.")
@click.option("--params", metavar="0.5x", callback=_budget, help="What remains of the parameters.")
@click.option("--macs", metavar="0.5x", callback=_budget, help="What remains of the multiply-accumulates.")
@click.option(
    "--latency",
    metavar="0.6x|12ms",
    callback=_budget,
    help="What remains of the latency, measured on the first target.",
)
@click.option("--passes", "passes_", metavar="RECIPE", help="The recipe as text; see `graphprune passes`.")
@click.option(
    "--recipe", metavar="FILE.toml", type=click.Path(dir_okay=False, path_type=Path), help="The recipe as TOML."
)
@click.option(
    "--data",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Calibration data: an .npz (one array per input), or a folder of .npy files or images.",
)
@click.option(
    "--target", "targets_", metavar="NAME", multiple=True, help="Compile for it and measure on it. May be repeated."
)
@click.option(
    "--threads", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="Threads to measure with."
)
@click.option(
    "--table",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A latency table that `graphprune record` wrote; else the cached one.",
)
@click.option(
    "--rpc",
    metavar="HOST:PORT[/KEY]",
    help="Measure a board's code on the device there: one running TVM's rpc_server, or a tracker with a key.",
)
@click.option(
    "--tune",
    metavar="10min|2000",
    help="Search faster schedules for the result on the first target, so long or so many trials.",
)
@click.option(
    "--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all randomness."
)
@click.option("--verify/--no-verify", default=True, help="Prove that pruned equals masked (on unless switched off).")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("-o", "--out", metavar="OUT", type=click.Path(path_type=Path), required=True, help="The folder to write.")
def compile(
    model: str,
    channels: str | None,
    params: str | None,
    macs: str | None,
    latency: str | None,
    passes_: str | None,
    recipe: Path | None,
    data: Path | None,
    targets_: tuple[str, ...],
    threads: int,
    table: Path | None,
    rpc: str | None,
    tune: str | None,
    seed: int,
    verify: bool,
    force: bool,
    out: Path,
) -> None:
    """Prune MODEL to a budget, verify the result, and write it to OUT with a report.

    The budget says what remains: 0.5x is half. Without a recipe of your own `auto` runs: with --data it
    measures what each group is worth and fits every layer after the cut to the original network, without
    it goes by weights; `graphprune passes` shows it, the report names it. OUT holds model.onnx or model.pt2,
    plan.json (what was kept, for `graphprune apply`), report.json, report.html and a folder of code per
    target. It is written whole or not at all.

    Tuning keeps every schedule it finds: interrupted (Ctrl-C ends it early) or run again it goes on where
    it was, and ops of the same sizes in other networks start from them.

    \b
    Examples:
      graphprune compile model.onnx --channels 0.7x -o out
      graphprune compile model.onnx --macs 0.5x --data calibration.npz --target onnx --target tvm -o out
      graphprune compile model.onnx --latency 0.6x --target cpu -o out
      graphprune compile model.onnx --macs 0.5x --target best-cpu --tune 30min -o out
      graphprune compile mynet.models:resnet --params 0.4x --seed 3 -o out --force
      graphprune compile model.pt2 --passes 'group,score{by=l1},mask{macs=0.5x grain=8},propagate' -o out
    """
    if passes_ is not None and recipe is not None:
        raise click.UsageError("--passes and --recipe both give a recipe; take one")
    if (passes_ or recipe) and (channels or params or macs or latency):
        raise click.UsageError("a recipe has its budget in `mask{...}`; take one or the other")

    from . import api
    from .report.page import table as shown_table
    from .report.progress import shown

    with shown() as progress:
        artifact = api.compile(
            model,
            channels=channels,
            params=params,
            macs=macs,
            latency=latency,
            recipe=_recipe(recipe) if recipe else passes_,
            data=data,
            targets=targets_,
            threads=threads,
            table=table,
            rpc=rpc,
            tune=tune,
            seed=seed,
            verify=verify,
            out=out,
            force=force,
            progress=progress,
        )
    click.echo(shown_table(artifact.report))
    click.echo(f"\nreport: {out / 'report.html'}")


def _recipe(path: Path) -> Recipe:
    from .errors import RecipeError
    from .pipeline.recipe import Recipe

    try:
        return Recipe.from_toml(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error


@main.command(short_help="Show what can be pruned, and what cannot and why.")
@click.argument("model")
@click.option(
    "--graph", metavar="OUT.svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw the dependency graph."
)
@click.option("--text", is_flag=True, help="Print the program as graphprune reads it, op by op.")
def inspect(model: str, graph: Path | None, text: bool) -> None:
    """Show what of MODEL can be pruned, and what cannot and why.

    A group is a set of channels that live or die together. Its members are parameter axes: writers make
    the channels, readers contract them, carriers (biases, norms, depthwise weights) go along.

    \b
    Examples:
      graphprune inspect model.onnx
      graphprune inspect model.onnx --graph groups.svg
      graphprune inspect mynet.models:resnet --text
    """
    from . import api
    from .coupling.groups import find_groups
    from .report.listing import describe
    from .report.progress import shown

    with shown() as progress:
        progress("reading the model", 0, 1)
        program = api.load(model)
        groups = find_groups(program.graph)
    if text:
        click.echo(program.graph.text())
    else:
        click.echo(describe(groups))
    if graph:
        from .report.dependency_graph import draw

        draw(groups, graph)
        click.echo(f"\ngraph: {graph}")


@main.command(short_help="Measure how sensitive the outputs are to each group.")
@click.argument("model")
@click.option("--data", metavar="DATA", type=click.Path(path_type=Path), required=True, help="As for compile.")
@click.option("--by", default="obs", show_default=True, help="The criterion by which channels go.")
@click.option(
    "--plot", metavar="OUT.svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw it as a heat map."
)
def sweep(model: str, data: Path, by: str, plot: Path | None) -> None:
    """Remove channels of one group of MODEL after the other, and measure what the outputs lose.

    The table has a line per group: the mean squared change of the outputs, as a share of their variance,
    with the lowest-scored channels removed and the layers that read the rest fitted to it.

    \b
    Example:
      graphprune sweep model.onnx --data calibration.npz --plot sensitivity.svg
    """
    from . import api
    from .driver import sensitivity
    from .report.progress import shown

    with shown() as progress:
        progress("reading the model", 0, 1)
        curves = sensitivity.sweep(api.load(model, data=data), by, progress)
    click.echo(sensitivity.table(curves))
    if plot:
        sensitivity.plot(curves, plot)
        click.echo(f"\nplot: {plot}")


@main.command(short_help="Replay a plan on a fresh copy of the model it was made from.")
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("model")
@click.option(
    "-o",
    "--out",
    metavar="OUT",
    type=click.Path(path_type=Path),
    required=True,
    help="A file, or a folder for model and plan.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def apply(plan: Path, model: str, out: Path, force: bool) -> None:
    """Replay PLAN on a fresh copy of the MODEL that it was made from.

    Nothing is scored or measured again: the same weights come out, to the last bit.

    \b
    Example:
      graphprune apply out/plan.json model.onnx -o pruned.onnx
    """
    from . import api
    from .driver.save import save
    from .pipeline.plan_file import read_plan
    from .report.progress import shown

    with shown() as progress:
        progress("replaying the plan", 0, 1)
        content = read_plan(plan)
        path = save(api.apply(content, model), content, out, force)
    click.echo(path)


@main.command(short_help="Record the latency table that a model needs on a target.")
@click.argument("model")
@click.option("--target", "target_", metavar="NAME", required=True, help="The target to time ops on.")
@click.option(
    "--threads", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="Threads to use."
)
@click.option(
    "--rpc",
    metavar="HOST:PORT[/KEY]",
    help="Measure a board's code on the device there: one running TVM's rpc_server, or a tracker with a key.",
)
@click.option(
    "-o", "--out", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The table."
)
def record(model: str, target_: str, threads: int, rpc: str | None, out: Path) -> None:
    """Time on a target every op that MODEL may have at any width, and keep the times in a file.

    Interrupted, it goes on where it was. `graphprune compile --table FILE` uses the table elsewhere.

    \b
    Examples:
      graphprune record model.onnx --target ort -o ort.jsonl
      graphprune record model.onnx --target raspberry-pi-4 --rpc 192.168.0.7:9090 -o pi.jsonl
      graphprune compile model.onnx --target raspberry-pi-4 --latency 0.5x --table pi.jsonl -o out
    """
    from . import api
    from .report.progress import shown

    with shown() as progress:
        table = api.record(model, target_, threads=threads, rpc=rpc, out=out, progress=progress)
    click.echo(f"{sum(map(len, table.points.values()))} points: {out}")


@main.command(short_help="Measure two models against each other, in turns.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--threads", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of each runtime."
)
@click.option(
    "--repeats", metavar="N", type=click.IntRange(min=3), default=50, show_default=True, help="Timed runs of each."
)
def bench(a: Path, b: Path, threads: int, repeats: int) -> None:
    """Measure A against B, in turns so that a busy machine is unfair to neither.

    A and B are model files (.onnx, .pt2) or folders with compiled code that `graphprune compile` wrote.

    \b
    Examples:
      graphprune bench model.onnx out/model.onnx
      graphprune bench out/tvm out/onnx --threads 2 --repeats 200
    """
    from .backends.measure import interleave
    from .backends.target import runnable
    from .report.listing import compared
    from .report.progress import shown

    with shown() as progress:
        progress("reading the models", 0, 1)
        calls = {"a": runnable(a, threads=threads), "b": runnable(b, threads=threads)}
        measured = interleave(calls, repeats, threads=threads, progress=progress)
    click.echo(compared((str(a), measured["a"]), (str(b), measured["b"])))


@main.command(short_help="List the passes of a recipe, with options and defaults.")
def passes() -> None:
    """List the passes that a recipe can name, with their options and defaults.

    \b
    A recipe is their names in order, options in braces:
      group,score{by=l2},mask{macs=0.5x grain=8},propagate,fold
    """
    from .api import default_recipe
    from .pipeline.base import passes as every
    from .report.listing import facts, indented, options, summary

    for name, kind in every().items():
        click.secho(name, bold=True)
        click.echo(indented([summary(kind), *facts(kind), *(f"  {line}" for line in options(kind))]))
    click.secho("auto", bold=True)
    recipes = {
        what: default_recipe("macs", "0.5x", data=what == "with data").text() for what in ("with data", "without")
    }
    click.echo(
        indented(["What runs where no recipe is given.", *(f"  {what}: {text}" for what, text in recipes.items())])
    )


@main.command(short_help="List the targets that code can be made for.")
def targets() -> None:
    """List the targets that `graphprune compile --target` can name, with their options and defaults.

    \b
    Options go in braces, a board's name stands for `edge` with that board:
      graphprune compile model.onnx --target onnx --target 'tvm{layout=NCHW}' -o out
      graphprune compile model.onnx --target raspberry-pi-4 -o out
    A board of your own is a .toml file: `base = "aarch64"` and what differs.
    """
    from .backends.boards import boards
    from .backends.target import targets as every
    from .report.listing import indented, options, summary

    for name, kind in every().items():
        click.secho(name, bold=True)
        click.echo(indented([kind.summary or summary(kind), *(f"  {line}" for line in options(kind))]))
    click.secho("boards", bold=True)
    width = max(map(len, boards()))
    click.echo(indented([f"{name:<{width}}  {board.summary}" for name, board in boards().items()]))


if __name__ == "__main__":
    main()
