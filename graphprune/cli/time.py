"""`graphprune record` and `bench`: times of ops and of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .complete import Names
from .console import echo, echo_json, json_option, loudness, progress
from .example import input_option


@click.command(short_help="Record the latency table that a model needs on a target.")
@click.argument("model")
@click.option(
    "--target", "target_", metavar="NAME", type=Names("target"), required=True, help="The target to time ops on."
)
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
@input_option
@loudness
def record(model: str, target_: str, threads: int, rpc: str | None, out: Path, inputs: dict[str, Any] | None) -> None:
    """Time on a target every op that MODEL may have at any width, and keep the times in a file.

    Interrupted, it goes on where it was. `graphprune compile --table FILE` uses the table elsewhere.

    \b
    Examples:
      graphprune record model.onnx --target ort -o ort.jsonl
      graphprune record net.onnx --target raspberry-pi-4 --rpc pi:9090 -o pi.jsonl
      graphprune compile net.onnx --target ort --latency 0.5x --table t.jsonl -o o
    """
    from .. import api

    with progress() as told:
        table = api.record(model, target_, inputs, threads=threads, rpc=rpc, out=out, progress=told)
    echo(f"{sum(map(len, table.points.values()))} points: {out}")
    if table.damaged:
        echo(table.remark())


@click.command(short_help="Measure two models against each other, in turns.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--threads", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of each runtime."
)
@click.option(
    "--repeats", metavar="N", type=click.IntRange(min=3), default=50, show_default=True, help="Timed runs of each."
)
@json_option
@input_option
@loudness
def bench(a: Path, b: Path, threads: int, repeats: int, as_json: bool, inputs: dict[str, Any] | None) -> None:
    """Measure A against B, in turns so that a busy machine is unfair to neither.

    A and B are model files (.onnx, .pt2) or folders with compiled code that `graphprune compile` wrote.

    \b
    Examples:
      graphprune bench model.onnx out/model.onnx
      graphprune bench out/tvm out/onnx --threads 2 --repeats 200
    """
    from ..backends.measure import beside
    from ..backends.target import runnable
    from ..report.listing import compared

    with progress() as told:
        told("reading the models", 0, 1)
        first, second = (runnable(path, threads=threads, inputs=inputs) for path in (a, b))
        measured = beside(first, second, repeats, seconds=5.0, threads=threads, progress=told)
    if as_json:
        sides = {"a": {"model": str(a), **vars(measured.before)}, "b": {"model": str(b), **vars(measured.after)}}
        echo_json({**sides, "b_over_a": measured.share, "error": measured.error})
        return
    echo(compared((str(a), measured.before), (str(b), measured.after), measured.error))
