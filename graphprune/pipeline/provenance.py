"""How a model was made, for the files that have a place for it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from .. import __version__
from ..cost.units import UNITS
from ..ir.program import Program

LEAD = "graphprune"


def provenance(program: Program) -> dict[str, str]:
    """``graphprune.recipe`` (the passes that ran, or those of the plan that was applied), ``.budget`` (of its masks),
    ``.seed`` and ``.versions``; nothing of a model that is as it was given."""
    if not program.plan.edits:
        return {}
    steps = [step.text for step in program.history]
    budgets = [f"{unit}={step.options[unit]}" for step in program.history for unit in UNITS if step.options.get(unit)]
    found = {
        "recipe": ",".join(steps) or str(program.plan.about.get("recipe", "")),
        "budget": ", ".join(budgets),
        "seed": str(program.seed),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    return {f"{LEAD}.{name}": text for name, text in found.items() if text}


def versions() -> dict[str, str]:
    """What a result may depend on."""
    out = {LEAD: __version__, "python": platform.python_version()}
    for name in ("torch", "onnx", "onnx-ir", "onnxruntime", "apache-tvm", "numpy", "networkx"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out
