"""Families of dims: what is left of trained networks at a share of their size, without training.

    python -m benchmarks.opened [NAME ...] [--on minilm stories ...] [--shares 0.5x] [--latency 0.6x]
    python -m benchmarks.opened --report

Contenders: every family of dims by itself, all of them in one budget, `auto`, the published recipes, Torch-Pruning
where it runs. Each result is in build/opened.json as soon as it is there, so that a run goes on where it stopped;
--report puts the tables into docs/benchmarks.md. With --latency, budgets are those at which a contender takes that
share of the network's time in ONNX Runtime. The networks, and what a result is worth: benchmarks/opened_tasks.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .opened_sides import NAMES, THEIRS, at_latency, contenders, measured, recipe
from .opened_tasks import TASKS, Task
from .results import Results, between

RESULTS, PAGE = Path("build/opened.json"), Path("docs/benchmarks.md")
START, END = "<!-- opened: written by python -m benchmarks.opened --report -->", "<!-- end of opened -->"
AT_LATENCY = ("auto", "all", "ranks", "branches")
BUDGETS = ("0.7x", "0.5x")
"""Of latency."""


def key(on: str, share: str, name: str) -> str:
    """Contenders of one recipe have one result."""
    return f"{on} {share} {THEIRS if name == THEIRS else recipe(name, TASKS[on].unit, share).text()}"


def table(found: Mapping[str, Any], columns: Sequence[tuple[str, str]], prefix: str = "") -> str:
    """A row a contender that has a result, a column a network and share; the best of each column is bold. Nothing where
    there is no result."""
    cells = {(on, share, name): found.get(prefix + key(on, share, name)) for on, share in columns for name in NAMES}
    columns = [(on, share) for on, share in columns if any(cells[on, share, name] for name in NAMES)]
    if not columns:
        return ""
    names = [name for name in NAMES if any(cells[on, share, name] for on, share in columns)]
    heads = (f"{on}, {TASKS[on].shown}, {prefix or TASKS[on].unit + ' '}{share}" for on, share in columns)
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    best = {}
    for on, share in columns:
        worth = [one[TASKS[on].shown] for name in names if TASKS[on].shown in (one := cells[on, share, name] or {})]
        best[on, share] = max(worth, key=lambda x: TASKS[on].better * x, default=None)
    for name in names:
        row = [_cell(TASKS[on], cells[on, share, name], best[on, share]) for on, share in columns]
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def _cell(task: Task, one: Mapping[str, Any] | None, best: float | None) -> str:
    if not one or task.shown not in one:
        return "cannot" if one else "-"
    told = f"{one[task.shown]:.2f}" if task.shown == "accuracy" else f"{one[task.shown]:.3f}"
    return f"**{told}**" if one[task.shown] == best else told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--on", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--shares", nargs="+", help="by default those of each network")
    parser.add_argument("--latency", nargs="*", help=f"shares of the latency, by default {' '.join(BUDGETS)}")
    parser.add_argument("--report", action="store_true", help="write the tables")
    args = parser.parse_args()
    if unknown := set(args.names) - {*NAMES}:
        parser.error(f"no contender is called {', '.join(sorted(unknown))}")
    results = Results(RESULTS)
    for on in () if args.report else args.on:
        if args.latency is None:
            for share in args.shares or TASKS[on].shares:
                for name in args.names or contenders(TASKS[on]):
                    results.get(key(on, share, name), partial(measured, on, name, share))
        for share in () if args.latency is None else args.latency or BUDGETS:
            for name in args.names or AT_LATENCY:
                results.get(f"latency {key(on, share, name)}", partial(at_latency, on, name, share))
    made = table(results.known, [(on, share) for on, task in TASKS.items() for share in task.shares])
    timed = table(results.known, [(on, share) for on in TASKS for share in BUDGETS], "latency ")
    shown = "\n\n".join(filter(None, (made, timed)))
    print(shown)
    if args.report:
        between(PAGE, START, END, shown)


if __name__ == "__main__":
    main()
