"""The command line: parse, call, print. Everything heavy is imported inside the commands."""

from __future__ import annotations

from .compile import compile
from .curve import curve
from .group import main
from .listing import passes, targets
from .look import bisect, inspect, sweep
from .new import new
from .replay import apply
from .time import bench, record

__all__ = ["main"]

for command in (
    compile,
    inspect,
    sweep,
    curve,
    bisect,
    apply,
    record,
    bench,
    passes,
    targets,
    new,
):  # as `--help` lists them
    main.add_command(command)
