"""Accuracy without training on trained CIFAR-10 networks, beside Torch-Pruning.

    python -m benchmarks.accuracy                 run what is missing, then write tables and plots
    python -m benchmarks.accuracy --only resnet20 --budget 0.5x
    python -m benchmarks.accuracy --report        tables and plots of what there is

512 training images (labels for Taylor alone), no training. Both sides get the same MACs budget, counted
the same way; Torch-Pruning at the largest ratio that meets it, pruning every layer alike (`local`) or all
by one threshold (`global`), the better of the two being its result. The residual streams of the ResNets
are left alone by Torch-Pruning: their shortcuts pad a written-down number of channels, which it cannot
change. Accuracy is that of the exported model (model.pt2, read back) on the 10,000 test images, in percent.

Every result is a line of accuracy.jsonl, written when it is known; what is there is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

import graphprune as gp

from .cifar import TRAINED, accuracy, calibration, images, network, normalised

RESULTS = Path("docs/accuracy/accuracy.jsonl")
BUDGETS = ("0.5x", "0.7x", "0.3x")
CRITERIA = {
    "l1": lambda tp: tp.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda tp: tp.importance.GroupMagnitudeImportance(p=2),
    "lamp": lambda tp: tp.importance.LAMPImportance(),
    "fpgm": lambda tp: tp.importance.FPGMImportance(),
    "bn": lambda tp: tp.importance.BNScaleImportance(),
    "taylor": lambda tp: tp.importance.GroupTaylorImportance(),
}
RECIPES = {
    "auto, mask alone": "{auto}",
    "auto with mean": "{auto},compensate{{by=mean}}",
}
GRID = ("l1", "l2", "bn", "fpgm", "lamp", "random", "wifv", "ifv", "wifn", "wanda", "variance", "aap", "obs")
Job = tuple[str, str, str]  # network, budget, contender


# ---- the two sides ---------------------------------------------------------------------------------


@cache
def test_set() -> tuple[Any, Any]:
    pixels, labels = images("test")
    return normalised(pixels), labels


@cache
def sample() -> tuple[Any, Any]:
    return calibration()


def ours(name: str, budget: str, recipe: str | None) -> dict[str, Any]:
    """Compile, write, read back, evaluate. ``recipe`` None: the default."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        made = gp.compile(
            network(name),
            torch.from_numpy(sample()[0][:2]),
            macs=budget if recipe is None else None,
            recipe=recipe,
            data=sample()[0],
            measure=False,
            out=Path(folder) / "out",
        )
        seconds = time.perf_counter() - start
        model = gp.load(Path(folder) / "out" / "model.pt2").model
    before, after = (made.report[side]["macs"] for side in ("before", "after"))
    return {
        "accuracy": accuracy(model, *test_set()),
        "macs": after / before,
        "seconds": seconds,
        "recipe": made.report["recipe"],
    }


def theirs(name: str, budget: str, criterion: str, scope: str) -> dict[str, Any]:
    """Torch-Pruning at the largest ratio that meets the budget (bisection)."""
    whole, wanted = macs(network(name)), float(budget.rstrip("x"))
    start, low, high, best = time.perf_counter(), 0.0, 1.0, None
    for _ in range(9):
        ratio = (low + high) / 2
        pruned = _torch_pruning(name, criterion, scope, ratio)
        left = macs(pruned) / whole
        if left <= wanted:
            high, best = ratio, (pruned, left)
        else:
            low = ratio
    assert best is not None
    model, left = best
    seconds = time.perf_counter() - start
    return {"accuracy": accuracy(model.eval(), *test_set()), "macs": left, "seconds": seconds}


def _torch_pruning(name: str, criterion: str, scope: str, ratio: float) -> torch.nn.Module:
    import torch_pruning as tp

    module, (x, labels) = network(name), sample()
    if criterion == "taylor":
        for k in range(0, len(x), 128):
            out = module(torch.from_numpy(x[k : k + 128]))
            torch.nn.functional.cross_entropy(out, torch.from_numpy(labels[k : k + 128])).backward()
    frozen = [part for part in module.modules() if isinstance(part, torch.nn.Linear)]
    if name.startswith("resnet"):
        frozen += [module.conv1, *(part for n, part in module.named_modules() if n.endswith("conv2"))]
    pruner = tp.pruner.MetaPruner(
        module,
        torch.from_numpy(x[:2]),
        importance=CRITERIA[criterion](tp),
        pruning_ratio=ratio,
        global_pruning=scope == "global",
        ignored_layers=frozen,
    )
    pruner.step()
    return module


