"""The prices that ``reorder`` plans with: what ops that move channels add to a network on each target.

    python -m benchmarks.prices [--target torch ...] [--seconds 2] [--out prices.json]

Each op is put between depthwise convolutions, six times, at three sizes; what it adds to the chain without
it, a line through these, gives microseconds per op and per megabyte. The fastest of many interleaved runs
counts: what else the machine does only ever adds. Multiply-accumulates are those of 1x1 and 3x3 convolutions.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

import graphprune as gp
from graphprune.backends.target import host_cpu, target

CHANNELS, REPEATS, SIZES = 48, 6, (14, 28, 56)
MORE, LESS = CHANNELS + 16, CHANNELS - 16  # multiples of 16: what layouts do to other widths is another matter
ORDER = torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(0))


def _slice(x: torch.Tensor) -> torch.Tensor:
    return x[:, 8:-8]


def _gather(x: torch.Tensor) -> torch.Tensor:
    return x.index_select(1, ORDER)


def _pad(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.pad(x, (0, 0, 0, 0, 8, 8))


def _concat(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.relu(x), x], 1)


def _relu(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x)


Step = Callable[[torch.Tensor], torch.Tensor] | None
OPS: dict[str, tuple[Step, int, int, Step]] = {
    # what, the channels before and after it, and what the chain without it has instead
    "slice": (_slice, MORE, CHANNELS, None),
    "gather": (_gather, CHANNELS, CHANNELS, None),
    "pad": (_pad, LESS, CHANNELS, None),
    "concat": (_concat, CHANNELS // 2, CHANNELS, _relu),
}


class Chain(nn.Module):
    def __init__(self, what: Step, before: int, after: int) -> None:
        super().__init__()
        self.what = what
        self.first = nn.ModuleList(nn.Conv2d(before, before, 3, padding=1, groups=before) for _ in range(REPEATS))
        self.then = nn.ModuleList(nn.Conv2d(after, after, 3, padding=1, groups=after) for _ in range(REPEATS))
        self.before = before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x
        for first, then in zip(self.first, self.then, strict=True):
            y = first(total)
            if self.what is not None:
                y = self.what(y)
            total = x + then(y).mean(1, keepdim=True)
        return total


class Stack(nn.Module):
    def __init__(self, kernel: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(width, width, kernel, padding=kernel // 2) for _ in range(4)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return y


def fastest(calls: Mapping[Any, Callable[[], object]], seconds: float) -> dict[Any, float]:
    """Microseconds of one call, the least of many, taken in turns."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    gc.disable()
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], (time.perf_counter() - start) * 1e6)
    gc.enable()
    return best


def measure(name: str, seconds: float) -> dict[str, float]:
    """Prices of one target: see prices.Prices."""
    where = target(name)
    calls: dict[Any, Callable[[], object]] = {}

    def chain(what: Step, before: int, after: int, size: int) -> tuple[Any, ...]:
        key = (what, before, after, size)
        if key not in calls:
            program = gp.load(Chain(what, before, after).eval(), torch.randn(1, before, size, size))
            calls[key] = where.runnable(program)
        return key

    pairs = {}
    for op, (what, before, after, instead) in OPS.items():
        for size in SIZES:
            without = [chain(instead, width, width, size) for width in (before, after)]
            pairs[op, size] = chain(what, before, after, size), without
    work = {}
    for kernel, width, size in ((1, 128, 28), (3, 64, 28), (3, 128, 14)):
        program = gp.load(Stack(kernel, width).eval(), torch.randn(1, width, size, size))
        calls[kernel, width, size] = where.runnable(program)
        work[kernel, width, size] = 4 * kernel**2 * width**2 * size**2 / 1e6
    found = fastest(calls, seconds)
    out: dict[str, float] = {}
    each = []
    for op in OPS:
        megabytes = [4e-6 * CHANNELS * size**2 for size in SIZES]
        extra = []
        for size in SIZES:
            whole, without = pairs[op, size]
            extra.append((found[whole] - sum(found[key] for key in without) / 2) / REPEATS)
        slope, start = _line(megabytes, extra)
        out[op] = round(slope, 1)
        each.append(start)
    out["call"] = round(median(each), 1)
    out["mac"] = round(sum(found[key] for key in work) / sum(work.values()), 1)
    return out


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and start of the best line through the points with neither of them negative."""
    slope, start = np.polyfit(x, y, 1)
    if start < 0:
        slope, start = float(np.dot(x, y) / np.dot(x, x)), 0.0
    return max(float(slope), 0.0), float(start if slope > 0 else max(float(np.mean(y)), 0.0))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", help="torch, onnx or tvm (all)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each of the chains")
    parser.add_argument("--out", type=Path, help="a file for `reorder{prices=...}`")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = {}
    for name in options.target or ("torch", "onnx", "tvm"):
        found[name] = measure(name, options.seconds)
        print(name, found[name], flush=True)
    if options.out:
        options.out.write_text(json.dumps({"machine": host_cpu(), "prices": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
