"""plan.json, and the new weights of a correction in plan.safetensors beside it.

Indices are text that people read and diff; fitted weights are neither, and as text would be several
times the model. ``plan.json`` holds ``{"file": "plan.safetensors", "names": [...]}`` in their place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..ir.host import Array

WEIGHTS = "plan.safetensors"


def write_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Write ``plan.json``, and ``plan.safetensors`` where the plan has weights."""
    tensors: dict[str, Array] = {}
    steps = []
    for number, step in enumerate(plan.get("steps", ())):
        if "weights" in step:
            tensors |= {f"{number}:{name}": array for name, array in step["weights"].items()}
            step = {**step, "weights": {"file": WEIGHTS, "names": sorted(step["weights"])}}
        steps.append(step)
    if tensors:
        from safetensors.numpy import save_file

        save_file(tensors, folder / WEIGHTS)
    (folder / "plan.json").write_text(json.dumps({**plan, "steps": steps}, indent=1, sort_keys=True) + "\n")


def read_plan(path: Path) -> dict[str, Any]:
    """A plan.json. Raises RecipeError if it is not one, or its weights are not beside it."""
    try:
        plan: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: not a plan ({error})") from error
    steps = plan.get("steps") if isinstance(plan, dict) else None
    if not isinstance(steps, list) or plan.get("version") != 1 or not all(isinstance(step, dict) for step in steps):
        raise RecipeError(f"{path}: not a plan of version 1", "plan.json is written by `graphprune compile`")
    if any("weights" in step for step in steps):
        plan["steps"] = _with_weights(steps, path.parent / WEIGHTS)
    return plan


def _with_weights(steps: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        return [
            {**step, "weights": {name: tensors[f"{number}:{name}"] for name in step["weights"]["names"]}}
            if "weights" in step
            else step
            for number, step in enumerate(steps)
        ]
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path}: not the weights of this plan ({error})", "plan.json and plan.safetensors belong together"
        ) from error