def macs(module: torch.nn.Module) -> float:
    """Of convolutions and linear layers, a sample; as graphprune counts them."""
    total = 0.0

    def hook(part: torch.nn.Module, inputs: Any, out: Any) -> None:
        nonlocal total
        weight = part.weight
        total += out[0].numel() * weight[0].numel()

    module = copy.deepcopy(module).eval()
    for part in module.modules():
        if isinstance(part, (torch.nn.Conv2d, torch.nn.Linear)):
            part.register_forward_hook(hook)
    with torch.no_grad():
        module(torch.zeros(1, 3, 32, 32))
    return total


# ---- running ---------------------------------------------------------------------------------------


def jobs(networks: tuple[str, ...], budgets: tuple[str, ...], grid: bool) -> Iterator[tuple[Job, Callable[[], Any]]]:
    for budget in budgets:
        for name in networks:
            yield (name, budget, "graphprune auto"), lambda n=name, b=budget: ours(n, b, None)
            for criterion in CRITERIA:
                for scope in ("local", "global"):
                    job = (name, budget, f"Torch-Pruning {criterion} {scope}")
                    yield job, lambda n=name, b=budget, c=criterion, s=scope: theirs(n, b, c, s)
            for label, text in RECIPES.items():
                recipe = text.format(auto=_auto(budget).removesuffix(",compensate"))
                yield (name, budget, label), lambda n=name, b=budget, r=recipe: ours(n, b, r)
    if grid:
        for name in ("resnet56", "densenet40"):
            for criterion in GRID:
                for repair in ("none", "mean", "lsq"):
                    tail = "" if repair == "none" else f",compensate{{by={repair}}}"
                    recipe = f"group,score{{by={criterion}}},mask{{macs=0.5x allocate=global}},propagate{tail}"
                    yield (name, "0.5x", f"{criterion} + {repair}"), lambda n=name, r=recipe: ours(n, "0.5x", r)


def _auto(budget: str) -> str:
    from graphprune.api import default_recipe

    return default_recipe("macs", budget, 1, data=True).text()


def load_results() -> dict[Job, dict[str, Any]]:
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["network"], row["budget"], row["contender"]): row for row in rows}


def run(networks: tuple[str, ...], budgets: tuple[str, ...], grid: bool, only: str = "") -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    done = load_results()
    for name in networks:
        if (name, "1x", "dense") not in done:
            _write((name, "1x", "dense"), {"accuracy": accuracy(network(name), *test_set()), "macs": 1.0})
    for job, work in jobs(networks, budgets, grid):
        if job not in done and only in job[2]:
            try:
                _write(job, work())
            except Exception as error:  # one contender's failure is a result too
                _write(job, {"error": f"{type(error).__name__}: {error}"[:300]})


def _write(job: Job, result: dict[str, Any]) -> None:
    row = {"network": job[0], "budget": job[1], "contender": job[2], **result}
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(*job, {k: v for k, v in result.items() if k != "recipe"}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=TRAINED, action="append", help="networks (default: all)")
    parser.add_argument("--budget", choices=BUDGETS, action="append", help="what remains of the MACs (default: all)")
    parser.add_argument("--contender", default="", help="only those whose name contains this")
    parser.add_argument("--no-grid", action="store_true", help="leave out the table of criteria x compensation")
    parser.add_argument("--report", action="store_true", help="only write tables and plots of what there is")
    options = parser.parse_args()
    if not options.report:
        run(tuple(options.only or TRAINED), tuple(options.budget or BUDGETS), not options.no_grid, options.contender)
    from .accuracy_report import report

    report(load_results(), RESULTS.parent)


if __name__ == "__main__":
    main()
