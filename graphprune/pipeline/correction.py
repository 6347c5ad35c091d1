"""Corrections: new weights and additions to biases, made once from data and replayed from the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import RecipeError
from ..ir.host import Array, Host
from ..ir.program import Program


@dataclass(frozen=True)
class Correction:
    """``weights``: whole tensors by parameter name. ``bias``: by op name, what to ``add`` to the outputs
    that survive, ``at`` their places among the ``of`` that there were."""

    weights: Mapping[str, Array] = field(default_factory=dict)
    bias: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def step(self) -> dict[str, Any]:
        """As a step of the plan."""
        return {"bias": dict(self.bias), **({"weights": dict(self.weights)} if self.weights else {})}

    @classmethod
    def read(cls, step: Mapping[str, Any]) -> Correction:
        return cls(step.get("weights", {}), step.get("bias", {}))

    def __bool__(self) -> bool:
        return bool(self.weights or self.bias)


def addition(change: Array, kept: Array, whole: int) -> dict[str, Any]:
    """An entry of ``Correction.bias``."""
    return {"add": change.tolist(), "at": np.asarray(kept).tolist(), "of": whole}


def correct(program: Program, correction: Correction, masked: Mapping[str, Any] | None = None) -> Host:
    """A corrected copy of the program's host. ``masked``: it has the original shapes, of which these are
    the parameter axes that were cut (the plan's ``parameters``); only what survived is corrected.

    Raises RecipeError for a correction that does not fit the model.
    """
    host = program.host.copy()
    ops = {op.name: op for op in program.graph.ops}
    parameters = program.graph.parameters
    unknown = [*(n for n in correction.weights if n not in parameters), *(n for n in correction.bias if n not in ops)]
    if unknown:
        raise RecipeError(f"the plan corrects `{unknown[0]}`, which this model does not have", "is it the same model?")
    for name, weight in correction.weights.items():
        whole = host.parameter(name).copy()
        axes = masked.get(name, {}) if masked is not None else {}
        places = [
            np.asarray(axes[str(k)]["keep"]) if str(k) in axes else np.arange(n) for k, n in enumerate(whole.shape)
        ]
        if tuple(map(len, places)) != weight.shape:
            raise RecipeError(f"the plan's `{name}` is {weight.shape}, the model's {tuple(map(len, places))}")
        whole[np.ix_(*places)] = 0
        np.add.at(whole, np.ix_(*places), weight)  # a channel that is read twice has the sum of both
        host.set_parameter(name, whole)
    for name, entry in correction.bias.items():
        bias = np.asarray(entry["add"])
        if masked is not None:
            bias = np.zeros(entry["of"])
            bias[entry["at"]] = entry["add"]
        host.add_bias(ops[name], bias)
    return host
