"""`graphprune apply`: do to a fresh model what a plan says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import echo, loudness, note, progress
from .example import input_option


@click.command(short_help="Replay a plan on a fresh copy of the model it was made from.")
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("model")
@click.option(
    "-o",
    "--out",
    metavar="OUT",
    type=click.Path(path_type=Path),
    required=True,
    help="A file, or a folder for model and plan; of hf:FOLDER one that from_pretrained loads.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option(
    "--allow-other-weights", is_flag=True, help="Keep the same channels of a model with other weights, trained on."
)
@input_option
@loudness
def apply(
    plan: Path, model: str, out: Path, force: bool, allow_other_weights: bool, inputs: dict[str, Any] | None
) -> None:
    """Replay PLAN on a fresh copy of the MODEL that it was made from.

    PLAN is a plan.json, or the folder that `graphprune compile` wrote. Nothing is scored or measured again: the
    same weights come out, to the last bit. A model with other weights is refused.

    \b
    Examples:
      graphprune apply out model.onnx -o pruned.onnx
      graphprune apply out/plan.json model.onnx -o pruned.onnx
      graphprune apply out hf:FOLDER -o again
    """
    from .. import api
    from ..driver.save import save

    with progress() as told:
        told("replaying the plan", 0, 1)
        done = api.apply(plan, model, inputs, allow_other_weights=allow_other_weights)
        path, notes = save(done, out, force)
    for one in (*done.notes, *notes):
        note(one)
    echo(path)
