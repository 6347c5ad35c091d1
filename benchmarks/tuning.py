"""TVM tuned, TVM untuned and ONNX Runtime on networks pruned to half their multiply-accumulates.

    python -m benchmarks.tuning --budget 10min [--network ResNet-18 ...] [--threads 1] [--out docs/tuning.json]

Run again it tunes on: what was found is kept, and the minutes add up in ``--out``. ``--table`` prints the
Markdown of what is there. Keep the machine quiet.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import graphprune as gp
from graphprune.backends import interleave
from graphprune.backends.effort import Budget
from graphprune.backends.onnxruntime.target import Onnx
from graphprune.backends.tvm.target import Tvm
from graphprune.report.progress import shown

from .latency import MODELS, load
from .results import Results

RECIPE = "group,score,mask{macs=0.5x allocate=global grain=16},propagate"
REPEATS = 60


def one(name: str, budget: Budget | None, threads: int) -> dict[str, Any]:
    """Tune on for the budget, then measure the three in turns."""
    with tempfile.TemporaryDirectory() as folder:
        program = gp.run(RECIPE, load(name, Path(folder)))
        tuned, found = Tvm(tuned=threads), {"minutes": 0.0, "trials": 0}
        if budget is not None:
            with shown() as progress:
                _, found = Tvm().tune(program, budget, threads=threads, progress=progress)
        kinds = {"onnx": Onnx(), "untuned": Tvm(), "tuned": tuned}
        calls = {kind: target.runnable(program, threads=threads) for kind, target in kinds.items()}
        example = program.host.example()
        want, got = (calls[kind].run(example)[0] for kind in ("onnx", "tuned"))
        times = interleave(calls, REPEATS, seconds=15)
        return {
            "minutes": found["minutes"],
            "trials": found["trials"],
            "error": float(np.abs(want - got).max() / np.abs(want).max()),
            **{f"{kind}_ms": latency.median_ms for kind, latency in times.items()},
            "spread": times["tuned"].spread_ms / times["tuned"].median_ms,
        }


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| network, threads | minutes of tuning | trials | ONNX Runtime ms | TVM untuned ms | TVM tuned ms "
        "| tuned / ONNX Runtime | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, turns in rows.items():
        minutes = trials = 0.0
        for row in turns:
            minutes, trials = minutes + row["minutes"], trials + row["trials"]
            lines.append(
                f"| {key} | {minutes:.0f} | {trials:.0f} | {row['onnx_ms']:.2f} | {row['untuned_ms']:.2f} "
                f"| {row['tuned_ms']:.2f} | {row['tuned_ms'] / row['onnx_ms']:.2f} | {row['error']:.0e} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/tuning.json"))
    parser.add_argument("--network", action="append", choices=list(MODELS))
    parser.add_argument("--threads", action="append", type=int)
    parser.add_argument("--budget", help="10min, or a number of trials; nothing: measure what is recorded")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    results = Results(given.out)
    for name in [] if given.table else given.network or ["ResNet-18", "MobileNetV2"]:
        for threads in given.threads or [1]:
            row = one(name, Budget.parse(given.budget) if given.budget else None, threads)
            key = f"{name}, {threads}"
            results.add(key, [*results.known.get(key, []), row])
    print(table(results.known))


if __name__ == "__main__":
    main()
