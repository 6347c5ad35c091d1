"""Two minutes that show what became slower: a few ratios beside those that are recorded.

    make bench-quick                         every row, and what moved by more than 15 %
    python -m benchmarks.quick --record      these ratios are from now on what others are compared with

A row is a ratio within one process, of processor time on one thread: to a fixed piece of work (products, convolutions
and Python, see ``reference``) done before and after, or to a peer, so that how fast the machine is cancels. The median
of three processes. Ratios of another machine are others: record there first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).with_name("quick.json")
MOVED = 0.15
REPEATS = 3


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def reference() -> None:
    """About a second of what compiling is made of."""
    import numpy as np
    import torch

    x = np.ones((1024, 1024), np.float32)
    for _ in range(4):
        x = np.float32(1 / 1024) * (x @ x)
    with torch.no_grad():
        net, image = torch.nn.Conv2d(16, 16, 3, padding=1), torch.ones(16, 16, 32, 32)
        for _ in range(40):
            image = torch.relu(net(image))
    known: dict[tuple[int, str], list[int]] = {}
    for k in range(300_000):
        known.setdefault((k % 1000, str(k % 7)), []).append(k)


def beside(work: Callable[[], Any]) -> float:
    """How many times the reference the work takes."""
    reference()
    before = seconds(reference)
    own = seconds(work)
    return 2 * own / (before + seconds(reference))


# ---- rows ------------------------------------------------------------------------------------------


def large_graph() -> float:
    """2,000 ops in ONNX: load, cut, proof."""
    import graphprune as gp
    from tests.fuzz.big import build

    recipe = "group,score,mask{channels=0.5x},propagate"
    gp.verify(gp.run(recipe, gp.load(build("chain", 10))))
    model = build("blocks", 2000)
    return beside(lambda: gp.verify(gp.run(recipe, gp.load(model))))


def detector() -> float:
    """RFB-320 without data."""
    from .scale import compiled

    return beside(compiled)


def calibration() -> float:
    """ResNet-20 with 64 images, `auto`: reading, scores, distortions, fit, proof."""
    import torch

    import graphprune as gp

    from .cifar import calibration as images
    from .cifar import network

    net, x = network("resnet20"), images()[0][:64]
    gp.load(net, torch.from_numpy(x[:2]))
    return beside(lambda: gp.compile(net, torch.from_numpy(x[:2]), macs="0.5x", data=x, measure=False))


def grouping() -> float:
    """ResNet-50, tracing included, beside Torch-Pruning."""
    from .grouping import ours, torch_pruning

    mine, theirs = ours("ResNet-50"), torch_pruning("ResNet-50")
    return (mine["export"] + mine["work"]) / theirs["work"]


ROWS: dict[str, Callable[[], float]] = {
    "2,000 ops cut and proven / reference": large_graph,
    "RFB-320 compiled / reference": detector,
    "ResNet-20, 64 images, auto / reference": calibration,
    "ResNet-50 traced and cut / Torch-Pruning": grouping,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.name}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(ROWS[options.one]())
        return
    known: dict[str, float] = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    found: dict[str, float] = {}
    for row in ROWS:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.quick", "--one", row]
        runs = [
            subprocess.run(command, env=alone, stdout=subprocess.PIPE, text=True, check=True) for _ in range(REPEATS)
        ]
        found[row] = round(statistics.median(float(run.stdout.split()[-1]) for run in runs), 3)
        change = found[row] / known[row] - 1 if row in known else 0.0
        moved = "" if abs(change) <= MOVED else "  slower" if change > 0 else "  faster"
        was = f"{known[row]:8.2f} {change:+6.0%}" if row in known else "       -      -"
        print(f"{row:45} {was} {found[row]:8.2f}{moved}", flush=True)
    if options.record:
        RECORDED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
