"""Bounds on other processes in processor time: how busy the machine is does not count.

The kernel ends what has used up its time (SIGXCPU). The clock is a backstop alone, for what waits and never
wakes, so it may be far beyond what a test takes on a machine shared by many.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

BACKSTOP_S = 1800.0


def bounded(cpu_s: float) -> Callable[[], None]:
    """To run in a child before its program: it dies of SIGXCPU after so much processor time."""
    return lambda: resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s), resource.RLIM_INFINITY))


def run(command: Sequence[str], cpu_s: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """What a command said. Raises AssertionError where it took more than ``cpu_s`` of processor time, or
    failed."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, timeout=BACKSTOP_S, preexec_fn=bounded(cpu_s), **options
    )
    assert done.returncode != -signal.SIGXCPU, f"no end after {cpu_s} s of processor time: {command}"
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def least_s(command: Sequence[str], env: Mapping[str, str], times: int = 5) -> float:
    """Processor time of a command in seconds: the least of a few runs."""
    found = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, env=env)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def imports_s(names: str, env: Mapping[str, str]) -> float:
    """The same for Python that imports some modules: a yardstick for what else a command does."""
    return least_s([sys.executable, "-c", f"import {names}"], env)
