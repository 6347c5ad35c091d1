"""The contenders of benchmarks/opened.py: families of dims, published recipes, Torch-Pruning."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import graphprune as gp
from graphprune.backends import share as share_of_latency
from graphprune.backends.onnxruntime.target import Onnx
from graphprune.cost.static import macs, params
from graphprune.driver.auto import at_grain, default_recipe
from graphprune.driver.contenders import distance, readers
from graphprune.driver.curve import begun
from graphprune.driver.latency_search import to_latency
from graphprune.ir.program import Program
from graphprune.passes.mask import Mask
from graphprune.pipeline.published import published
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import run

from .opened_tasks import TASKS, Task

FIT = "mask{@ allocate=rd},propagate,compensate"
FAMILIES = {
    "branches": "group,branches{alone=true},score{branches=output},mask{@ allocate=stepwise},propagate,compensate",
    "ranks": "factor{by=data},group{only=*rank},score,mask{@ allocate=rd floor=0},propagate,compensate",
    "hidden size": "rms,rotate{untie=true},group{places=stream},score{by=obs},mask{@ floor=0},propagate,compensate",
    "widths": f"group,score{{by=obs}},{FIT}",
    "widths + branches": f"group,branches,score{{by=obs}},{FIT}",
    "widths + ranks": f"factor{{by=data}},group,score{{by=obs}},{FIT}",
    "vocabulary + widths": "vocabulary{keep=0-2},group,score{by=obs},mask{@ allocate=rd of=given},propagate,compensate",
    "all, rotated": f"rms,rotate{{untie=true}},factor{{by=data}},group,branches,score{{by=obs}},{FIT}",
}
"""Each by itself, and together in one budget by measured distortion; `all` is a recipe of its own. Tokens that no
calibration has are read as another and have a constant logit (0 to 2 are special ones)."""
WORDS = ("vocabulary + widths",)
"""Families of what has tokens that it seldom meets."""
BY_DISTORTION = {"branches": f"group,branches{{alone=true}},score{{branches=output}},{FIT}"}
"""Where a family is allocated by something else, and a latency is not."""
THEIRS = "Torch-Pruning"
CRITERIA: Mapping[str, Callable[[Any], Any]] = {
    "l2": lambda tp: tp.importance.GroupMagnitudeImportance(p=2),
    "lamp": lambda tp: tp.importance.LAMPImportance(),
}
EXPERTS = ("mone", "stun")
"""Recipes for what no network here has."""
NAMES = ("auto", *FAMILIES, *(name for name in published() if name not in EXPERTS), THEIRS)
CONTEST = ("auto", "all")
"""Of these `compile --recipe auto --recipe all` takes what changes the outputs less on the samples held back."""
COUNTED = (params, macs)


def contenders(task: Task) -> list[str]:
    """Torch-Pruning is for modules that say which of their layers must stay."""
    theirs = (THEIRS,) if task.stays else ()
    ours = task.names or [name for name in NAMES[:-1] if task.words or name not in WORDS]
    return [name for name in NAMES if name in ("auto", *ours, *theirs)]


def recipe(name: str, budget: str) -> Recipe:
    unit, share = budget.split("=")
    if name == "auto":
        return default_recipe(unit, share, data=True)
    if name in published():
        return published()[name].recipe(unit, share)
    steps = BY_DISTORTION.get(name, FAMILIES[name]) if unit == "latency" else FAMILIES[name]
    return Recipe.parse(steps.replace("@", budget))


@cache
def parted(on: str) -> tuple[Program, Sequence[Any]]:
    """A network, and the samples that are held back, as `compile` does."""
    return gp.hold_back(TASKS[on].program())


def program(on: str) -> Program:
    return parted(on)[0]


@cache
def _begun(on: str, text: str) -> tuple[Program, float]:
    """A network that knows what is the same at all budgets of a recipe, and the processor time that it took."""
    start = time.process_time()
    made = begun(program(on), Recipe.parse(text), None)
    return made, time.process_time() - start


def pruned(on: str, steps: Recipe, unit: str) -> tuple[Program, float]:
    """The network after a recipe, and the processor time of it all; where it allocates by measured distortion, what is
    measured is measured once for all budgets."""
    masks = [step for step in steps.steps if isinstance(step, Mask)]
    start, before, given = time.process_time(), 0.0, program(on)
    if len(masks) == 1 and masks[0].allocate == "rd" and not masks[0].latency:
        beginning = Recipe(steps.steps[: steps.steps.index(masks[0])]).text()
        given, before = _begun(on, f"{beginning},mask{{{unit}=0.5x allocate=rd}}")
        start = time.process_time()
    return run(steps, given), before + time.process_time() - start


def measured(on: str, name: str, budget: str) -> dict[str, Any]:
    """What is left of a network, and what that is worth, once it has been written and read back."""
    unit, share = budget.split("=")
    if name == THEIRS:
        return torch_pruning(on, unit, float(share.rstrip("x")))
    whole, judged = parted(on)
    try:
        done, seconds = pruned(on, recipe(name, budget), unit)
        held = {"change": distance(whole, done, judged), "seconds": round(seconds, 1)}
        return {**_worth(on, done), **_left(whole, done), **held, **_opened(done)}
    except gp.GraphpruneError as error:
        return {"refused": str(error)[:300]}


def at_latency(on: str, name: str, share: str) -> dict[str, Any]:
    """The same within a share of the latency in ONNX Runtime, one thread, that is measured anew once all is done. As in
    `compile`: at the multiples that the target likes, and of `auto` the nearer of readers that agree and that choose.
    """
    (whole, judged), target, start = parted(on), Onnx(), time.process_time()

    def attempt(steps: Recipe) -> tuple[Program, Mapping[str, Any]]:
        found = to_latency(whole, steps, target)
        return found.program, found.facts

    try:
        steps = at_grain(recipe(name, f"latency={share}"), target.grain)
        made = steps, attempt(steps)
        if name == "auto":
            made = readers(whole, made, target, judged, attempt)
        done, facts = made[1]
        seconds = time.process_time() - start
        took = {
            "latency": round(share_of_latency(target.runnable(whole), target.runnable(done)), 3),
            "predicted": round(facts["predicted_ms"] / facts["whole_ms"], 3),
            "change": distance(whole, done, judged),
        }
        return {**_worth(on, done), **_left(whole, done), **took, "seconds": round(seconds, 1), **_opened(done)}
    except gp.GraphpruneError as error:
        return {"refused": str(error)[:300]}


def _worth(on: str, done: Program) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{done.host.suffix}"
        done.host.save(path)
        read = gp.load(path, check=False).host
        return TASKS[on].judge(*(partial(_first, host.run) for host in (read, done.source)))


def _first(outputs: Callable[[Any], list[Any]], batch: Any) -> Any:
    return outputs(batch)[0]


def _left(whole: Program, done: Program) -> dict[str, float]:
    return {
        count.__name__: round(count(done.graph, done.host)() / count(whole.graph, whole.host)(), 4) for count in COUNTED
    }


def _opened(done: Program) -> dict[str, Any]:
    """What went beside widths."""
    steps: Any = done.plan["steps"]
    gone = sum(len(step.get("branches", ())) for step in steps)
    factored = sum(len(step["layers"]) for step in steps if "layers" in step)
    return {"branches gone": gone, "factored": factored}


# ---- Torch-Pruning -------------------------------------------------------------------------------------


def torch_pruning(on: str, unit: str, share: float) -> dict[str, Any]:
    """The best of its criteria, global, at the largest ratio that meets the budget, counted as ours."""
    task, found = TASKS[on], list[dict[str, Any]]()
    start = time.process_time()
    for criterion in CRITERIA:
        try:
            module, left = _largest(on, unit, share, criterion)
        except Exception as error:  # what it cannot do it says in many ways
            return {"refused": f"{type(error).__name__}: {error}"[:300]}
        worth = task.judge(partial(_called, module), partial(_first, program(on).source.run))
        found.append({**worth, **left, "criterion": criterion})
    best = max(found, key=lambda one: task.better * one[task.shown])
    return {**best, "seconds": round(time.process_time() - start, 1)}


def _largest(on: str, unit: str, share: float, criterion: str) -> tuple[torch.nn.Module, dict[str, float]]:
    low, high, best = 0.0, 1.0, None
    for _ in range(8):
        ratio = (low + high) / 2
        module = _cut(on, criterion, ratio)
        left = _left(program(on), gp.load(module, _example(on)))
        fits = left[unit] <= share
        low, high = (low, ratio) if fits else (ratio, high)
        best = (module, left) if fits else best
    if best is None:
        raise ValueError(f"no ratio comes to {share}x")
    return best


def _cut(on: str, criterion: str, ratio: float) -> torch.nn.Module:
    import torch_pruning as tp

    module = copy.deepcopy(TASKS[on].network())
    assert isinstance(module, torch.nn.Module)  # files are not its
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    frozen = [part for name, part in module.named_modules() if any(fnmatch(name, one) for one in TASKS[on].stays)]
    heads = {
        part: n
        for name, part in module.named_modules()
        for ending, n in TASKS[on].heads.items()
        if name.endswith(ending)
    }
    pruner = tp.pruner.MetaPruner(
        module, _example(on), importance=CRITERIA[criterion](tp), pruning_ratio=ratio, global_pruning=True,
        ignored_layers=frozen, num_heads=heads, prune_num_heads=bool(heads), head_pruning_ratio=ratio,
    )  # fmt: skip
    pruner.step()
    return module.eval()


def _example(on: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(np.asarray(x[:2])) for x in program(on).data[0])


def _called(module: torch.nn.Module, batch: Any) -> Any:
    with torch.no_grad():
        return module(*map(torch.from_numpy, batch)).numpy()
