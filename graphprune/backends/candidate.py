"""One candidate schedule, compiled and timed in a process of its own: a crash or an endless loop costs that
candidate and the two seconds in which the next process starts."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import Any

from .relax import toolchain

BUILD_SECONDS = 20.0  # of compiling; beyond that the candidate has failed
RUN_SECONDS = 10.0
START_SECONDS = 120.0  # until a new process answers
SAMPLE_MS = 20
Better = Callable[[str, float], None]
"""Called with a candidate's TVMScript and its milliseconds."""

HOPELESS = 4.0  # a first run so many times slower than the best ends the measurement


class Worker:
    """A process that compiles and times modules. Use as a context manager."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.failures: list[str] = []  # why candidates failed
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def time(self, module: Any, target: Any, best_ms: float = math.inf) -> float:
        """Milliseconds of the function ``main``; infinite where it does not compile, crashes or hangs."""
        return self.timed(module.script(), str(target), best_ms)

    def timed(self, module: str, target: str, best_ms: float) -> float:
        answer = self._ask((module, target, best_ms))
        if isinstance(answer, str):
            self.failures.append(answer)
            return math.inf
        return float(answer)

    def pair(self, best_ms: float, better: Better) -> tuple[Any, Any]:
        """A MetaSchedule builder that only notes what is to be built, and a runner that has it built and
        timed here; ``better`` hears of each that beats the best so far."""
        return _pair(self, best_ms, better)

    def _ask(self, question: tuple[str, str, float]) -> float | str:
        if self._process is None:
            self._start()
        try:
            self._pipe.send(question)
            if not self._pipe.poll(BUILD_SECONDS + RUN_SECONDS):
                self._stop()
                return f"took longer than {BUILD_SECONDS + RUN_SECONDS:.0f} s"
            answer: float | str = self._pipe.recv()
            return answer
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            self._stop()
            return f"the process that ran it died (exit code {code})"

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.threads), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(START_SECONDS):
            self._stop()
            raise TimeoutError("the tuning worker does not start")
        self._pipe.recv()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Any, threads: int) -> None:
    """The worker's loop: (module, target, best) in, milliseconds or what went wrong out."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    os.environ["TVM_NUM_THREADS"] = str(threads)
    tvm = toolchain()
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    pipe.send("ready")
    arrays: dict[Any, Any] = {}
    while True:
        try:
            module, target, best_ms = pipe.recv()
        except EOFError:
            return
        try:
            loops = RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(tvm.script.from_source(module))
            with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_assert": True}):
                built = tvm.tirx.build(loops, target=tvm.target.Target(target))
            pipe.send(_clock(built, _arguments(loops["main"], arrays), best_ms))
        except Exception as error:  # whatever a candidate does wrong
            pipe.send(str(error)[-300:] or type(error).__name__)


def _arguments(function: Any, known: dict[Any, Any]) -> list[Any]:
    import numpy as np
    import tvm
    from tvm.s_tir.meta_schedule.arg_info import ArgInfo

    out = []
    for k, info in enumerate(ArgInfo.from_prim_func(function)):
        key = (k, tuple(int(size) for size in info.shape), str(info.dtype))
        if key not in known:
            rng = np.random.default_rng(k)
            floats = "float" in key[2]
            array = rng.standard_normal(key[1]).astype(key[2]) if floats else np.zeros(key[1], key[2])
            known[key] = tvm.runtime.tensor(array)
        out.append(known[key])
    return out


def _clock(built: Any, args: Sequence[Any], best_ms: float) -> float:
    """The calmest of a few samples; one run alone where that is hopeless already."""
    import tvm

    first = 1e3 * float(built.time_evaluator("main", tvm.cpu(), number=1, repeat=1)(*args).mean)
    if first > HOPELESS * best_ms:
        return first
    timer = built.time_evaluator("main", tvm.cpu(), number=1, repeat=3, min_repeat_ms=SAMPLE_MS)
    return 1e3 * float(min(timer(*args).results))


def _pair(worker: Worker, best_ms: float, better: Better) -> tuple[Any, Any]:
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.builder import BuilderResult, PyBuilder
    from tvm.s_tir.meta_schedule.runner import PyRunner, PyRunnerFuture, RunnerResult

    waiting: dict[str, tuple[str, str]] = {}
    best, made = best_ms, 0

    @derived_object
    class Noted(PyBuilder):  # type: ignore[misc]
        def build(self, build_inputs: Sequence[Any]) -> list[Any]:
            nonlocal made
            out = []
            for one in build_inputs:
                made += 1
                key = f"candidate{made}"
                waiting[key] = (one.mod.script(), str(one.target))
                out.append(BuilderResult(key, None))
            return out

    @derived_object
    class Done(PyRunnerFuture):  # type: ignore[misc]
        def __init__(self, ms: float) -> None:
            super().__init__()
            self.ms = ms

        def done(self) -> bool:
            return True

        def result(self) -> Any:
            return RunnerResult([self.ms / 1e3], None) if math.isfinite(self.ms) else RunnerResult(None, "failed")

    @derived_object
    class Asked(PyRunner):  # type: ignore[misc]
        def run(self, runner_inputs: Sequence[Any]) -> list[Any]:
            nonlocal best
            out = []
            for one in runner_inputs:
                text, target = waiting.pop(str(one.artifact_path))
                ms = worker.timed(text, target, best)
                if ms < best:
                    best = ms
                    better(text, ms)
                out.append(Done(ms))
            return out

    return Noted(), Asked()
