"""Accuracy at equal measured latency, trained CIFAR-10 networks: readers that agree or choose, latency or MACs.

    python -m benchmarks.equal_latency readers [--target ort] [--network resnet20 ...] [--budget 0.6x ...]
    python -m benchmarks.equal_latency macs    [--network resnet20 ...] [--budget 0.6x ...]
    python -m benchmarks.equal_latency --table          # both tables into docs/benchmarks.md

One thread, batch 1; all sides with the default criterion (512 training images), least squares
after the cut and no training; latencies with the default allocation, by measured distortion.

``readers``: readers of the same channels agree (constrained), choose each for itself (unconstrained), choose where
that is predicted to pay (mixed), and what `compile --latency` makes of it by itself (auto).

``macs``: in ONNX Runtime; the latency side is constrained. The MACs
sides take the largest budget (bisection) whose measured latency is no more than what the latency side was
measured at, with widths in multiples of 16 or of 8, whichever keeps more. Accuracy is that of the exported model
on the test images. Resumable: what ``--out`` holds is not run again.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import graphprune as gp
from graphprune.allocation.rd import measured_losses
from graphprune.backends import share
from graphprune.backends.measure import beside
from graphprune.backends.onnxruntime.target import Onnx
from graphprune.backends.target import target
from graphprune.driver.latency_search import to_latency
from graphprune.errors import BudgetError
from graphprune.ir.facts import Groups
from graphprune.ir.program import Program
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import run

from .cifar import TRAINED, calibration, images, network, normalised
from .latency import within
from .results import Results, between

PAGE = Path("docs/benchmarks.md")
MODES = {"constrained": "", "unconstrained": "unconstrained=readers", "mixed": "unconstrained=mixed"}
BUDGETS = ("0.8x", "0.6x", "0.4x")
GRAINS = (Onnx.grain, Onnx.grain // 2)
SIDES = {"global": "one threshold", "knapsack": "knapsack", "rd": "distortion"}
SCORE, REPAIR = "group,score{by=obs}", "propagate,compensate"


def load(name: str, folder: Path) -> Program:
    path = Onnx().emit(gp.load(network(name), torch.randn(2, 3, 32, 32)), folder)
    return gp.load(path, [np.zeros((1, 3, 32, 32), np.float32)], data=calibration()[0])


def accuracy(program: Program, batch: int = 250) -> float:
    """In percent, of the exported model in ONNX Runtime."""
    pixels, labels = images("test")
    x, model = normalised(pixels), Onnx().runnable(program)
    found = [model.run([x[k : k + batch]])[0].argmax(1) for k in range(0, len(x), batch)]
    return 100 * float((np.concatenate(found) == labels).mean())


def by_readers(name: str, on: str, budget: str, side: str) -> dict[str, Any]:
    """What of the latency is taken, and the accuracy."""
    aim = target(on)
    with tempfile.TemporaryDirectory() as folder:
        program = load(name, Path(folder))
        try:
            if side == "auto":
                made = gp.compile(program, latency=budget, targets=[aim], verify=False, cache=False).program
            else:
                loose = f" {MODES[side]} target={aim.name}" if MODES[side] else ""
                order = f"reorder{{target={aim.name}}}," if MODES[side] else ""
                mask = f"mask{{latency={budget} allocate=rd grain={aim.grain}{loose}}},{order}{REPAIR}"
                made = to_latency(program, Recipe.parse(f"{SCORE},{mask}"), aim).program
        except BudgetError as error:
            return {"error": str(error.message)}
        took = beside(aim.runnable(program), aim.runnable(made), seconds=8.0)
        return {"latency": took.share, "error of it": took.error, "accuracy": accuracy(made)}


def readers_table(rows: dict[str, dict[str, Any]]) -> str:
    """A row per network, target and budget: of every side the share of the latency and top-1 in percent."""
    sides = (*MODES, "auto")
    lines = [f"| network, target, budget | {' | '.join(sides)} |", f"|---|{'---|' * len(sides)}"]
    for key in dict.fromkeys(key.rpartition(", ")[0] for key in rows if key.rpartition(", ")[2] in sides):
        cells = []
        for side in sides:
            row = rows.get(f"{key}, {side}")
            if row is None:
                cells.append("")
            else:
                cells.append("not reached" if "error" in row else f"{row['latency']:.3f}x, {row['accuracy']:.2f}")
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(lines)


def one(name: str, budget: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        program = load(name, Path(folder))
        recipe = Recipe.parse(f"{SCORE},mask{{latency={budget} allocate=rd grain={Onnx.grain}}},{REPAIR}")
        try:
            ours = to_latency(program, recipe, Onnx()).program
        except BudgetError as error:
            return {"error": str(error.message)}
        took = share(Onnx().runnable(program), Onnx().runnable(ours))
        row: dict[str, Any] = {"latency": took, "accuracy": accuracy(ours), "whole": accuracy(program)}
        scored = run(Recipe.parse(SCORE), program)
        scored = scored.learn(measured_losses(scored, scored.fact(Groups)))
        for allocate in SIDES:
            found = [by_macs(program, scored, allocate, grain, took) for grain in GRAINS]
            row[allocate] = max(found, key=lambda side: side.get("accuracy", 0.0))
    return row


def by_macs(program: Program, scored: Program, allocate: str, grain: int, goal: float) -> dict[str, float]:
    """The largest MACs budget whose measured latency is within the goal, and its accuracy once repaired."""
    best, tail = None, f"allocate={allocate} grain={grain}}},propagate"
    for found in within(goal, program, scored, Onnx(), tail, least=0.05, steps=7):
        best = found
    if best is None:
        return {}
    _, macs, took = best
    repaired = run(Recipe.parse(f"mask{{macs={macs:.4f}x allocate={allocate} grain={grain}}},{REPAIR}"), scored)
    return {"macs": macs, "grain": grain, "latency": took, "accuracy": accuracy(repaired)}


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"| network, budget | whole | latency-targeted: x, top-1 | MACs, {' | MACs, '.join(SIDES.values())} |",
        f"|---|---|---|{'---|' * len(SIDES)}",
    ]
    for key, row in rows.items():
        if key.count(", ") > 1:
            continue
        if "error" in row:
            lines.append(f"| {key} | | {row['error']} |{' |' * len(SIDES)}")
            continue
        cells = [
            f"{side['latency']:.3f}, {side['accuracy']:.2f}" if side else "not reached"
            for side in (row, *(row[allocate] for allocate in SIDES))
        ]
        lines.append(f"| {key} | {row['whole']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("readers", "macs"))
    parser.add_argument("--out", type=Path, default=Path("docs/equal.json"))
    parser.add_argument("--network", action="append", choices=TRAINED)
    parser.add_argument("--budget", action="append")
    parser.add_argument("--target", default="ort", help="of `readers`: ort, cpu")
    parser.add_argument("--table", action="store_true", help="write the tables into the page")
    given = parser.parse_args()
    results, networks = Results(given.out), given.network or TRAINED
    if given.what == "macs":
        for name in networks:
            for budget in given.budget or ["0.6x"]:
                results.get(f"{name}, {budget}", functools.partial(one, name, budget))
    if given.what == "readers":
        label = target(given.target).label
        for name in networks:
            for budget in given.budget or BUDGETS:
                for side in (*MODES, "auto"):
                    job = functools.partial(by_readers, name, given.target, budget, side)
                    results.get(f"{name}, {label}, {budget}, {side}", job)
    tables = {"readers": readers_table(results.known), "macs": table(results.known)}
    for what, text in tables.items():
        print(text)
        if given.table:
            start = f"<!-- equal {what}: written by python -m benchmarks.equal_latency --table -->"
            between(PAGE, start, f"<!-- end of equal {what} -->", text)


if __name__ == "__main__":
    main()
