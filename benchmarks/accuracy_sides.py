"""The two sides of benchmarks/accuracy.py: what each makes of a network at a budget, and what is measured of it."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import graphprune as gp

from .cifar import TRAIN_IMAGES, accuracy, calibration, images, network, normalised

MODELS = Path("build/accuracy")
"""Compiled models, kept so that nothing is compiled twice."""
CRITERIA: Mapping[str, Callable[[Any], Any]] = {
    "l1": lambda tp: tp.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda tp: tp.importance.GroupMagnitudeImportance(p=2),
    "lamp": lambda tp: tp.importance.LAMPImportance(),
    "fpgm": lambda tp: tp.importance.FPGMImportance(),
    "bn": lambda tp: tp.importance.BNScaleImportance(),
    "taylor": lambda tp: tp.importance.GroupTaylorImportance(),
}


# ---- measuring -------------------------------------------------------------------------------------


@cache
def test_set() -> tuple[Any, Any]:
    pixels, labels = images("test")
    return normalised(pixels), labels


@cache
def sample() -> tuple[Any, Any]:
    return calibration()


def score(model: torch.nn.Module, every: int = 1) -> dict[str, Any]:
    """Accuracy on every so many-th test image; the images are sorted by class, so each class has its share."""
    x, labels = test_set()
    return {"accuracy": accuracy(model.eval(), x[::every], labels[::every]), "images": len(x[::every])}


def macs(module: torch.nn.Module) -> float:
    """Of convolutions and linear layers, a sample; as graphprune counts them."""
    total = 0.0

    def hook(part: torch.nn.Module, inputs: Any, out: Any) -> None:
        nonlocal total
        weight: Any = part.weight
        total += out[0].numel() * weight[0].numel()

    module = copy.deepcopy(module).eval()
    for part in module.modules():
        if isinstance(part, (torch.nn.Conv2d, torch.nn.Linear)):
            part.register_forward_hook(hook)
    with torch.no_grad():
        module(torch.zeros(1, 3, 32, 32))
    return total


# ---- graphprune ------------------------------------------------------------------------------------


@cache
def program(name: str) -> gp.Program:
    return gp.load(network(name), torch.from_numpy(sample()[0][:2]), data=sample()[0])


def compiled(name: str, budget: str) -> Path:
    """What ``gp.compile`` makes by default (`auto`), with its report and the processor time that it took."""
    folder = MODELS / f"{name}-{budget}"
    if not (folder / "seconds").exists():
        x = sample()[0]
        start = time.process_time()
        gp.compile(network(name), torch.from_numpy(x[:2]), macs=budget, data=x, measure=False, out=folder, force=True)
        seconds = time.process_time() - start
        (folder / "seconds").write_text(f"{seconds}\n", encoding="utf-8")
    return folder


def remains(name: str, budget: str) -> float:
    report = json.loads((compiled(name, budget) / "report.json").read_text(encoding="utf-8"))
    share: float = report["after"]["macs"] / report["before"]["macs"]
    return share


def auto(name: str, budget: str) -> torch.nn.Module:
    """The exported model, read back."""
    model: torch.nn.Module = gp.load(compiled(name, budget) / "model.pt2").model
    return model


def same_mask(name: str, budget: str, repair: str) -> torch.nn.Module:
    """What `auto` cut, and nothing or another compensation after it; exported and read back."""
    path = MODELS / f"{name}-{budget}-{repair or 'alone'}.pt2"
    if not path.exists():
        from graphprune.pipeline.plan_file import read_plan

        plan = dict(read_plan(compiled(name, budget) / "plan.json"))
        plan["steps"] = [step for step in plan["steps"] if "keep" in step]
        cut = replace(gp.apply(plan, program(name)), data=program(name).data)
        (gp.run(repair, cut) if repair else cut).host.save(path)
    model: torch.nn.Module = gp.load(path).model
    return model


NORMALIZE = {"lamp": "none", **dict.fromkeys(("wifv", "ifv", "wifn"), "standard")}
"""How a criterion's paper makes the groups compare; the others are brought to the same mean."""


