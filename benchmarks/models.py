"""Files as makers ship them: what graphprune cuts of each, judged by ONNX Runtime alone: docs/models.md.

    python -m benchmarks.models [--out docs/models.jsonl] [--only NAME ...] [--render]

A JSON line a row, written as it comes: what ``--out`` holds is not run again, and the page beside it is made of the
rows. A file that is not on this machine is skipped with the reason; GRAPHPRUNE_MODELS names the folder of files, and
the extra ``bench-models`` installs the wheels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import graphprune as gp
from graphprune.cost.static import macs as macs_of
from graphprune.cost.static import params as params_of
from graphprune.cost.static import samples
from graphprune.coupling.groups import find_groups
from graphprune.driver.save import save
from graphprune.errors import GraphpruneError
from graphprune.ir.program import Program
from graphprune.passes.mask import Mask

from .masked import narrowed, relative_error
from .models_answers import TASKS, Task, answered
from .models_page import page
from .models_sources import SOURCES, Absent, Source
from .ort_macs import Feeds, macs, session

ASKED, SLACK = 0.5, 0.02
BUDGETS = (0.9, 0.7, 0.5)
MADE = Path("build/models")


def row(source: Source) -> dict[str, Any]:
    """What can go, what went at half the multiply-accumulates (or as near as can be), and the three judgements."""
    path = source.path(MADE)
    model, start = onnx.load(path), time.process_time()
    feeds = source.feeds(path)
    found: dict[str, Any] = {
        "name": source.name, "kind": "file", "origin": source.origin, "licence": source.licence,
        "exporter": f"{model.producer_name or 'not said'} {model.producer_version}".strip(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
    }  # fmt: skip
    try:
        program = gp.load(path, given(feeds))
        found |= reach(program, source.states)
        share = max(ASKED, math.ceil((1 - found["can_go"]["macs"] + SLACK) * 100) / 100)
        if share >= 1:
            return found | {"refused": reasons(program)}
        with tempfile.TemporaryDirectory() as folder:
            how: dict[str, Any] = {"macs": f"{share:.2f}x"}
            if source.states:
                how = {"recipe": stateful(source.states, share)}
            done = gp.compile(program, **how, out=Path(folder) / "out", verify=False, measure=False)
            after, plan = Path(folder) / "out" / "model.onnx", Path(folder) / "out" / "plan.json"
            error, rounding, moved = relative_error(plan, path, after, feeds)
            return found | {
                "asked": share,
                "recipe": done.report["recipe"],
                "macs": [macs(path, feeds), macs(after, narrowed(plan, after, feeds))],
                "counted": [counted(program), counted(done.program)],
                "ms": times([path, after], feeds, narrowed(plan, after, feeds)),
                "error": error,
                "rounding": rounding,
                "moved": moved,
                "seconds": round(time.process_time() - start, 1),
            }
    except GraphpruneError as error:
        return found | {"refused": error.message}


def given(feeds: Feeds) -> dict[str, Any]:
    """The same inputs for gp.load: sizes by name, scalars as they are."""
    return {name: array.item() if array.ndim == 0 else array.shape for name, array in feeds.items()}


def stateful(states: str, share: float) -> str:
    """The default recipe, in which widths of inputs go too."""
    return f"group{{states={states}}},score,mask{{macs={share:.2f}x allocate=global}},propagate"


def reach(program: Program, states: str) -> dict[str, Any]:
    """The share of parameters and of multiply-accumulates that goes with every group at its floor."""
    groups = find_groups(program.graph, states=(states,) if states else ()).groups
    floors = {group.dim: float(max(1, math.ceil(group.size * Mask.floor))) for group in groups}
    costs = {"params": params_of(program.graph, program.host), "macs": macs_of(program.graph, program.host)}
    can_go = {unit: 1 - cost(floors) / cost() if cost() else 0.0 for unit, cost in costs.items()}
    return {"groups": len(groups), "params": int(costs["params"]()), "can_go": can_go}


def counted(program: Program) -> int:
    """What graphprune itself counts for the whole input."""
    return round(macs_of(program.graph, program.host)() * samples(program.graph, program.host))


def reasons(program: Program) -> str:
    """Why nothing can go: what the most channels are frozen for."""
    frozen = [(dim.size, dim.reason) for dim in find_groups(program.graph).frozen if isinstance(dim.size, int)]
    return "; ".join(dict.fromkeys(reason for _, reason in sorted(frozen, key=lambda one: -one[0])[:3]))


def times(paths: list[Path], *given: Feeds, seconds: float = 2.0) -> list[list[float]]:
    """Processor time of a run of each on its own inputs in ms, on one thread, turn about: median, lower and upper
    quartile. (The latency on a quiet machine; on a busy one the clock tells of the others.)"""
    sessions, took = [session(path) for path in paths], [[] for _ in paths]  # type: list[Any], list[list[float]]
    for one, feeds in zip(sessions, given, strict=True):
        one.run(None, dict(feeds))
    end = time.process_time() + seconds
    while len(took[0]) < 9 or (time.process_time() < end and len(took[0]) < 200):
        for own, one, feeds in zip(took, sessions, given, strict=True):
            start = time.process_time()
            one.run(None, dict(feeds))
            own.append(1000 * (time.process_time() - start))
    return [[round(float(q), 4) for q in np.percentile(own, (50, 25, 75))] for own in took]


def answers(task: Task) -> list[dict[str, Any]]:
    """A row a budget: how often the pruned model, calibrated and repaired, answers as the original does."""
    path = SOURCES[task.source].path(MADE)
    start = time.process_time()
    program = gp.load(path, dict(SOURCES[task.source].sizes) or None, data=task.calibration(path), fixed=task.fixed)
    scored = gp.run("group,score{by=obs}", program)
    before = answered(task, path)
    found = []
    for budget in BUDGETS:
        one: dict[str, Any] = {
            "name": f"{task.name}, {budget}x",
            "kind": "answers",
            "task": task.name,
            "budget": budget,
        }
        one["what"], one["file"] = task.what, task.source
        try:
            done = gp.run(f"mask{{macs={budget}x allocate=rd}},propagate,compensate", scored)
        except GraphpruneError as error:
            found.append(one | {"refused": error.message})
            continue
        with tempfile.TemporaryDirectory() as folder:
            after, _ = save(done, Path(folder) / "out")
            now = answered(task, after)
            feeds = SOURCES[task.source].feeds(path)
            one["macs"] = macs(after, feeds) / macs(path, feeds)
        same = [task.same(a, b) for a, b in zip(before, now, strict=True)]
        kinds = Counter(map(str, before))
        commonest = kinds.most_common(1)[0][1] / len(before)
        found.append(one | {"same": sum(same), "of": len(same), "kinds": len(kinds), "commonest": commonest})
    found[-1]["seconds"] = round(time.process_time() - start, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/models.jsonl"))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="rows whose name begins so")
    parser.add_argument("--render", action="store_true", help="write the page of the rows that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = (
        {one["name"]: one for one in map(json.loads, given.out.read_text().splitlines())} if given.out.exists() else {}
    )
    skipped: dict[str, str] = {}

    def add(*made: dict[str, Any]) -> None:
        rows.update({one["name"]: one for one in made})
        with given.out.open("a") as file:
            file.writelines(json.dumps(one) + "\n" for one in made)
        for one in made:
            print(one, file=sys.stderr, flush=True)

    def wanted(name: str, *keys: str) -> bool:
        chosen = not given.only or any(name.startswith(begin) for begin in given.only)
        return not given.render and chosen and not all(key in rows for key in keys)

    for source in SOURCES.values():
        try:
            if wanted(source.name, source.name):
                add(row(source))
        except Absent as reason:
            skipped[source.name] = str(reason)
    for task in TASKS:
        try:
            if wanted(task.name, *(f"{task.name}, {budget}x" for budget in BUDGETS)):
                add(*answers(task))
        except Absent as reason:
            skipped[task.name] = str(reason)
    for name, why in skipped.items():
        print(f"skipped {name}: {why}", file=sys.stderr)
    unanswered = [task.name for task in TASKS if f"{task.name}, {BUDGETS[0]}x" not in rows]
    given.out.with_suffix(".md").write_text(page(rows, [*SOURCES, *unanswered], skipped))


if __name__ == "__main__":
    main()
