"""Tuning: schedules searched on the device itself, by TVM's MetaSchedule.

The search runs here; candidates are compiled and timed in worker processes (candidate.py) that may crash
or hang without taking anything down. Records are on disk when they are made: an interrupted search goes
on, and an op of the same shapes in another network starts from them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from statistics import median
from typing import Any

from ...errors import TargetError
from ..effort import Budget
from .lower import fixed, last_line, packed, toolchain, variants
from .records import Records, alone
from .search_space import ITERATION, Evolution, cost_model
from .vm_profile import Times
from .worker import Workers

LEAST_SHARE = 0.002  # ops with less of the whole's time are not worth a trial
ROUNDS = 5  # of all kernels, under both schedules, when a search has ended
UNTIMED_MS = 100.0  # of an op whose fixed schedule does not run: it is tuned first

Said = Callable[[str, int, int], None]


@dataclass
class Task:
    """One op to tune: how often the network has it, what it takes under the fixed schedule, and the best
    found so far, in ms."""

    name: str
    weight: int
    fixed_ms: float
    function: Any = field(repr=False)  # its loops without a schedule
    loops: Any = field(repr=False)  # the same as MetaSchedule wants them
    fixed: str = field(repr=False)  # the same under the fixed schedule
    best_ms: float = math.inf
    trials: int = 0
    stale: int = 0  # turns since it gained
    search: Evolution | None = field(default=None, repr=False)
    exhausted: bool = False

    @property
    def current_ms(self) -> float:
        best = min(self.best_ms, self.fixed_ms)
        return best if math.isfinite(best) else UNTIMED_MS


def tune(
    module: Any, target: Any, budget: Budget, records: Records, workers: Workers, *,
    cores: int = 1, seed: int = 0, progress: Said | None = None,
) -> list[Task]:  # fmt: skip
    """Search schedules for the ops of a lowered module, the costliest first.

    ``module``: loops without schedules; ``records``: a database, read and added to. Trials go where they
    may save most: to the task with the largest weight * current time, less what its last trials did not
    gain. Returns the tasks. Ctrl-C ends it as the end of the budget does: what was found is kept.
    """
    _able()
    start, spent = time.monotonic(), 0
    tasks: list[Task] = []
    target = toolchain().target.Target({**json.loads(str(target)), "num-cores": cores})  # the search asks for it
    with _quiet(), workers, contextlib.suppress(KeyboardInterrupt):
        tasks += _tasks(module, target, workers, records)
        database, model = records.database(), cost_model()
        while (open_ := [task for task in tasks if not task.exhausted]) and _left(budget, spent, start):
            task = max(open_, key=lambda task: task.weight * task.current_ms * 0.6**task.stale)
            count = min(ITERATION, budget.trials - spent) if budget.trials else ITERATION
            before = task.current_ms
            if not math.isfinite(task.best_ms) and not task.trials:
                spent += _first(task, target, count, records, workers)
            else:
                if task.search is None:
                    task.search = Evolution(task.name, task.loops, target, database, model, seed)
                spent += _turn(task, str(target), count, records, workers)
            task.stale = 0 if task.current_ms < 0.97 * before else task.stale + 1
            if progress:
                progress(_said(task, tasks), *_share(budget, spent, start))
    return tasks


def search(
    plain: Any, target: Any, budget: Budget, records: Records, workers: Workers, *,
    cores: int = 1, seed: int = 0, progress: Said | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Tune loops without schedules; what was found, for the report."""
    start = time.monotonic()
    tasks = tune(plain, target, budget, records, workers, cores=cores, seed=seed, progress=progress)
    return {
        "trials": sum(task.trials for task in tasks),
        "minutes": (time.monotonic() - start) / 60,
        "records": str(records.path),
        "ops": [
            {"op": task.name, "times": task.weight, "untuned_ms": task.fixed_ms, "tuned_ms": task.current_ms,
             "trials": task.trials}
            for task in tasks
        ],
    }  # fmt: skip


def settle(plain: Any, runs: Callable[[], tuple[Times, Times]], records: Records) -> int:
    """Forget schedules under which an op takes no less inside a network than under the fixed one: alone, among others
    that were timed once each, the luckiest won. ``plain``: the network's loops; ``runs``: times of its kernels under
    the fixed schedules and under those recorded. How many were forgotten."""
    rounds = [runs() for _ in range(ROUNDS)]
    fixed, recorded = (_medians([one[side] for one in rounds]) for side in (0, 1))
    count = 0
    for name, function in plain.functions_items():
        before, after = fixed.get(name.name_hint), recorded.get(name.name_hint)
        if before is not None and after is not None and before <= after and records.get(function) is not None:
            records.forget(function)
            count += 1
    return count


