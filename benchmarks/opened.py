"""Families of dims: what is left of trained networks at a share of their size, without training.

    python -m benchmarks.opened [NAME ...] [--on minilm stories ...] [--budgets macs=0.5x] [--latency 0.6x]
    python -m benchmarks.opened --report

Contenders: every family of dims by itself, all of them in one budget, `auto`, the published recipes, Torch-Pruning
where it runs; and whichever of `auto` and `all` is nearer on samples held back, as `compile` takes it of both. Each
result is in docs/opened.json as soon as it is there, so that a run goes on where it stopped; --report puts the tables
into docs/benchmarks.md. With --latency, budgets are shares of the network's time in ONNX Runtime, and what goes is
chosen by tables of what ops take there (`mask{latency=...}`). The networks, and what a result is worth:
benchmarks/opened_tasks.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .opened_sides import CONTEST, NAMES, THEIRS, at_latency, contenders, measured, recipe
from .opened_tasks import BUDGETS, TASKS, Task
from .results import Results, between

RESULTS, PAGE = Path("docs/opened.json"), Path("docs/benchmarks.md")
START, END = "<!-- opened: written by python -m benchmarks.opened --report -->", "<!-- end of opened -->"
AT_LATENCY = ("auto", "all", "ranks", "branches")
LATENCIES = ("0.7x", "0.5x")
NEARER = " and ".join(CONTEST) + ", the nearer"


def key(on: str, budget: str, name: str) -> str:
    """Contenders of one recipe have one result."""
    return f"{on} {budget} {THEIRS if name == THEIRS else recipe(name, budget).text()}"


def timed(on: str, share: str, name: str) -> str:
    return f"{on} latency={share} {name}"


def table(found: Mapping[str, Any], on: str, columns: Mapping[str, Callable[[str], str]]) -> str:
    """Of one network, a row a contender that has a result, a column a budget (which says the key of a result);
    the best of each column is bold. Nothing where there is no result."""
    task, every = TASKS[on], [*contenders(TASKS[on]), NEARER]
    cells = {(budget, name): found.get(made(name)) for budget, made in columns.items() for name in every[:-1]}
    cells |= {(budget, NEARER): _nearer([cells.get((budget, name)) for name in CONTEST]) for budget in columns}
    shown = [budget for budget in columns if any(cells[budget, name] for name in every)]
    if not shown:
        return ""
    names = [name for name in every if any(cells[budget, name] for budget in shown)]
    lines = [f"| {on}, {task.shown} | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    worth = {
        budget: [one[task.shown] for name in names if task.shown in (one := cells[budget, name] or {})]
        for budget in shown
    }
    best = {budget: max(each, key=lambda x: task.better * x, default=None) for budget, each in worth.items()}
    for name in names:
        lines.append(f"| {name} | {' | '.join(_cell(task, cells[budget, name], best[budget]) for budget in shown)} |")
    return "\n".join(lines)


def tables(found: Mapping[str, Any]) -> str:
    made = []
    for on, task in TASKS.items():
        made.append(
            table(found, on, {budget: partial(key, on, budget) for budget in sorted({*BUDGETS, *task.more})[::-1]})
        )
        made.append(table(found, on, {f"latency {share}": partial(timed, on, share) for share in LATENCIES}))
    return "\n\n".join(filter(None, made))


def _nearer(found: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    """Of results, all of which are there, that which changes the outputs least on samples held back."""
    made = [one for one in found if one and "change" in one]
    return min(made, key=lambda one: float(one["change"])) if None not in found and made else None


def _cell(task: Task, one: Mapping[str, Any] | None, best: float | None) -> str:
    if not one or task.shown not in one:
        return "cannot" if one else "-"
    told = f"{one[task.shown]:.2f}" if task.shown == "accuracy" else f"{one[task.shown]:.3f}"
    return f"**{told}**" if one[task.shown] == best else told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--on", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--budgets", nargs="+", help=f"by default {' '.join(BUDGETS)} and what a network has beside")
    parser.add_argument("--latency", nargs="*", help=f"shares of the latency, by default {' '.join(LATENCIES)}")
    parser.add_argument("--report", action="store_true", help="write the tables")
    args = parser.parse_args()
    if unknown := set(args.names) - {*NAMES}:
        parser.error(f"no contender is called {', '.join(sorted(unknown))}")
    results = Results(RESULTS)
    for on in () if args.report else args.on:
        if args.latency is None:
            for budget in args.budgets or (*TASKS[on].more, *BUDGETS):
                for name in args.names or contenders(TASKS[on]):
                    results.get(key(on, budget, name), partial(measured, on, name, budget))
        for share in () if args.latency is None else args.latency or LATENCIES:
            for name in args.names or AT_LATENCY:
                results.get(timed(on, share, name), partial(at_latency, on, name, share))
    shown = tables(results.known)
    print(shown)
    if args.report:
        between(PAGE, START, END, shown)


if __name__ == "__main__":
    main()
