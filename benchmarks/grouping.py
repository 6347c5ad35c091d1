"""Grouping, L2 scores, the cut and new shapes, beside Torch-Pruning's graph, init and step.

    python -m benchmarks.grouping [--repeats 5]

Processor time of one thread. Each run is a process of its own; graphprune and Torch-Pruning take turns. Uniform 0.5x
of the channels by L2. Seconds exclude building the model and imports; tracing is a column of its own, beside what
torch.export alone takes of it, which is the floor of what is traced. Ratios are to Torch-Pruning: without tracing, with
it, and of torch.export alone. Peak memory is the process's peak resident set, next to that of a process that only
builds the model and runs it once.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from .networks import NETWORKS, make


def ours(name: str) -> dict[str, float]:
    """export: torch.export. work: group, score, mask, propagate, with every shape inferred again."""
    import torch.export._trace  # noqa: F401 - imports are not what is measured

    import graphprune.passes.propagate  # noqa: F401
    from graphprune.hosts.torch.host import TorchHost
    from graphprune.ir.program import Program
    from graphprune.pipeline.recipe import Recipe
    from graphprune.pipeline.run import run

    module, inputs = make(name)
    recipe = Recipe.parse("group{normalised=true},score{by=l2},mask{channels=0.5x},propagate")
    start = time.process_time()
    host = TorchHost.export(module, inputs)
    traced = time.process_time()
    done = run(recipe, Program(host=host, source=host))
    end = time.process_time()
    return {"export": traced - start, "work": end - traced, "params": done.history[-1].params}


def torch_pruning(name: str) -> dict[str, float]:
    """work: dependency graph, importance and pruner construction, and one step."""
    import torch
    import torch_pruning as tp

    module, inputs = make(name)
    last = [part for part in module.modules() if isinstance(part, torch.nn.Linear)][-1:]
    start = time.process_time()
    pruner = tp.pruner.MetaPruner(
        module,
        inputs[0],
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=last,
        output_transform=_tensor,
    )
    pruner.step()
    end = time.process_time()
    return {"work": end - start, "params": sum(p.numel() for p in module.parameters())}


def exported(name: str) -> dict[str, float]:
    """work: torch.export alone, the batch left open as graphprune leaves it."""
    import torch.export._trace

    module, inputs = make(name)
    start = time.process_time()
    with torch.no_grad():
        torch.export.export(module, inputs, dynamic_shapes=[{0: torch.export.Dim.AUTO} for _ in inputs])
    return {"work": time.process_time() - start}


def _tensor(out: Any) -> Any:
    found = (getattr(out, key, None) for key in ("logits", "last_hidden_state"))
    return next((value for value in found if value is not None), out)


def alone(name: str) -> dict[str, float]:
    import torch

    module, inputs = make(name)
    with torch.no_grad():
        module(*inputs)
    return {}


SIDES = {"graphprune": ours, "torch-pruning": torch_pruning, "torch.export": exported, "model alone": alone}


def _child(side: str, name: str) -> None:
    import torch

    torch.set_num_threads(1)
    result = SIDES[side](name)
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


def _run(side: str, name: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.grouping", "--child", side, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} on {name} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=sorted(NETWORKS), action="append")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(*options.child)
        return
    print(
        "| network | torch.export alone s | tracing s | graphprune s | Torch-Pruning s | ratio | with tracing "
        "| torch.export alone | peak MB ours / theirs / model alone | params ours / theirs |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in options.only or NETWORKS:
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(options.repeats):
            for side in SIDES:
                runs[side].append(_run(side, name))
        mine, theirs, floor, bare = (runs[side] for side in SIDES)

        def mid(rows: list[dict[str, Any]], key: str) -> float:
            median: float = statistics.median(row[key] for row in rows)
            return median

        def spread(rows: list[dict[str, Any]], key: str) -> str:
            values = [row[key] for row in rows]
            return f"{mid(rows, key):.2f} ({min(values):.2f}-{max(values):.2f})"

        print(
            f"| {name} | {spread(floor, 'work')} | {spread(mine, 'export')} | {spread(mine, 'work')} "
            f"| {spread(theirs, 'work')} | {mid(mine, 'work') / mid(theirs, 'work'):.2f} "
            f"| {(mid(mine, 'work') + mid(mine, 'export')) / mid(theirs, 'work'):.2f} "
            f"| {mid(floor, 'work') / mid(theirs, 'work'):.2f} "
            f"| {mid(mine, 'peak_mb'):.0f} / {mid(theirs, 'peak_mb'):.0f} / {mid(bare, 'peak_mb'):.0f} "
            f"| {mine[0]['params'] / 1e6:.1f}M / {theirs[0]['params'] / 1e6:.1f}M |",
            flush=True,
        )


if __name__ == "__main__":
    main()
