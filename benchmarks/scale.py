"""How long large graphs take, from the file's graph to the cut and proven network, and how that grows.

    python -m benchmarks.scale                              every graph and size, then the table
    python -m benchmarks.scale --only chain --sizes 1000    some
    python -m benchmarks.scale --report                     the table of what there is

Graphs of tests/fuzz/big.py in ONNX: a chain, residual sums, dense blocks of twelve layers, and one DenseNet, whose axes
alone are quadratic in its layers. Half of all channels by L2. Processor time of one thread without imports and without
building the graph, a process each; peak memory of the process. The exponent e of seconds = a ops^e is a least-squares
line through the logarithms. And `compile` of a detector as people have it, without data, after imports. A result that
there is stays; delete docs/scale.json to measure anew.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .cifar import DATA
from .results import Results, between

RESULTS, PAGE = Path("docs/scale.json"), Path("docs/benchmarks.md")
START, END = "<!-- scale: written by python -m benchmarks.scale -->", "<!-- end of scale -->"
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
GRAPHS = {"chain": SIZES, "residual": SIZES, "blocks": SIZES, "dense": (500, 1_000, 2_000)}
RECIPE = "group,score,mask{channels=0.5x},propagate"
FILE = "version-RFB-320.onnx"


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    made = call()
    return made, round(time.process_time() - start, 2)


def graph(shape: str, size: int) -> dict[str, float]:
    """Seconds from load to propagate and of the proof, and peak memory."""
    import graphprune as gp
    from tests.fuzz.big import build

    gp.verify(gp.run(RECIPE, gp.load(build("chain", 10))))  # imports are not what is measured
    model = build(shape, size)
    cut, seconds = _timed(lambda: gp.run(RECIPE, gp.load(model)))
    _, proof = _timed(lambda: gp.verify(cut))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ops": len(model.graph.node), "cut": seconds, "proof": proof, "peak_mb": round(peak)}


def compiled() -> dict[str, float]:
    """Of the detector: MACs halved without data, proof and report included."""
    import graphprune as gp
    from tests.fuzz.big import build

    gp.compile(build("chain", 10), channels="0.5x", measure=False)
    _, seconds = _timed(lambda: gp.compile(DATA / "onnx" / FILE, macs="0.5x", measure=False))
    return {"compile": seconds}


def _run(key: str) -> Any:
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scale", "--one", key]
    done = subprocess.run(command, env=alone, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def exponent(rows: list[dict[str, float]]) -> float:
    """e of seconds = a ops^e, seconds of cut and proof."""
    ops, seconds = (
        [np.log(x) for x in each] for each in zip(*((r["ops"], r["cut"] + r["proof"]) for r in rows), strict=True)
    )
    return float(np.polyfit(ops, seconds, 1)[0])


def table(results: Results) -> str:
    out = ["| graph | ops | load to propagate, s | proof, s | peak MB | exponent |", "|---|---:|---:|---:|---:|---:|"]
    for shape, sizes in GRAPHS.items():
        rows = [results.known[key] for size in sizes if (key := f"{shape} {size}") in results]
        for number, row in enumerate(rows):
            grows = f"{exponent(rows):.2f}" if number == len(rows) - 1 > 0 else ""
            out.append(
                f"| {shape} | {row['ops']:,} | {row['cut']:.1f} | {row['proof']:.1f} | {row['peak_mb']} | {grows} |"
            )
    if FILE in results:
        out += ["", f"`compile` of {FILE} without data, after imports: {results.known[FILE]['compile']:.1f} s."]
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*GRAPHS, FILE], action="append")
    parser.add_argument("--sizes", type=int, nargs="+", help="only these")
    parser.add_argument("--report", action="store_true", help="only the table of what there is")
    parser.add_argument("--results", type=Path, default=RESULTS, help=str(RESULTS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        shape, _, size = options.one.partition(" ")
        print(json.dumps(graph(shape, int(size)) if size else compiled()))
        return
    results = Results(options.results)
    for shape in () if options.report else options.only or [*GRAPHS, FILE]:
        wanted = [size for size in GRAPHS.get(shape, ()) if size in (options.sizes or GRAPHS[shape])]
        for key in [f"{shape} {size}" for size in wanted] if shape in GRAPHS else [shape]:
            results.get(key, partial(_run, key))
    print(table(results))
    if options.results == RESULTS:
        between(PAGE, START, END, table(results))


if __name__ == "__main__":
    main()
