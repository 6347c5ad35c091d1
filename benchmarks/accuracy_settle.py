"""How `auto` was settled: its choices one at a time, on training images that calibration does not see."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np

import graphprune as gp
from graphprune.calibration import least_squares as regression
from graphprune.compensation import lsq

from . import accuracy_sides as sides
from .cifar import TRAIN_IMAGES, accuracy, images, normalised

measured: Any = import_module("graphprune.allocation.measured")
rd: Any = import_module("graphprune.allocation.rd")  # the package has the function under its name

NETWORKS, BUDGETS = ("resnet20", "densenet40"), ("0.5x", "0.3x")
HELD_OUT = 2_000
DEFAULT = {"by": "obs", "allocate": "rd", "power": 0.5, "rounds": 1, "damp": 0.01, "rows": 30, "samples": 64}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"power": 0.0},
    {"power": 1.0},
    {"rounds": 0},
    {"rounds": 3},
    {"rows": 100},
    {"samples": 128},
    {"damp": 0.001},
    {"damp": 0.1},
    {"by": "wifv"},
    {"allocate": "global"},
    {"allocate": "knapsack"},
)


def held_out() -> tuple[Any, Any]:
    """Training images beside the 512 of calibration."""
    used = np.random.default_rng(0).choice(TRAIN_IMAGES, 512, replace=False)  # as cifar.calibration draws them
    rest = np.setdiff1d(np.arange(TRAIN_IMAGES), used)
    pixels, labels = images("train", np.random.default_rng(2).choice(rest, HELD_OUT, replace=False))
    return normalised(pixels), labels


def settle(results: Any) -> None:
    """Every variant on every network and budget, as rows of the results."""
    x, labels = held_out()
    for name in NETWORKS:
        curves: dict[Any, Any] = {}
        for budget in BUDGETS:
            for change in VARIANTS:
                job = (name, budget, f"held out: {json.dumps(change)}")
                if not results.have(job):
                    results.add(job, partial(_variant, name, budget, {**DEFAULT, **change}, curves, x, labels))


def _variant(name: str, budget: str, chosen: dict[str, Any], curves: dict[Any, Any], x: Any, labels: Any) -> Any:
    with _constants(chosen, curves):
        scored = _scored(name, chosen["by"], chosen["rows"])
        recipe = f"mask{{macs={budget} allocate={chosen['allocate']}}},propagate,compensate"
        return {"accuracy": accuracy(gp.run(recipe, scored).model, x, labels)}


@cache
def _scored(name: str, by: str, rows: int) -> gp.Program:
    return gp.run(f"group,score{{by={by}}}", sides.program(name))


@contextmanager
def _constants(chosen: dict[str, Any], curves: dict[Any, Any]) -> Iterator[None]:
    """The choices that are constants of modules; what was measured of the groups is measured once."""
    measure: Callable[..., Any] = rd.distortions
    key = chosen["by"], chosen["rows"], chosen["samples"]

    def once(*args: Any) -> Any:
        if key not in curves:
            curves[key] = measure(*args)
        return curves[key]

    wanted = {
        (rd, "SHARED"): chosen["power"],
        (measured, "SAMPLES"): chosen["samples"],
        (rd, "distortions"): once,
        (lsq, "ROUNDS"): chosen["rounds"],
        (lsq, "DAMP"): chosen["damp"],
        (regression, "ROWS"): chosen["rows"],
    }
    before = {place: getattr(*place) for place in wanted}
    for (module, attribute), value in wanted.items():
        setattr(module, attribute, value)
    try:
        yield
    finally:
        for (module, attribute), value in before.items():
            setattr(module, attribute, value)
