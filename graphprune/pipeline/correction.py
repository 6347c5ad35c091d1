"""Correct: new weights and additions to biases, made once from data and replayed from the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from ..errors import RecipeError
from ..ir.document import Entry
from ..ir.graph import Op
from ..ir.host import Array, has_floats
from ..ir.large import in_turn
from ..ir.program import Axis, Edit, Parameters, Program

OTHER = "is it the same model, and are these the weights that were written with the plan?"


@dataclass(frozen=True)
class Addition:
    """What to ``add`` to the outputs of an op that survive, ``at`` their places among the ``of`` there were."""

    add: tuple[float, ...]
    at: tuple[int, ...]
    of: int

    def whole(self) -> Array:
        """The same for all outputs that there were, zero where none survived."""
        bias = np.zeros(self.of)
        bias[list(self.at)] = self.add
        return bias


def addition(change: Array, kept: Array, whole: int) -> Addition:
    """What to add to the outputs ``kept`` of ``whole``."""
    return Addition(tuple(change.tolist()), tuple(np.asarray(kept).tolist()), whole)


@dataclass(frozen=True)
class Correct(Edit):
    """Whole new ``weights`` by parameter name, and by op name what to add to its ``bias``."""

    kind = "correct"
    fitted = True

    weights: Mapping[str, Array] = field(default_factory=dict)
    bias: Mapping[str, Addition] = field(default_factory=dict)

    def apply(self, program: Program) -> Program:
        return self._correct(program, None)

    def masked(self, program: Program, cut: Parameters) -> Program:
        return self._correct(program, cut)

    def _correct(self, program: Program, cut: Parameters | None) -> Program:
        host = program.host.copy()
        ops = {op.name: op for op in program.graph.ops}
        parameters = program.graph.parameters
        unknown = [*(n for n in self.weights if n not in parameters), *(n for n in self.bias if n not in ops)]
        if unknown:
            raise RecipeError(
                f"the plan corrects `{unknown[0]}`, which this model does not have", "is it the same model?"
            )
        for name, weight in in_turn(self.weights):
            axes = cut.get(name, {}) if cut is not None else {}
            host.set_parameter(name, _placed(name, weight, host.parameter(name), axes))
        for name, entry in self.bias.items():
            count, width = len(entry.add) if cut is None else entry.of, _width(ops[name])
            if count != width:
                raise RecipeError(
                    f"the plan corrects {count} outputs of {ops[name].where}, which has {width}",
                    "is it the same model?",
                )
            host.add_bias(ops[name], np.asarray(entry.add) if cut is None else entry.whole())
        return program.rewrite(host, self)

    def content(self) -> dict[str, Any]:
        bias = {name: {"add": list(a.add), "at": list(a.at), "of": a.of} for name, a in self.bias.items()}
        return {"bias": bias, **({"weights": dict(self.weights)} if self.weights else {})}

    @classmethod
    def read(cls, entry: Entry) -> Self:
        parts = entry.table(("bias",), ("weights",))
        weights = parts["weights"].items() if "weights" in parts else ()
        return cls(
            {name: weight.array() for name, weight in weights},
            {name: _addition(found) for name, found in parts["bias"].items()},
        )

    def __bool__(self) -> bool:
        return bool(self.weights or self.bias)


def _addition(entry: Entry) -> Addition:
    parts = entry.table(("add", "at", "of"))
    add = tuple(number.number() for number in parts["add"].entries())
    at, of = parts["at"].places(), parts["of"].whole(1)
    if len(add) != len(at):
        raise parts["add"].error(f"{len(add)} numbers for {len(at)} places")
    if max(at) >= of:
        raise parts["at"].error(f"place {max(at)} of {of}")
    return Addition(add, at, of)


def _placed(name: str, weight: Array, whole: Array, axes: Mapping[str, Axis]) -> Array:
    """``weight`` in the place of what is kept of ``whole``."""
    places = [np.asarray(axes[str(k)]["keep"]) if str(k) in axes else np.arange(n) for k, n in enumerate(whole.shape)]
    if tuple(map(len, places)) != weight.shape:
        raise RecipeError(f"the plan's `{name}` is {weight.shape}, the model's {tuple(map(len, places))}", OTHER)
    if not has_floats(weight) or not has_floats(whole):
        raise RecipeError(f"the plan's `{name}` is {weight.dtype}, the model's {whole.dtype}", OTHER)
    with np.errstate(over="ignore"):
        if not np.isfinite(weight.astype(whole.dtype)).all():
            raise RecipeError(f"the plan's `{name}` has numbers that are none in the model's {whole.dtype}", OTHER)
    if not axes:
        return weight.astype(whole.dtype)  # a copy: what is done to the network from here on leaves the plan as it is
    whole, at = whole.copy(), np.ix_(*places)
    if all(len(np.unique(place)) == len(place) for place in places):
        whole[at] = weight
    else:  # a channel that is read twice has the sum of both
        whole[at] = 0
        np.add.at(whole, at, weight)
    return whole


def _width(op: Op) -> int | str:
    """How many outputs an op with a weight has: the size of the axis that its bias runs along."""
    weight = op.inputs[1] if len(op.inputs) > 1 else None
    shape = op.outputs[0].shape
    if weight is None or not weight.constant or not shape:
        raise RecipeError(f"the plan corrects the bias of {op.where}, which can have none", "is it the same model?")
    return shape[len(shape) - len(weight.dims) + 1 if op.kind.startswith("conv") else -1]
