"""Tuning: schedules searched on the device itself, by TVM's MetaSchedule.

The search runs here; candidates are compiled and timed in a worker process (candidate.py) that may crash
or hang without taking anything down. Records are on disk when they are made: an interrupted search goes
on, and an op of the same shapes in another network starts from them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import TargetError
from .candidate import Worker
from .relax import toolchain

ITERATION = 16  # candidates that are measured between two updates of the cost model
LEAST_SHARE = 0.002  # ops with less of the whole's time are not worth a trial

Said = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Budget:
    """How long to search: trials over all ops, or minutes; the first that is used up ends it."""

    trials: int = 0
    minutes: float = 0.0

    def __post_init__(self) -> None:
        if self.trials < 0 or self.minutes < 0:
            raise TargetError(f"a tuning budget of {self.trials} trials and {self.minutes} minutes is not one")

    @property
    def given(self) -> bool:
        return bool(self.trials or self.minutes)


@dataclass
class Task:
    """One op to tune: how often the network has it, what it takes under the fixed schedule, and the best
    found so far, in ms."""

    name: str
    extracted: Any
    weight: int
    fixed_ms: float
    best_ms: float = math.inf
    trials: int = 0
    function: Any = None  # its loops without a schedule
    memory: Any = None  # what this search measured: the evolution starts from it

    @property
    def current_ms(self) -> float:
        return min(self.best_ms, self.fixed_ms)


class Records:
    """The best schedule of every op, on disk: a line of JSON each time one is beaten. Schedules are kept as
    TVMScript, ops known by theirs, so that records outlive versions of TVM's own formats."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best: dict[str, tuple[float, str]] = {}
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                at = json.loads(line)
                self._keep(at["op"], float(at["ms"]), at["schedule"])
            except (ValueError, KeyError, TypeError):
                continue  # cut short by a crash

    def add(self, function: Any, ms: float, schedule: str) -> None:
        key = fingerprint(function)
        if self._keep(key, ms, schedule):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"op": key, "ms": ms, "schedule": schedule}) + "\n")

    def get(self, function: Any) -> tuple[float, str] | None:
        return self.best.get(fingerprint(function))

    def _keep(self, key: str, ms: float, schedule: str) -> bool:
        better = ms < self.best.get(key, (math.inf, ""))[0]
        if better:
            self.best[key] = (ms, schedule)
        return better


def fingerprint(function: Any) -> str:
    """What an op's loops are, whatever its name is in the network."""
    return sha256(_alone(function).script().encode()).hexdigest()[:24]


def tune(
    module: Any, scheduled: Any, target: Any, budget: Budget, records: Records, *,
    threads: int = 1, seed: int = 0, progress: Said | None = None,
) -> list[Task]:  # fmt: skip
    """Search schedules for the ops of a lowered module, the costliest first.

    ``module``: loops without schedules; ``scheduled``: the same with the fixed ones, which every op starts
    from; ``records``: a database, read and added to. Trials go where they may save most: to the task with
    the largest weight * current time, less what its last trials did not gain. Returns the tasks.
    """
    start, spent = time.monotonic(), 0
    target = toolchain().target.Target({**json.loads(str(target)), "num-cores": threads})  # the search asks for it
    with Worker(threads) as worker, _quiet():
        tasks = _tasks(module, scheduled, target, worker, records)
        total = budget.trials or 0
        stale = dict.fromkeys((task.name for task in tasks), 0)
        while tasks and _left(budget, spent, start):
            task = max(tasks, key=lambda task: task.weight * task.current_ms * 0.6 ** stale[task.name])
            count = min(ITERATION, total - spent) if total else ITERATION
            before = task.current_ms
            _search(task, target, count, records, worker, seed + spent)
            task.trials += count
            spent += count
            stale[task.name] = 0 if task.current_ms < 0.97 * before else stale[task.name] + 1
            if progress:
                now = sum(task.weight * task.current_ms for task in tasks)
                fixed = sum(task.weight * task.fixed_ms for task in tasks)
                progress(f"tune {task.name[:40]}: ops {now:.3g} ms, untuned {fixed:.3g} ms", spent, total or spent)
    return tasks


def apply(module: Any, scheduled: Any, records: Records) -> tuple[Any, int]:
    """``scheduled`` with the best recorded schedule for every op that has one, and how many have.
    ``module``: the same loops without schedules."""
    import tvm

    found = 0
    for name, function in module.functions_items():
        if name.name_hint == "main" or (best := records.get(function)) is None:
            continue
        tuned = tvm.script.from_source(best[1])["main"]
        scheduled[name] = tuned.without_attr("global_symbol").with_attr("tirx.is_scheduled", True)
        found += 1
    return scheduled, found


