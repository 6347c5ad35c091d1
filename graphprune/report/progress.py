"""Progress on stderr: a bar on a terminal, a line per step anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..pipeline.base import Progress

QUIET_SECONDS = 1.0
"""Work shorter than this says nothing in a log file."""


@contextmanager
def shown() -> Iterator[Progress]:
    """Yield a ``progress(what, done, total)`` that shows itself until the block ends."""
    if sys.stderr.isatty():
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
    with Display(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as display:
        task = display.add_task("reading", total=None)
        yield lambda what, done, total: display.update(task, description=what, completed=done, total=total)


def _lines() -> Progress:
    """One line whenever the work changes, from the second on which it has lasted ``QUIET_SECONDS``."""
    start, last = time.monotonic(), ""

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        if what != last and time.monotonic() - start >= QUIET_SECONDS:
            print(f"[{done}/{total}] {what}", file=sys.stderr, flush=True)
        last = what

    return progress
