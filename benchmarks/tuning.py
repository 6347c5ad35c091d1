"""TVM tuned, TVM untuned and ONNX Runtime on networks pruned to half their multiply-accumulates.

    python -m benchmarks.tuning --budget 10min [--network ResNet-18 ...] [--threads 1] [--growth 3] [--out FILE]

The networks, and how times are taken, are those of ``benchmarks.tvm_untuned``. Run again it tunes on: what was found
is kept, and the minutes add up in ``--out``. The table goes to docs/benchmarks.md. Keep the machine quiet.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import graphprune as gp
from graphprune.backends.effort import Budget
from graphprune.backends.onnxruntime.target import Onnx
from graphprune.backends.tvm.target import Tvm
from graphprune.pipeline.compare import relative
from graphprune.report.progress import shown

from .results import Results, between
from .tvm_untuned import MODELS, PAGE, RECIPE, load, turns

START, END = "<!-- tvm tuned: written by python -m benchmarks.tuning -->", "<!-- end of tvm tuned -->"


def one(name: str, budget: Budget | None, threads: int, own: Tvm) -> dict[str, Any]:
    """Tune on for the budget, then measure the three in turns."""
    program, found = gp.run(RECIPE, load(name)), {"minutes": 0.0, "trials": 0}
    if budget is not None:
        with shown() as progress:
            _, found = own.tune(program, budget, threads=threads, progress=progress)
    sides = {"onnx": Onnx(), "untuned": own, "tuned": replace(own, tuned=threads)}
    calls = {side: target.runnable(program, threads=threads) for side, target in sides.items()}
    example = program.host.example()
    want, got = (calls[side].run(example)[0] for side in ("onnx", "tuned"))
    samples = turns(calls, time.process_time if threads == 1 else time.perf_counter)
    return {
        "minutes": found["minutes"],
        "trials": found["trials"],
        "error": relative(want, got),
        "ratio": float(np.median(samples["tuned"] / samples["onnx"])),
        **{f"{side}_ms": float(np.median(own)) for side, own in samples.items()},
        **{f"{side}_spread_ms": float(np.subtract(*np.percentile(own, [75, 25]))) for side, own in samples.items()},
    }


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| network, threads | minutes of tuning | trials | ONNX Runtime ms | TVM untuned ms | TVM tuned ms "
        "| tuned / ONNX Runtime | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, turned in rows.items():
        minutes, trials = (sum(row[name] for row in turned) for name in ("minutes", "trials"))
        last = turned[-1]
        each = (f"{last[f'{side}_ms']:.2f} ± {last[f'{side}_spread_ms']:.2f}" for side in ("onnx", "untuned", "tuned"))
        times = " | ".join(each)
        lines.append(f"| {key} | {minutes:.0f} | {trials:.0f} | {times} | {last['ratio']:.2f} | {last['error']:.0e} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/tuning.json"))
    parser.add_argument("--network", action="append", choices=list(MODELS))
    parser.add_argument("--threads", action="append", type=int)
    parser.add_argument("--growth", type=float, default=Tvm.growth, help="that weights may have, see the target's")
    parser.add_argument("--budget", help="10min, or a number of trials; nothing: measure what is recorded")
    parser.add_argument("--table", action="store_true", help="of what is there; nothing is measured")
    given = parser.parse_args()
    results = Results(given.out)
    for name in [] if given.table else given.network or MODELS:
        for threads in given.threads or [1]:
            own = Tvm(growth=given.growth)
            row = one(name, Budget.parse(given.budget) if given.budget else None, threads, own)
            key = f"{name}, {threads}" + (f", {own.text()}" if given.growth != Tvm.growth else "")
            results.add(key, [*results.known.get(key, []), row])
    print(table(results.known))
    if START in PAGE.read_text(encoding="utf-8"):
        between(PAGE, START, END, table(results.known))


if __name__ == "__main__":
    main()
