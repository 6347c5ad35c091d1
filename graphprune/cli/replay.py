"""`graphprune apply`: do to a fresh model what a plan says."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Replay a plan on a fresh copy of the model it was made from.")
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
    from .. import api
    from ..driver.save import save
    from ..pipeline.plan_file import read_plan
    from ..report.progress import shown

    with shown() as progress:
        progress("replaying the plan", 0, 1)
        content = read_plan(plan)
        path = save(api.apply(content, model), content, out, force)
    click.echo(path)
