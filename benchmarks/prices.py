"""The prices that ``reorder`` plans with: what ops that move channels add to a network on each target.

    python -m benchmarks.prices [--target torch ...] [--seconds 2]

Each op is put between depthwise convolutions, six times, at two sizes; what it adds to the chain without
it, a line through both, gives microseconds per op and per megabyte. The fastest of many interleaved runs
counts: what else the machine does only ever adds. Multiply-accumulates are those of 1x1 and 3x3 convolutions.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import graphprune as gp
from graphprune.backends.target import target

CHANNELS, REPEATS, SIZES = 64, 6, (28, 56)
ORDER = torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(0))


def _slice(x: torch.Tensor) -> torch.Tensor:
    return x[:, 4:-4]


def _gather(x: torch.Tensor) -> torch.Tensor:
    return x.index_select(1, ORDER)


def _pad(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.pad(x, (0, 0, 0, 0, 4, 4))


def _concat(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:, :32], x[:, 32:]], 1)


OPS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor] | None, int, int]] = {
    # what, and the channels before and after it
    "none": (None, CHANNELS, CHANNELS),
    "slice": (_slice, CHANNELS + 8, CHANNELS),
    "slice, without": (None, CHANNELS + 8, CHANNELS + 8),
    "gather": (_gather, CHANNELS, CHANNELS),
    "pad": (_pad, CHANNELS - 8, CHANNELS),
    "pad, without": (None, CHANNELS - 8, CHANNELS - 8),
    "concat": (_concat, CHANNELS, CHANNELS),
}


class Chain(nn.Module):
    def __init__(self, what: Callable[[torch.Tensor], torch.Tensor] | None, before: int, after: int) -> None:
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
        return self.layers(x)


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
    where = target(name)
    calls: dict[Any, Callable[[], object]] = {}
    for size in SIZES:
        for op, (what, before, after) in OPS.items():
            program = gp.load(Chain(what, before, after).eval(), torch.randn(1, before, size, size))
            calls[op, size] = where.runnable(program)
    work = {}
    for kernel, width, size in ((1, 128, 28), (3, 64, 28), (3, 128, 14)):
        program = gp.load(Stack(kernel, width).eval(), torch.randn(1, width, size, size))
        calls[kernel, width, size] = where.runnable(program)
        work[kernel, width, size] = 4 * kernel**2 * width**2 * size**2 / 1e6
    found = fastest(calls, seconds)
    out: dict[str, float] = {}
    for op in ("slice", "gather", "pad", "concat"):
        base = f"{op}, without" if f"{op}, without" in OPS else "none"
        points = [(4e-6 * CHANNELS * size**2, (found[op, size] - found[base, size]) / REPEATS) for size in SIZES]
        (small, a), (large, b) = points
        out[f"{op} us/MB"] = (b - a) / (large - small)
        out[f"{op} us"] = a - (b - a) / (large - small) * small
    out["mac us/M"] = sum(found[key] for key in work) / sum(work.values())
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", help="torch, onnx or tvm (all)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each of the chains")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.target or ("torch", "onnx", "tvm"):
        print(name, {key: round(value, 2) for key, value in measure(name, options.seconds).items()}, flush=True)


if __name__ == "__main__":
    main()
