"""What the passes behind one in a recipe will add to what a budget counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..axes.dim import leaves
from ..cost.static import Cost, Term, bits, gates
from ..cost.units import cost
from ..coupling.contractions import contractions, counted
from ..ir.facts import Groups
from ..ir.graph import Rank
from ..ir.program import Program
from .base import Pass


@dataclass(frozen=True)
class Ahead:
    """A fact that ``run`` gives: the passes of the recipe behind the one that runs."""

    steps: tuple[Pass, ...]


def cost_ahead(unit: str, program: Program, groups: Groups, ranks: Sequence[Rank] = ()) -> Cost:
    """What a choice of channels and branches costs, see cost.units.cost, with the biases that a pass behind this one
    may give to layers that have none: a budget is of what comes out."""
    known = cost(unit, program.graph, program.host, groups, ranks)
    ahead = program.fact(Ahead).steps if program.knows(Ahead) else ()
    if unit in ("params", "size") and any(step.makes_biases() for step in ahead):
        return replace(known, terms=(*known.terms, *_biases(unit, program, groups)))
    return known


def _biases(unit: str, program: Program, groups: Groups) -> Iterator[Term]:
    """One for each layer that reads what may go, or what that changes."""
    graph, own = program.graph, {group.dim for group in groups}
    layers = {layer.op.name: layer for layer in contractions(graph)}
    there, rows, changed = gates(graph, groups), counted(graph), set[str]()
    for op in graph.ops:
        layer = layers.get(op.name)
        reads = layer is not None and not own.isdisjoint(leaves(layer.dim))
        if reads or op.name in there or any(value is not None and value.name in changed for value in op.inputs):
            changed |= {out.name for out in op.outputs}
            if layer is not None and not layer.has_bias(graph) and layer.out.name not in rows:
                each = (bits(layer.out.dtype),) if unit == "size" else ()
                yield (layer.out.dims[layer.out_axis], *there.get(op.name, ()), *each)