def _medians(rounds: Sequence[Times]) -> dict[str, float]:
    """By kernel, without what is added to the name of one with packed weights, ms of all its calls."""
    found: dict[str, list[float]] = {}
    for times in rounds:
        own: dict[str, float] = {}
        for name, _, each in times:
            name = name.removesuffix("_prepacked")
            own[name] = own.get(name, 0.0) + median(each)
        for name, ms in own.items():
            found.setdefault(name, []).append(ms)
    return {name: median(each) for name, each in found.items()}


def _first(task: Task, target: Any, count: int, records: Records, workers: Workers) -> int:
    """The fixed schedule and its next of kin; how many trials that was."""
    texts = [task.fixed, *(alone(each).script() for each in islice(variants(task.function, target), count - 1))]
    return len(_timed(task, texts, str(target), records, workers))


def _turn(task: Task, target: str, count: int, records: Records, workers: Workers) -> int:
    """One batch of trials of the search for one op; how many."""
    assert task.search is not None
    texts = [module.script() for module in task.search.propose()[:count]]
    task.search.learn(_timed(task, texts, target, records, workers))
    task.exhausted = not texts
    return len(texts)


def _timed(task: Task, texts: list[str], target: str, records: Records, workers: Workers) -> list[float]:
    """What candidates for an op take; the best is kept."""
    times = workers.timed([(text, target) for text in texts], task.current_ms)
    for text, ms in zip(texts, times, strict=True):
        if ms < task.best_ms:
            task.best_ms = ms
            records.add(task.function, ms, text)
    task.trials += len(texts)
    return times


def best_loops(plain: Any, target: Any, records: Records) -> tuple[Any, int]:
    """Loops without schedules, with the best recorded one for every op that has one, its weights packed as
    that wants them, and the fixed one for the rest; how many have one."""
    import tvm

    loops, found = plain.clone(), 0
    for name, function in loops.functions_items():
        if name.name_hint == "main" or (best := records.get(function)) is None:
            continue
        try:
            tuned = tvm.script.from_source(best[1])["main"]
        except Exception as error:  # what TVM raises shares no base class
            told = f"tuning: the schedule of `{name.name_hint}` in {records.path} cannot be read ({last_line(error)})"
            warnings.warn(f"{told}: the op is compiled untuned", stacklevel=2)
            continue
        loops[name] = tuned.without_attr("global_symbol").with_attr("tirx.is_scheduled", True)
        found += 1
    return packed(fixed(loops, target)), found


def _able() -> None:
    """Raises TargetError where a search would crash."""
    ffi = version("apache-tvm-ffi")
    if ffi.startswith("0.1.15"):  # every search begins with a module as JSON, which ends in a segmentation fault
        raise TargetError(f"tuning crashes with apache-tvm-ffi {ffi}", "pip install 'apache-tvm-ffi<0.1.15'")


def _left(budget: Budget, spent: int, start: float) -> bool:
    if budget.trials and spent >= budget.trials:
        return False
    return not budget.minutes or time.monotonic() - start < 60 * budget.minutes


def _share(budget: Budget, spent: int, start: float) -> tuple[int, int]:
    """How much of the budget is used, of how much."""
    if budget.trials:
        return spent, budget.trials
    return min(int(time.monotonic() - start), int(60 * budget.minutes)), int(60 * budget.minutes)


def _said(task: Task, tasks: list[Task]) -> str:
    now = sum(task.weight * task.current_ms for task in tasks)
    untuned = sum(task.weight * task.fixed_ms for task in tasks if math.isfinite(task.fixed_ms))
    return f"tune: {now:.3g} ms of {untuned:.3g} untuned; {task.name[:30]} {task.current_ms:.3g} ms"


def _tasks(module: Any, target: Any, workers: Workers, records: Records) -> list[Task]:
    """The ops that are worth tuning, with their times under the fixed schedule and in the records."""
    from tvm.s_tir import meta_schedule as ms

    scheduled = fixed(module, target)
    extracted = {str(each.task_name): each for each in ms.relax_integration.extract_tasks(module, target)}
    texts = [alone(scheduled[name]).script() for name in extracted]
    times = workers.timed([(text, str(target)) for text in texts], math.inf)
    tasks = []
    for (name, each), text, fixed_ms in zip(extracted.items(), texts, times, strict=True):
        known = records.get(module[name])
        best_ms = known[0] if known else math.inf
        tasks.append(Task(name, int(each.weight), fixed_ms, module[name], each.dispatched[0], text, best_ms))
    whole = sum(task.weight * task.current_ms for task in tasks)
    return [task for task in tasks if task.weight * task.current_ms >= LEAST_SHARE * whole]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MetaSchedule logs every candidate."""
    logger = logging.getLogger("tvm.s_tir.meta_schedule")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
