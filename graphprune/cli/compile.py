"""`graphprune compile`: prune, prove, measure and write a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cost.units import UNITS
from .complete import Names
from .console import echo, loudness, note, progress, quiet
from .example import fixed_option, input_option
from .recipe import find_recipe
from .shared import images_options, portion, widths

if TYPE_CHECKING:
    from ..calibration.images import Images


def _budget(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """At most one budget is given."""
    given: list[str] = ctx.meta.setdefault("graphprune.budgets", [])
    if value is not None:
        given.append(f"--{option.name}")
    if len(given) > 1:
        raise click.UsageError(f"one budget at a time, not {' and '.join(given)}", ctx)
    return value


def _budgets(command: Callable[..., None]) -> Callable[..., None]:
    """An option per unit that a budget may be in."""
    for unit in reversed([*UNITS.values()]):
        option = click.option(
            f"--{unit.name}", metavar=unit.example, callback=_budget, help=f"What remains of {unit.of}."
        )
        command = option(command)
    return command


@click.command(short_help="Prune a model to a budget, verify it, and write it with a report.")
@click.argument("model")
@_budgets
@click.option(
    "--passes", "passes_", metavar="RECIPE", type=Names("recipe"), help="The recipe as text; see `graphprune passes`."
)
@click.option(
    "--recipe",
    metavar="NAME|FILE.toml",
    multiple=True,
    help="A published recipe (`graphprune passes`), with a budget; or one as TOML. Of several the result is taken that "
    "changes outputs least on samples held back; `auto` is what runs where none is given.",
)
@click.option("--freeze", metavar="GLOB", multiple=True, help="Leave alone: a group, layer or parameter. Repeatable.")
@click.option("--only", metavar="GLOB", multiple=True, help="Cut the outputs of these alone. Repeatable.")
@click.option(
    "--width",
    metavar="GLOB=24",
    multiple=True,
    callback=widths,
    help="A width of your own: a count, or 0.5x. Repeatable.",
)
@click.option("--floor", metavar="0.1", callback=portion, help="The least share that any group keeps: 0.1, 10%.")
@click.option(
    "--grain", metavar="8", type=click.IntRange(min=1), help="Keep multiples of it; by default what the targets like."
)
@click.option(
    "--alike/--unlike",
    default=None,
    help="Of hf:FOLDER: blocks of equal widths, as config.json can say, or each of its own, in a modeling_pruned.py.",
)
@click.option(
    "--vocabulary",
    metavar="OPTIONS",
    is_flag=False,
    flag_value="",
    help="Trim the vocabulary to the tokens of the data; or with options of that pass, 'occurs=5 keep=0-258'.",
)
@click.option(
    "--data",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Calibration data: an .npz (one array per input), or a folder of .npy files, images, or an .npz a sample.",
)
@images_options
@click.option(
    "--loss",
    metavar="NAME",
    help="For score{by=taylor} and its kin: cross_entropy, mse, bce, ... or package.module:function, on the labels "
    "in the data (an .npz with `labels`, images in a folder a class).",
)
@fixed_option
@input_option
@click.option(
    "--target",
    "targets_",
    metavar="NAME",
    type=Names("target"),
    multiple=True,
    help="Compile for it and measure on it. May be repeated.",
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
@click.option("--dry-run", is_flag=True, help="Show what would remain; write, fit and prove nothing.")
@click.option(
    "--cache/--no-cache",
    default=True,
    help="Go on where the same run was stopped: what long passes learn from data is kept until it ends well.",
)
@click.option("--verify/--no-verify", default=True, help="Prove that pruned equals masked (on unless switched off).")
@click.option("--measure/--no-measure", default=True, help="Time the network before and after (unless switched off).")
@click.option(
    "--eval",
    "evaluate",
    metavar="package.module:function",
    help="Your own figure, before and after: called with each network (an nn.Module, for ONNX an "
    "onnxruntime.InferenceSession), it returns a number or a dict of numbers.",
)
@click.option(
    "--print-after",
    metavar="PASS|all",
    type=Names("pass"),
    multiple=True,
    help="Print graph and facts to stderr after this pass. May be repeated.",
)
@click.option(
    "--dump",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write graph, facts, time and sizes after every pass, a folder each.",
)
@click.option("--force", is_flag=True, help="Replace OUT, and DIR of --dump, if they exist.")
@click.option("-o", "--out", metavar="OUT", type=click.Path(path_type=Path), help="The folder to write.  [required]")
@loudness
def compile(
    model: str,
    passes_: str | None,
    recipe: tuple[str, ...],
    freeze: tuple[str, ...],
    only: tuple[str, ...],
    width: dict[str, str],
    floor: float | None,
    grain: int | None,
    alike: bool | None,
    vocabulary: str | None,
    data: Path | None,
    images: Images | None,
    loss: str | None,
    fixed: tuple[str, ...],
    inputs: dict[str, Any] | None,
    targets_: tuple[str, ...],
    threads: int,
    table: Path | None,
    rpc: str | None,
    tune: str | None,
    seed: int,
    dry_run: bool,
    cache: bool,
    verify: bool,
    measure: bool,
    evaluate: str | None,
    print_after: tuple[str, ...],
    dump: Path | None,
    force: bool,
    out: Path | None,
    **budgets: Any,
) -> None:
    """Prune MODEL to a budget, verify the result, and write it to OUT with a report.

    The budget says what remains: 0.5x, 50% and 0.5 are half, 1.5G or 3MB so much; without one, half of the
    multiply-accumulates remain.
    Without a recipe of your own `auto` runs: with --data it measures what each group is worth and fits
    every layer after the cut to the original network, without it goes by weights; `graphprune passes` shows
    it, the report names it. OUT holds model.onnx or model.pt2, plan.json (what was kept, for `graphprune
    apply`), report.json, report.html and a folder of code per target. It is written whole or not at all.

    Tuning keeps every schedule it finds: interrupted (Ctrl-C ends it early) or run again it goes on where
    it was, and ops of the same sizes in other networks start from them.

    Under torchrun (torchrun --nproc_per_node 2 -m graphprune compile ...) what is computed of the data is shared out,
    and the plan is the one that a single process comes to.

    \b
    Examples:
      graphprune compile model.onnx --channels 0.7x -o out
      graphprune compile net.onnx --data x.npz --target onnx --target tvm -o out
      graphprune compile model.onnx --latency 0.6x --target cpu -o out
      graphprune compile detector.onnx --input image=1x3x320x320 -o out
      graphprune compile model.onnx --target best-cpu --tune 30min -o out
      graphprune compile model.onnx --macs 0.7x --freeze 'head*' --grain 16 -o out
      graphprune compile model.onnx --width stem=24 --width 'blocks.*=0.5x' -o out
      graphprune compile mynet.models:resnet --params 0.4x --seed 3 -o out --force
      graphprune compile train.py:net --macs 0.5x -o out
      graphprune compile model.pt2 --passes 'group,score,dead,propagate' -o out
      graphprune compile m.onnx --recipe 2ssp --params 0.7x --data c.npz -o out
      graphprune compile m.onnx --recipe auto --recipe all --data c.npz -o out
      graphprune compile model.onnx --print-after group --dump passes -o out
    """
    if passes_ is not None and recipe:
        raise click.UsageError("--passes and --recipe both give a recipe; take one")
    from ..pipeline.recipe import Recipe

    found = [find_recipe(one) for one in recipe] if passes_ is None else [Recipe.parse(passes_)]
    if any(budgets.values()) and not all(isinstance(one, str) for one in found):
        raise click.UsageError("a recipe has its budget in `mask{...}`; take one or the other")

    if out is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--out': the folder to write (or --dry-run)")
    if dry_run and (dump or tune):
        raise click.UsageError(f"--dry-run writes nothing: leave out {'--dump' if dump else '--tune'}")

    from .. import api
    from ..calibration.processes import rank, torchrun
    from ..report.page import table as shown_table
    from ..report.page import widths as shown_widths
    from ..report.printed import PrintAfter

    with torchrun(), progress() as told:
        silent = rank() > 0  # one of several speaks
        artifact = api.compile(
            model,
            inputs,
            **budgets,
            recipe=found or None,
            freeze=freeze,
            only=only,
            width=width,
            floor=floor,
            grain=grain,
            alike=alike,
            vocabulary=True if vocabulary == "" else vocabulary or False,
            data=data,
            images=images,
            loss=loss,
            fixed=fixed,
            targets=targets_,
            threads=threads,
            table=table,
            rpc=rpc,
            tune=tune,
            seed=seed,
            dry_run=dry_run,
            cache=cache,
            verify=verify,
            measure=measure,
            evaluate=evaluate,
            out=out,
            force=force,
            dump=dump,
            instruments=[PrintAfter(print_after, partial(echo, err=True))] if print_after else (),
            progress=None if silent else told,
        )
    if silent:
        return
    for one in artifact.report["notes"]:
        note(one)
    if quiet() and not dry_run:  # of which what it prints is all there is
        return
    echo(shown_table(artifact.report))
    echo(f"\nreport: {out / 'report.html'}" if out and not dry_run else f"\n{shown_widths(artifact.report)}")
