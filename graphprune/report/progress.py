"""Progress on stderr: a bar on a terminal, a line per step anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import printable
from ..pipeline.base import Progress

QUIET_SECONDS = 1.0
"""Work shorter than this says nothing in a log file."""
SHORT_SECONDS = 3.0
"""Of less is not said that it is left."""


@contextmanager
def shown(loudness: int = 0) -> Iterator[Progress]:
    """Yield a ``progress(what, done, total)`` that shows itself until the block ends: below 0 it says nothing, above
    it writes every step with the time since the start."""
    if loudness < 0:
        yield lambda what, done, total: None
    elif loudness > 0:
        yield _steps()
    elif sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Display

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    times = TimeElapsedColumn(), TextColumn("{task.fields[left]}", markup=False)
    left = _left()
    with Display(*columns, *times, console=Console(stderr=True), transient=True) as display:
        task = display.add_task("reading", total=None, left="")
        yield lambda what, done, total: display.update(
            task, description=printable(what), completed=done, total=total, left=left(done, total)
        )


def _lines() -> Progress:
    """One line whenever the work changes, from the second on which it has lasted ``QUIET_SECONDS``."""
    start, last, left = time.monotonic(), "", _left()

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        remains = left(done, total)
        if what != last and time.monotonic() - start >= QUIET_SECONDS:
            print(printable(f"[{done}/{total}] {what}{remains and f', {remains}'}"), file=sys.stderr, flush=True)
        last = what

    return progress


def _steps() -> Progress:
    """A line for every step."""
    start, last = time.monotonic(), ""

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        if what != last:
            took = f"{time.monotonic() - start:7.1f} s"
            print(printable(f"{took}  [{done}/{total}] {what}"), file=sys.stderr, flush=True)
        last = what

    return progress


def _left() -> Callable[[int, int], str]:
    """How long the work told of will take yet, by what it took so far: nothing before a tenth of it is done, or where
    that is no time to speak of. Other work, which has another total, begins anew."""
    start, first, known = time.monotonic(), 0, -1

    def left(done: int, total: int) -> str:
        nonlocal start, first, known
        if total != known or done < first:
            start, first, known = time.monotonic(), done, total
        share = (done - first) / max(total - first, 1)
        seconds = (time.monotonic() - start) * (1 - share) / share if share >= 0.1 else 0.0
        if seconds < SHORT_SECONDS:
            return ""
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    return left
