"""Measuring: things that run, and one protocol that times them side by side."""

from __future__ import annotations

import gc
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from ..errors import TargetError
from ..ir.facts import Latency
from ..ir.host import Array, Batch
from ..pipeline.contract import hold

Progress = Callable[[str, int, int], None]

SAMPLE_SECONDS = 0.005  # shorter samples measure the clock and the scheduler
FEWEST = 3  # repeats, whatever the budget: fewer have no spread


OF_RANGE = 0.93
"""The standard error of a median: so much of the interquartile range over the root of the count, of normal samples."""

NO_SLOWER = 1.02
"""What another model may take of the original's time and still be called no slower."""

MOST_THREADS = 64
"""What may be asked for on any machine, however few cores it has (a device may have more)."""


class Runnable(ABC):
    """A model ready to run on ``threads`` CPU threads. Calling it runs the fixed ``example`` inputs,
    which were converted beforehand, so that timing a call times the model.

    A target's ``load`` returns one: a subclass that hands ``target`` (its label), ``threads`` and ``example`` on,
    opens the code in ``__init__``, and writes ``run``, which is checked against the model, and ``bind``, which is
    timed. What either raises is told as the target's error.

    Raises TargetError for more threads than any machine of this size has work for.
    """

    def __init_subclass__(cls) -> None:
        hold(cls, "runnable", {"bind": Callable, "run": Sequence}, TargetError)

    def __init__(self, target: str, threads: int, example: Batch) -> None:
        most = max(MOST_THREADS, 4 * (os.cpu_count() or 1))
        if not 1 <= threads <= most:
            raise TargetError(
                f"`{target}` cannot run on {threads} threads (1 to {most}): this machine has {os.cpu_count()} cores",
                "one for each core at most is what is measured well",
            )
        self.target, self.threads, self.example = target, threads, list(example)
        self._bound: Callable[[], object] | None = None
        self.folder: TemporaryDirectory[str] | None = None  # of the files that it is run from; goes when it goes

    @abstractmethod
    def bind(self, batch: Batch) -> Callable[[], object]:
        """A function that runs the model on ``batch``, already converted; what it returns is not looked at. On a
        device it must wait until the outputs are there."""

    @abstractmethod
    def run(self, batch: Batch) -> list[Array]:
        """The outputs, in the model's order, for one batch: an array per input of the model, in its order."""

    def __call__(self) -> object:
        if self._bound is None:
            self._bound = self.bind(self.example)
        return self._bound()


@dataclass(frozen=True)
class Comparison:
    """Two models timed in turns. ``share``: what the second takes of the first one's time, which is also the quotient
    of the two medians; ``error``: its standard error."""

    before: Latency
    after: Latency
    error: float = 0.0

    @property
    def share(self) -> float:
        return self.after.median_ms / self.before.median_ms

    @property
    def slower(self) -> bool:
        """Whether the second takes longer: by more than may be, and by more than two standard errors."""
        return self.share > max(NO_SLOWER, 1 + 2 * self.error)


def interleave(
    callables: Mapping[str, Callable[[], object]],
    repeats: int = 20,
    *,
    seconds: float = 5.0,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Latency]:
    """Time callables in turns, so that what else the machine does hits all of them alike.

    Every callable is warmed up; a sample is as many calls as last 5 ms; a round takes one sample of
    each, and every round starts with the next one. ``seconds`` bounds the sampling time of one
    callable: the number of rounds is cut (to three at least) until the slowest one fits. Medians and
    interquartile ranges are of milliseconds per call. ``threads`` is what is recorded for a callable
    that does not say (a Runnable does).
    """
    samples = _samples(callables, repeats, seconds, progress)
    return {name: _latency(name, callables[name], own, threads) for name, own in samples.items()}


def _samples(
    callables: Mapping[str, Callable[[], object]], repeats: int, seconds: float, progress: Progress | None = None
) -> dict[str, list[float]]:
    """Milliseconds per call, a sample of each callable a round."""
    calls = {name: _warm_up(call) for name, call in callables.items()}
    longest = max((count * each for count, each in calls.values()), default=0.0)
    rounds = max(FEWEST, min(repeats, int(seconds / longest))) if longest else repeats
    names = list(callables)
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for k in range(rounds):
            for name in names[k % len(names) :] + names[: k % len(names)]:
                count, call = calls[name][0], callables[name]
                start = time.perf_counter()
                for _ in range(count):
                    call()
                samples[name].append((time.perf_counter() - start) / count * 1e3)
            if progress is not None:
                progress("measure", k + 1, rounds)
    finally:
        if collecting:
            gc.enable()
    return samples


def beside(
    original: Callable[[], object],
    other: Callable[[], object],
    repeats: int = 101,
    *,
    seconds: float = 4.0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Two models compared: what ``other`` takes of the original's time is the median over rounds of what their samples,
    taken one after the other, say, since what slows the machine for longer than that slows both. Every latency that a
    report or a command prints beside another comes from here. Arguments as for ``interleave``."""
    samples = _samples({"before": original, "after": other}, repeats, seconds, progress)
    before = _latency("before", original, samples["before"], threads)
    after = _latency("after", other, samples["after"], threads)
    taken = [late / early for early, late in zip(samples["before"], samples["after"], strict=True)]
    low, middle, high = quantiles(taken, n=4, method="inclusive")
    return Comparison(
        before, replace(after, median_ms=middle * before.median_ms), OF_RANGE * (high - low) / len(taken) ** 0.5
    )


def share(original: Runnable, other: Runnable, repeats: int = 101, *, seconds: float = 4.0) -> float:
    """What ``other`` takes of the original's time, by ``beside``."""
    return beside(original, other, repeats, seconds=seconds).share


def _warm_up(call: Callable[[], object]) -> tuple[int, float]:
    """How many calls make a sample, and seconds per call."""
    call()  # whatever is lazy happens here
    fastest = math.inf
    for _ in range(3):
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
    fastest = max(fastest, 1e-7)
    return max(1, math.ceil(SAMPLE_SECONDS / fastest)), fastest


def _latency(name: str, call: Callable[[], object], samples: list[float], threads: int) -> Latency:
    low, middle, high = quantiles(samples, n=4, method="inclusive")
    target = getattr(call, "target", name)
    return Latency(middle, high - low, len(samples), getattr(call, "threads", threads), target)


def settled(samples: Sequence[float], threads: int, target: str) -> Latency:
    """Median and interquartile range of the calmer half. Other work on the machine only ever adds time, in
    slices of milliseconds, so a sample beyond twice the lower quartile was interrupted and is left out."""
    if len(samples) < FEWEST:
        middle = median(samples)
        return Latency(middle, 0.0, len(samples), threads, target)
    low = quantiles(samples, n=4, method="inclusive")[0]
    calm = [one for one in samples if one <= 2 * low] or [low]
    if len(calm) < FEWEST:
        return Latency(low, 0.0, len(calm), threads, target)
    first, middle, last = quantiles(calm, n=4, method="inclusive")
    return Latency(middle, last - first, len(calm), threads, target)
