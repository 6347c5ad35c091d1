"""A target whose latencies are known: nothing is timed, and tables say what it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from graphprune.backends.measure import Runnable
from graphprune.backends.target import Target
from graphprune.cost.latency.workload import Family, works
from graphprune.ir.facts import Latency
from graphprune.ir.host import Array, Batch
from graphprune.ir.program import Program

Ms = Callable[[Family, float, float], float]
"""What an op takes at its inner and outer width."""


def steps(family: Family, inner: float, outer: float) -> float:
    """A staircase like a real target's: channels are rounded up to 16, and every op has a cost of its own."""
    rounded = [16 * -(-n // 16) for n in (inner, outer)]
    if family.kind == "stream":
        return 1e-4 * outer
    spatial = np.prod(family.sizes[2::3]) ** 2 if family.kind == "conv" else 1
    return float(0.01 + 1e-7 * spatial * rounded[0] * rounded[1])


def smooth(family: Family, inner: float, outer: float) -> float:
    """Bilinear in both widths, and of a product as many times as it has rows: a table is exact between its points."""
    if family.kind == "stream":
        return 1e-4 * outer
    if family.kind == "product":
        return 1e-4 * family.sizes[0] * (1 + 0.05 * inner * outer)
    _, _, *axes = family.sizes
    places = np.prod([size / stride for size, stride in zip(axes[::3], axes[2::3], strict=True)])
    return float(2e-3 + 1e-6 * places * np.prod(axes[1::3]) * inner * outer + 1e-5 * (inner + outer))


@dataclass(frozen=True)
class Known(Target):
    """Takes ``factor`` times what its ops take alone, and ``extra`` ms."""

    name: ClassVar[str] = "known"
    log: ClassVar[list[int]] = []  # how many points each call timed
    factor: float = 1.3
    extra: float = 0.05
    blind: bool = False
    ms: Ms = steps

    def time_ops(self, points: Sequence[Any], *, threads: int = 1) -> Iterator[dict[Any, Latency]]:
        self.log.append(len(points))
        for start in range(0, len(points), 10):
            yield {p: Latency(self.ms(p[0], *p[1]), 0.0, 5, threads, "known") for p in points[start : start + 10]}

    def unmeasured(self) -> str | None:
        return "it is only a table" if self.blind else None

    def runnable(self, program: Program, *, threads: int = 1) -> Runnable:
        return Sleeper(self.factor * alone(program, self.ms) + self.extra, threads)


class Sleeper(Runnable):
    """What takes ``ms``, and is never run."""

    def __init__(self, ms: float, threads: int) -> None:
        super().__init__("known", threads, [])
        self.ms = ms

    def bind(self, batch: Batch) -> Any:
        raise AssertionError

    def run(self, batch: Batch) -> list[Array]:
        raise AssertionError


def alone(program: Program, ms: Ms = steps) -> float:
    """The sum over ops of a program as it is."""
    total = 0.0
    for work in works(program.graph, program.host):
        inner, outer, times = work.widths({}, program.host.sizes())
        total += ms(work.family, inner, outer) * times
    return total


def measured(calls: dict[str, Sleeper], *_: Any, **__: Any) -> dict[str, Latency]:
    """``interleave`` without a clock."""
    return {name: Latency(call.ms, 0.0, 5, call.threads, "known") for name, call in calls.items()}


def without_a_clock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements are what targets say, and tables are kept in a folder."""
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(folder))
    for where in ("driver.latency_search", "backends.best"):
        monkeypatch.setattr(f"graphprune.{where}.interleave", measured)
    monkeypatch.setattr("graphprune.driver.latency_search.share", lambda original, other: other.ms / original.ms)
    Known.log.clear()
