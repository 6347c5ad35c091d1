"""graphprune: a compiler whose optimisation is structured pruning.

import graphprune as gp

program = gp.load(module, example_inputs)
program = gp.run("group,score{by=l2},mask{macs=0.5x},propagate", program)
smaller = program.model  # a torch.fx.GraphModule that computes what the masked module computes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import train
    from .api import Artifact, apply, closeness, compile, curve, hold_back, load, rebuild, record, run, verify
    from .calibration.images import Images
    from .errors import GraphpruneError
    from .ir.program import Program
    from .pipeline.base import Pass
    from .pipeline.recipe import Recipe

__all__ = [
    "Artifact",
    "GraphpruneError",
    "Images",
    "Pass",
    "Program",
    "Recipe",
    "apply",
    "closeness",
    "compile",
    "curve",
    "hold_back",
    "load",
    "rebuild",
    "record",
    "run",
    "train",
    "verify",
]

_HOME = {
    **dict.fromkeys(
        (
            "Artifact",
            "apply",
            "closeness",
            "compile",
            "curve",
            "hold_back",
            "load",
            "rebuild",
            "record",
            "run",
            "verify",
        ),
        "api",
    ),
    "GraphpruneError": "errors",
    "Images": "calibration.images",
    "Program": "ir.program",
    "Pass": "pipeline.base",
    "Recipe": "pipeline.recipe",
}


def __getattr__(name: str) -> Any:
    """Names are imported when first used: ``import graphprune`` costs nothing."""
    from importlib import import_module

    if name == "train":
        return import_module(".train", __name__)
    if name not in _HOME:
        raise AttributeError(f"module `graphprune` has no attribute `{name}`")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
