"""The ranks of a program's layers, seen in the weights of the user's own module.

A weight that ``factor`` would make two of is a matrix, of outputs (and some of the taps) by inputs (and the others). In
a basis of the smaller side it is a sum of as many terms as the rank is, and a rank that goes leaves its term out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from ..axes.dim import find
from ..coupling.contractions import Contraction, contractions
from ..coupling.factors import Factors, Within, parts, within
from ..coupling.factors import matrix as coupled
from ..errors import ModelError
from ..hosts.torch.export import unwrapped
from ..ir.facts import Groups
from ..ir.graph import Graph
from ..ir.host import Array, Host
from ..ir.program import Program
from ..pipeline.factoring import Factor, ranks
from ..pipeline.recipe import Recipe
from ..pipeline.run import run
from .channels import parameters
from .positions import Positions, wide


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight. ``op``: the op that reads it; ``turned``: whether the parameter has its inputs first; ``first``:
    which taps are with the inputs, see coupling.factors."""

    op: str
    parameter: nn.Parameter
    turned: bool
    first: Within

    def matrix(self, weight: Tensor) -> Tensor:
        """A tensor shaped like the parameter, as rows by columns; at least float32."""
        laid = wide(weight.T if self.turned else weight)
        rows = [0, *(2 + k for k, own in enumerate(self.first) if not own)]
        columns = [1, *(2 + k for k, own in enumerate(self.first) if own)]
        made = laid.permute(rows + columns)
        return made.reshape(int(np.prod(made.shape[: len(rows)])), -1)

    def weight(self, matrix: Tensor) -> Tensor:
        """The inverse of ``matrix``."""
        shape = list(self.parameter.shape[::-1] if self.turned else self.parameter.shape)
        taps = range(2, len(shape))
        order = [0, *(k for k in taps if not self.first[k - 2]), 1, *(k for k in taps if self.first[k - 2])]
        made = matrix.reshape([shape[k] for k in order]).permute(np.argsort(order).tolist())
        return (made.T if self.turned else made).to(self.parameter.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        rows, columns = self.matrix(self.parameter.detach()).shape
        return rows, columns

    def pays(self, rank: int) -> bool:
        """Whether two layers of that rank are smaller than one: else it stays whole (pipeline.factoring.settled)."""
        rows, columns = self.shape
        return rank * (rows + columns) < rows * columns


class Ranks(Positions):
    """The ranks of all layers that ``factor{layers=... orders=... share=none}`` makes two of and the module trains, one
    group a layer. Raises ModelError where there is none."""

    def __init__(self, program: Program, module: nn.Module, layers: str, orders: str) -> None:
        live = parameters(program, module)
        recipe = f"factor{{layers={layers} orders={orders} share=none}},group{{only=*rank}}"
        self.opened = opened = run(Recipe.parse(recipe), program)
        known = {layer.op.name: layer for layer in contractions(program.graph)}
        (edit,) = opened.plan.of(Factor)
        groups = {find(group.dim): group for group in opened.fact(Groups)}
        found = {}
        for op, rank in ranks(opened).items():
            name, turned = _stored(known[op], program.graph)
            if name in live and find(rank.dim) in groups:
                first = within(known[op], edit.layers[op].inner)
                found[name] = groups[find(rank.dim)], Layer(op, live[name], turned, first)
        if not found:
            raise ModelError(
                f"{type(unwrapped(module)).__name__} trains none of the weights that `factor` makes two of",
                "give the module that the program was loaded from, with parameters that require gradients",
            )
        self.layers = {name: layer for name, (_, layer) in found.items()}
        device = next(iter(self.layers.values())).parameter.device
        super().__init__(tuple(group for group, _ in found.values()), unwrapped(module), device)

    def tensors(self) -> dict[str, nn.Parameter]:
        return {name: layer.parameter for name, layer in self.layers.items()}


def factors(layer: Layer, contraction: Contraction, host: Host, basis: Array) -> Factors:
    """The weight that a host has now as two, by an orthogonal basis of its smaller side; ranks as the basis has its
    columns. The value of a rank is the norm of its term."""
    rows, columns = layer.shape
    weight = contraction.matrix(host)[0]
    outputs, inputs = weight.shape[:2]
    taps = contraction.weight_shape[2:] if contraction.op.kind == "conv" else ()
    matrix = coupled(weight.reshape(outputs, inputs, *taps), layer.first)
    outer, inner = (basis, basis.T @ matrix) if rows <= columns else (matrix @ basis, basis.T)
    values = np.linalg.norm(inner, axis=1) if rows <= columns else np.linalg.norm(outer, axis=0)
    second, first = parts(outer, inner, contraction, layer.first, outputs, inputs)
    return Factors(first, {layer.op: second}, values)


def _stored(layer: Contraction, graph: Graph) -> tuple[str, bool]:
    """The parameter that a weight is, and whether it has its inputs first."""
    value, turned = layer.op.inputs[1], layer.transposed
    while value is not None and value.name not in graph.parameters:
        maker = graph.maker(value)
        value, turned = (maker.inputs[0] if maker is not None else None), not turned
    assert value is not None  # `factor` asks for it
    return value.name, turned