def by_criterion(name: str, budget: str, criterion: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """One threshold for one criterion's scores, then each compensation. Not exported."""
    compared = NORMALIZE.get(criterion, "mean")
    recipe = f"group,score{{by={criterion} normalize={compared}}},mask{{macs={budget} allocate=global}},propagate"
    given = program(name) if criterion not in ("taylor", "fisher", "hessian") else with_loss(name)
    cut = gp.run(recipe, given)
    for repair in ("none", "mean", "lsq"):
        yield repair, cut.model if repair == "none" else gp.run(f"compensate{{by={repair}}}", cut).model


@cache
def with_loss(name: str) -> gp.Program:
    return gp.load(
        network(name),
        torch.from_numpy(sample()[0][:2]),
        data=sample(),
        loss=torch.nn.functional.cross_entropy,
    )


# ---- Torch-Pruning ---------------------------------------------------------------------------------


def theirs(name: str, budget: str, criterion: str, scope: str) -> tuple[torch.nn.Module, float]:
    """Torch-Pruning at the largest ratio that meets the budget, and that ratio."""
    wanted = float(budget.rstrip("x")) * macs(network(name))
    if scope == "local":  # the same share of every layer, whichever the channels
        ratio = _largest_ratio(name, wanted, "l1", scope)
    else:
        ratio = _largest_ratio(name, wanted, criterion, scope)
    return torch_pruning(name, criterion, scope, ratio), ratio


@cache
def _largest_ratio(name: str, wanted: float, criterion: str, scope: str) -> float:
    low, high = 0.0, 1.0
    for _ in range(9):
        ratio = (low + high) / 2
        fits = macs(torch_pruning(name, criterion, scope, ratio)) <= wanted
        low, high = (low, ratio) if fits else (ratio, high)
    return high


def torch_pruning(name: str, criterion: str, scope: str, ratio: float) -> torch.nn.Module:
    """The residual streams of the ResNets are left alone: their shortcuts pad a written-down number of
    channels, which Torch-Pruning cannot change."""
    import torch_pruning as tp

    module = network(name)
    if criterion == "taylor":
        for own, gradient in zip(module.parameters(), gradients(name), strict=True):
            own.grad = gradient.clone()
    frozen: list[torch.nn.Module] = [part for part in module.modules() if isinstance(part, torch.nn.Linear)]
    if name.startswith("resnet"):
        frozen += [module.get_submodule("conv1"), *(part for n, part in module.named_modules() if n.endswith("conv2"))]
    pruner = tp.pruner.MetaPruner(
        module,
        torch.from_numpy(sample()[0][:2]),
        importance=CRITERIA[criterion](tp),
        pruning_ratio=ratio,
        global_pruning=scope == "global",
        ignored_layers=frozen,
    )
    pruner.step()
    return module.eval()


@cache
def gradients(name: str) -> list[torch.Tensor]:
    module, (x, labels) = network(name), sample()
    for k in range(0, len(x), 128):
        out = module(torch.from_numpy(x[k : k + 128]))
        torch.nn.functional.cross_entropy(out, torch.from_numpy(labels[k : k + 128])).backward()
    return [own.grad for own in module.parameters() if own.grad is not None]


# ---- one epoch afterwards --------------------------------------------------------------------------


def finetuned(model: torch.nn.Module, count: int, rate: float = 0.01, batch: int = 64) -> torch.nn.Module:
    """One epoch over ``count`` training images: SGD with momentum 0.9 and weight decay 1e-4, the rate falling
    to zero along a cosine, half of the images mirrored. The same images in the same order for everyone."""
    rng = np.random.default_rng(1)
    pixels, labels = images("train", rng.permutation(TRAIN_IMAGES)[:count])
    x, y = torch.from_numpy(normalised(pixels)), torch.from_numpy(labels)
    mirrored = torch.from_numpy(rng.random(count) < 0.5)
    x[mirrored] = x[mirrored].flip(-1)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, rate, momentum=0.9, weight_decay=1e-4)
    steps = -(-count // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for k in range(0, count, batch):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[k : k + batch]), y[k : k + batch]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()
