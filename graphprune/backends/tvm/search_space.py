"""The schedules that tuning chooses among, and MetaSchedule's evolution over those of one op."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

ITERATION = 16  # candidates that are measured between two updates of the cost model
RECALLED = 64  # of an earlier search, the best that the cost model learns from
_ENDLESS = 1 << 30  # trials: the caller's budget ends the search


class Evolution:
    """The search for one op: candidates out, their times in. ``database`` and ``model`` are shared by all
    ops of a search."""

    def __init__(self, name: str, loops: Any, target: Any, database: Any, model: Any, seed: int) -> None:
        from tvm.s_tir import meta_schedule as ms

        with _without_intrinsics():
            self._context = ms.TuneContext(
                mod=loops,
                target=target,
                space_generator=_space(),
                search_strategy=ms.search_strategy.EvolutionarySearch(
                    population_size=128, init_measured_ratio=0.2, init_min_unmeasured=24, genetic_num_iters=2
                ),
                task_name=name,
                logger=logging.getLogger("tvm.s_tir.meta_schedule"),
                rand_state=seed + 1,
                num_threads=1,
            )
        self._target, self._database, self._model = target, database, model
        self._workload = database.commit_workload(loops)
        self._recall()
        self._context.pre_tuning(_ENDLESS, ITERATION, database=database, cost_model=model)
        self._candidates: Sequence[Any] = ()

    def propose(self) -> list[Any]:
        """The next modules to time, each with one function ``main``; none where the space is used up."""
        self._candidates = self._context.generate_measure_candidates() or ()
        return [candidate.sch.mod for candidate in self._candidates]

    def learn(self, times_ms: Sequence[float]) -> None:
        """How long the first of the modules that were proposed last take; infinite for what failed."""
        from tvm.s_tir import meta_schedule as ms

        known = list(self._candidates[: len(times_ms)])
        results = [_result(each) for each in times_ms]
        for candidate, ms_each, result in zip(known, times_ms, results, strict=True):
            if math.isfinite(ms_each):
                record = ms.database.TuningRecord(
                    candidate.sch.trace, self._workload, result.run_secs, self._target, candidate.args_info
                )
                self._database.commit_tuning_record(record)
        self._model.update(self._context, known, results)
        self._context.notify_runner_results(known, results)

    def _recall(self) -> None:
        known = self._database.get_top_k(self._workload, RECALLED)
        if known:
            from tvm.s_tir import meta_schedule as ms

            results = [ms.runner.RunnerResult(record.run_secs, None) for record in known]
            self._model.update(self._context, [record.as_measure_candidate() for record in known], results)


def _result(ms_each: float) -> Any:
    from tvm.s_tir import meta_schedule as ms

    known = math.isfinite(ms_each)
    return ms.runner.RunnerResult([ms_each / 1e3] if known else None, None if known else "failed")


@contextlib.contextmanager
def _without_intrinsics() -> Iterator[None]:
    """A TuneContext imports TVM's tensor intrinsics, whose registration takes half a minute. The space
    below asks for none."""
    name = "tvm.s_tir.tensor_intrin"
    absent = name not in sys.modules
    sys.modules.setdefault(name, ModuleType(name))
    try:
        yield
    finally:
        if absent:
            del sys.modules[name]


def cost_model() -> Any:
    """Boosted trees over features of the loops; where xgboost is not installed candidates go unranked."""
    from tvm.s_tir import meta_schedule as ms

    try:
        import xgboost  # noqa: F401
    except ImportError:
        return ms.cost_model.CostModel.create("random")
    return ms.cost_model.CostModel.create("xgb", num_tuning_cores=1, tree_method="hist")


def _space() -> Any:
    """Multi-level tiling, as MetaSchedule's default for CPUs without its tensor intrinsics, and weights in
    the order in which the tiles read them. Long unrolling makes LLVM take many seconds a candidate."""
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
