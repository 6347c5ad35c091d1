"""Latency targets: what was asked for, what the table predicted, what the target then measured.

    python -m benchmarks.latency [--out docs/latency.json] [--network ResNet-18 ...] [--target onnx --target tvm]
                                 [--budget 0.6x ...] [--threads 1 --threads 2] [--compare]

Resumable: what ``--out`` holds is not run again. ``--compare`` also prunes by MACs with the same scores to
the same measured latency (bisection), and says how much importance each way keeps. ``--table`` prints the
Markdown of what is there and runs nothing. Keep the machine quiet.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import graphprune as gp
from graphprune.backends import Target, share, target
from graphprune.backends.onnxruntime.target import Onnx
from graphprune.driver.latency_search import importance, to_latency
from graphprune.errors import BudgetError
from graphprune.ir.facts import Groups, Scores
from graphprune.ir.program import Program
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import run

from . import convnets
from .networks import NETWORKS, Sample
from .results import Results

DETECTOR = Path(__file__).parents[2] / "shared" / "data" / "onnx" / "version-RFB-320.onnx"


def _resnet18() -> Sample:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes: dict[str, Any] = dict(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
    sizes["num_labels"] = 1000  # which every configuration takes, and few declare
    return ResNetForImageClassification(ResNetConfig(**sizes)), (torch.randn(1, 3, 224, 224),)


def _mobilenetv2() -> Sample:
    module, example = convnets.make("MobileNetV2")
    return module, (example,)


MODELS: dict[str, Callable[[], Sample] | Path] = {
    "ResNet-18": _resnet18,
    "ResNet-50": NETWORKS["ResNet-50"],
    "MobileNetV2": _mobilenetv2,
    "DenseNet-121": NETWORKS["DenseNet-121"],
    "RFB-320": DETECTOR,
}


def load(name: str, folder: Path) -> Program:
    """The network as an ONNX file, so that no round pays for an export."""
    made = MODELS[name]
    if isinstance(made, Path):
        return gp.load(made)
    torch.manual_seed(0)
    module, inputs = made()
    return gp.load(Onnx().emit(gp.load(module.eval(), inputs), folder))


def one(program: Program, on: str, budget: str, threads: int, compare: bool) -> dict[str, Any]:
    """One row: a latency budget met, measured once more on its own, and the MACs budget beside it."""
    aim, start = target(on), time.perf_counter()
    recipe = Recipe.parse(f"group,score,mask{{latency={budget} grain={aim.grain}}},propagate")
    try:
        found = to_latency(program, recipe, aim, threads=threads)
    except BudgetError as error:
        return {"error": str(error.message), "seconds": time.perf_counter() - start}
    seconds = time.perf_counter() - start
    original = aim.runnable(program, threads=threads)
    again = share(original, aim.runnable(found.program, threads=threads), seconds=10)
    facts = {k: found.facts[k] for k in ("goal_ms", "whole_ms", "predicted_ms", "measured_ms", "importance")}
    row = {
        **facts,
        "wanted": float(budget.rstrip("x")),
        "remeasured": again,
        "rounds": len(found.facts["rounds"]),
        "points_measured": found.facts["table"]["measured_now"],
        "seconds": seconds,
    }
    if compare:
        row["importance_by_macs"], row["share_by_macs"] = by_macs(program, on, row["remeasured"], threads, aim.grain)
        row["importance_at_any_width"], _ = by_macs(program, on, row["remeasured"], threads, 1, "global")
    return row


def by_macs(
    program: Program, on: str, goal: float, threads: int, grain: int, allocate: str = "knapsack"
) -> tuple[float, float]:
    """The importance that a MACs budget keeps at no more than that share of the latency,
    and the share."""
    scored, best = run(Recipe.parse("group,score"), program), (0.0, 0.0)
    tail = f"allocate={allocate} grain={grain}}},propagate"
    for cut, _, took in within(goal, program, scored, target(on), tail, threads=threads, seconds=5):
        kept = {name: len(own) for name, own in cut.plan["steps"][0]["keep"].items()}
        best = max(best, (importance(scored.fact(Groups), scored.fact(Scores), kept), took))
    return best


def within(
    goal: float, program: Program, scored: Program, on: Target, tail: str, *,
    threads: int = 1, least: float = 0.0, steps: int = 6, seconds: float = 4.0,
) -> Iterator[tuple[Program, float, float]]:  # fmt: skip
    """By bisection, ever larger MACs budgets (``mask{macs=...x`` and ``tail``) whose measured latency is at most
    ``goal`` of the program's: what they make, the budget, and that share."""
    original, low, high = on.runnable(program, threads=threads), least, 1.0
    for _ in range(steps):
        macs = (low + high) / 2
        try:
            cut = run(Recipe.parse(f"mask{{macs={macs:.4f}x {tail}"), scored)
        except BudgetError:
            low = macs
            continue
        took = share(original, on.runnable(cut, threads=threads), seconds=seconds)
        if took <= goal * 1.01:
            low = macs
            yield cut, macs, took
        else:
            high = macs


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| network, target, threads, budget | measured | again | predicted / measured | importance "
        "| by MACs at that grain, at any width "
        "| rounds | points | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, row in rows.items():
        if "error" in row:
            lines.append(f"| {key} | {row['error']} | | | | | | | {row['seconds']:.0f} |")
            continue
        names = ("importance_by_macs", "importance_at_any_width")
        macs = ", ".join(f"{row[name]:.1%}" for name in names if name in row) or "-"
        lines.append(
            f"| {key} | {row['measured_ms'] / row['whole_ms']:.3f}x | {row['remeasured']:.3f}x "
            f"| {row['predicted_ms'] / row['measured_ms']:.3f} | {row['importance']:.1%} | {macs} "
            f"| {row['rounds']} | {row['points_measured']} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/latency.json"))
    parser.add_argument("--network", action="append", choices=list(MODELS))
    parser.add_argument("--target", action="append")
    parser.add_argument("--budget", action="append")
    parser.add_argument("--threads", action="append", type=int)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    results = Results(given.out)
    for name in [] if given.table else given.network or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            program = None
            for on in given.target or ["onnx", "tvm"]:
                for threads in given.threads or [1, 2]:
                    for budget in given.budget or ["0.8x", "0.6x", "0.4x"]:
                        key = f"{name}, {on}, {threads}, {budget}"
                        if key not in results:
                            program = program or load(name, Path(folder))
                            results.add(key, one(program, on, budget, threads, given.compare))
    print(table(results.known))


if __name__ == "__main__":
    main()