def _left(budget: Budget, spent: int, start: float) -> bool:
    if budget.trials and spent >= budget.trials:
        return False
    return not budget.minutes or time.monotonic() - start < 60 * budget.minutes


def _tasks(module: Any, scheduled: Any, target: Any, worker: Worker, records: Records) -> list[Task]:
    """The ops that are worth tuning, with their times under the fixed schedule and in the records."""
    from tvm.s_tir import meta_schedule as ms

    fixed = {name.name_hint: function for name, function in scheduled.functions_items()}
    tasks = []
    for extracted in ms.relax_integration.extract_tasks(module, target):
        name = str(extracted.task_name)
        task = Task(name, extracted, int(extracted.weight), worker.time(_alone(fixed[name]), target))
        known = records.get(module[name])
        task.best_ms = known[0] if known else math.inf
        task.function = module[name]
        task.memory = ms.database.MemoryDatabase()
        tasks.append(task)
    whole = sum(task.weight * task.fixed_ms for task in tasks if math.isfinite(task.fixed_ms))
    return [task for task in tasks if task.weight * task.fixed_ms >= LEAST_SHARE * whole]


def _alone(function: Any) -> Any:
    import tvm

    return tvm.IRModule({"main": function.with_attr("global_symbol", "main")})


def _search(task: Task, target: Any, count: int, records: Records, worker: Worker, seed: int) -> None:
    """``count`` trials for one op."""
    from tvm.s_tir import meta_schedule as ms

    context = ms.TuneContext(
        mod=task.extracted.dispatched[0],
        target=target,
        space_generator=_space(),
        search_strategy=_strategy(),
        task_name=task.name,
        logger=logging.getLogger("tvm.s_tir.meta_schedule"),
        rand_state=seed + 1,
        num_threads=1,
    ).clone()

    def better(schedule: str, ms: float) -> None:
        task.best_ms = ms
        records.add(task.function, ms, schedule)

    builder, runner = worker.pair(task.current_ms, better)
    ms.tune.tune_tasks(
        tasks=[context],
        task_weights=[1.0],
        work_dir="",
        max_trials_global=count,
        num_trials_per_iter=count,
        builder=builder,
        runner=runner,
        database=task.memory,
        cost_model=_cost_model(),
        measure_callbacks=[ms.measure_callback.AddToDatabase()],
    )


def _cost_model() -> Any:
    from tvm.s_tir import meta_schedule as ms

    try:
        import xgboost  # noqa: F401
    except ImportError:
        return ms.cost_model.CostModel.create("random")
    return ms.cost_model.CostModel.create("xgb", num_tuning_cores=1, tree_method="auto")


def _strategy() -> Any:
    from tvm.s_tir import meta_schedule as ms

    return ms.search_strategy.EvolutionarySearch(
        population_size=128, init_measured_ratio=0.2, init_min_unmeasured=24, genetic_num_iters=2
    )


def _space() -> Any:
    """Multi-level tiling, as MetaSchedule's default for CPUs without its tensor intrinsics, which the wheel
    does not bring. Long unrolling makes LLVM take many seconds a candidate."""
    from tvm.s_tir import meta_schedule as ms

    rule, post = ms.schedule_rule, ms.postproc
    rules = [
        rule.ApplyCustomRule(),
        rule.InlineConstantScalars(),
        rule.AutoInline(
            into_producer=False, into_consumer=True, inline_const_tensor=True, disallow_if_then_else=True,
            require_injective=True, require_ordered=True, disallow_op=["tirx.exp"],
        ),
        rule.AddRFactor(max_jobs_per_core=16, max_innermost_factor=64),
        rule.MultiLevelTiling(
            structure="SSRSRS", tile_binds=None, max_innermost_factor=64, vector_load_lens=None, reuse_read=None,
            reuse_write=rule.ReuseType(req="may", levels=[1, 2], scope="global"),
        ),
        rule.ParallelizeVectorizeUnroll(
            max_jobs_per_core=16, max_vectorize_extent=64, unroll_max_steps=[0, 16, 64], unroll_explicit=True
        ),
        rule.RandomComputeLocation(),
    ]  # fmt: skip
    posts = [
        post.DisallowDynamicLoop(),
        post.RewriteParallelVectorizeUnroll(),
        post.RewriteReductionBlock(),
        post.RewriteLayout(),
    ]
    mutators = ms.mutator.Mutator.create("llvm")
    return ms.space_generator.PostOrderApply(sch_rules=rules, postprocs=posts, mutator_probs=mutators)


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
