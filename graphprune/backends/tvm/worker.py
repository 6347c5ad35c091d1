"""One candidate schedule, compiled and timed in a process of its own: a crash or an endless loop costs that
candidate and the two seconds in which the next process starts."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ...errors import TargetError
from ..boards import Board
from .lower import toolchain

BUILD_SECONDS = 20.0  # of compiling; beyond that the candidate has failed
RUN_SECONDS = 10.0
START_SECONDS = 120.0  # until a new process answers
SAMPLE_MS = 40.0  # of all runs together
FEWEST, MOST = 5, 200  # runs
HOPELESS = 4.0  # a first run so many times slower than the best ends the measurement


@dataclass(frozen=True)
class Device:
    """Where candidates run, if not here: a board, and where it answers."""

    board: Board
    address: str


class Workers:
    """Workers that share the work, one for every device. Use as a context manager."""

    def __init__(self, threads: int = 1, device: Device | None = None) -> None:
        count = 1
        if device is not None:
            from .rpc import free

            count = free(device.address)
        self.each = [Worker(threads, device) for _ in range(count)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.each:
            one.stop()

    def timed(self, modules: Sequence[tuple[str, str]], best_ms: float) -> list[float]:
        """As Worker.timed, for each module and its target."""
        with ThreadPoolExecutor(len(self.each)) as pool:
            parts = [modules[k :: len(self.each)] for k in range(len(self.each))]
            found = pool.map(lambda one, part: [one.timed(*each, best_ms) for each in part], self.each, parts)
            times = [0.0] * len(modules)
            for k, part in enumerate(found):
                times[k :: len(self.each)] = part
        return times


class Worker:
    """A process that compiles and times modules. Use as a context manager."""

    def __init__(self, threads: int = 1, device: Device | None = None) -> None:
        self.threads, self.device = threads, device
        self.failures: list[str] = []  # why candidates failed
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def timed(self, module: str, target: str, best_ms: float = math.inf) -> float:
        """Milliseconds of the function ``main`` of a module's TVMScript; infinite where it does not
        compile, crashes or hangs. One that is hopeless beside ``best_ms`` is run once."""
        answer = self._ask((module, target, best_ms))
        if isinstance(answer, str):
            self.failures.append(answer)
            return math.inf
        return float(answer)

    def _ask(self, question: tuple[str, str, float]) -> float | str:
        if self._process is None:
            self._start()
        try:
            self._pipe.send(question)
            if not self._pipe.poll(BUILD_SECONDS + RUN_SECONDS):
                self.stop()
                return f"took longer than {BUILD_SECONDS + RUN_SECONDS:.0f} s"
            answer: float | str = self._pipe.recv()
            return answer
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            self.stop()
            return f"the process that ran it died (exit code {code})"

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.threads, self.device), daemon=True)
        try:
            self._process.start()
        except RuntimeError:
            if getattr(context.current_process(), "_inheriting", False):  # it imports the script, which tunes here too
                raise SystemExit(1) from None  # whoever started it says so, below
            raise
        theirs.close()
        try:
            if not self._pipe.poll(START_SECONDS):
                raise TimeoutError(f"did not answer in {START_SECONDS:.0f} s")
            self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            code = self._process.exitcode
            self.stop()
            why = f"ended with exit code {code}" if isinstance(error, EOFError) else str(error)
            raise TargetError(
                f"tuning: the process that times candidates does not start: it {why}",
                'it imports the script that tunes, which has to call it below `if __name__ == "__main__":`',
            ) from None

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Any, threads: int, device: Device | None) -> None:
    """The worker's loop: (module, target, best) in, milliseconds or what went wrong out."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    os.environ["TVM_NUM_THREADS"] = str(threads)
    tvm = toolchain()
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    place = _Place(device)
    pipe.send("ready")
    while True:
        try:
            module, target, best_ms = pipe.recv()
        except EOFError:
            return
        try:
            loops = RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(tvm.script.from_source(module))
            with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_assert": True}):
                built = tvm.tirx.build(loops, target=tvm.target.Target(target))
            pipe.send(place.clock(built, loops["main"], best_ms))
        except Exception as error:  # whatever a candidate does wrong
            place.leave()
            pipe.send(str(error)[-300:] or type(error).__name__)


class _Place:
    """Where modules run: this machine, or a device; and arrays there for them to work on."""

    def __init__(self, device: Device | None) -> None:
        self.device = device
        self.leave()

    def leave(self) -> None:
        """A device that failed is called anew."""
        self._session: Any = None
        self._arrays: dict[Any, Any] = {}

    def clock(self, built: Any, function: Any, best_ms: float) -> float:
        """The lower quartile of a few runs in ms, weights out of the caches before each, as the rest of a
        network leaves them; one run alone where that is hopeless already."""
        module, at = self._sent(built)
        args = self._arguments(function, at)
        first = 1e3 * float(module.time_evaluator("main", at, number=1, repeat=1)(*args).mean)
        if first > HOPELESS * best_ms:
            return first
        count = max(FEWEST, min(MOST, round(SAMPLE_MS / first)))
        timer = module.time_evaluator("main", at, number=1, repeat=count, f_preproc="cache_flush_cpu_non_first_arg")
        return 1e3 * float(sorted(timer(*args).results)[count // 4])

    def _sent(self, built: Any) -> tuple[Any, Any]:
        if self.device is None:
            import tvm

            return built, tvm.cpu()
        from .rpc import sender, sessions

        if self._session is None:
            (self._session,) = sessions(self.device.address, most=1)
        module, at = sender(self._session, self.device.board)(built)
        return module, at

    def _arguments(self, function: Any, at: Any) -> list[Any]:
        import numpy as np
        import tvm
        from tvm.s_tir.meta_schedule.arg_info import ArgInfo

        out = []
        for k, info in enumerate(ArgInfo.from_prim_func(function)):
            key = (k, tuple(int(size) for size in info.shape), str(info.dtype))
            if key not in self._arrays:
                rng = np.random.default_rng(k)
                floats = "float" in key[2]
                array = rng.standard_normal(key[1]).astype(key[2]) if floats else np.zeros(key[1], key[2])
                self._arrays[key] = tvm.runtime.tensor(array, at)
            out.append(self._arrays[key])
        return out
