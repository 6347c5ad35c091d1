"""Factor: layers that were made two each, and what of them is whole again where no rank went."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Any, Self

import numpy as np

from ..axes.dim import find
from ..axes.index import Index
from ..coupling.contractions import Contraction, contractions
from ..coupling.factors import Factors, product
from ..coupling.groups import everything
from ..errors import RecipeError
from ..ir.document import Entry
from ..ir.facts import Groups, Keep, Order
from ..ir.graph import Graph, Op, Rank
from ..ir.host import Array
from ..ir.program import Edit, Parameters, Program

APART = 1e-6
"""Of the largest entry: how far the product of two factors may be from the weight that they stand for."""


@dataclass(frozen=True)
class Factor(Edit):
    """The factors of weights, by the name of their first op: it, and those that read the same, read a new op from then
    on, whose outputs are ranks."""

    kind = "factor"
    fitted = True

    layers: Mapping[str, Factors]

    @property
    def opens(self) -> bool:
        return True

    def apply(self, program: Program) -> Program:
        graph = program.graph
        known = {layer.op.name: layer for layer in contractions(graph) if kept_whole(layer, graph) is None}
        host, hint = program.host.copy(), "is it the same model?"
        for found in self.layers.values():
            for name, outer in found.outers.items():
                if name not in known:
                    raise RecipeError(f"the plan factors `{name}`, no layer of this model with its own weight", hint)
                layer = known[name]
                made = product(layer, found.inner, outer)
                shape = layer.weight_shape
                if made is None:
                    raise RecipeError(f"the plan's factors of `{name}` do not fit its weight {shape}", hint)
                weight = layer.matrix(host)[0].reshape(made.shape)
                if not np.abs(made - weight).max() <= APART * np.abs(weight).max():
                    raise RecipeError(f"the plan's factors of `{name}` do not make its weight", hint)
            if len({known[name].value for name in found.outers}) > 1:
                together = ", ".join(found.outers)
                raise RecipeError(f"the plan factors {together} together, which read different values", hint)
            host.factor([known[name].op for name in found.outers], found.inner, list(found.outers.values()))
        host.own()
        host.shapes()
        return program.rewrite(host, self)

    def masked(self, program: Program, cut: Parameters) -> Program:
        return self.apply(program)

    def without(self, whole: Set[str]) -> Factor:
        """The same for all layers but these."""
        return replace(self, layers={name: one for name, one in self.layers.items() if name not in whole})

    def content(self) -> dict[str, Any]:
        weights = dict[str, Array]()
        for name, one in self.layers.items():
            weights |= {f"{name}:inner": one.inner, f"{name}:values": one.values}
            weights |= {f"{op}:outer": outer for op, outer in one.outers.items()}
        layers = [list(one.outers) for one in self.layers.values()]
        return {"layers": layers, **({"weights": weights} if weights else {})}

    @classmethod
    def read(cls, entry: Entry) -> Self:
        parts = entry.table(("layers",), ("weights",))
        layers = [[op.text() for op in ops.entries()] for ops in parts["layers"].entries()]
        if not all(layers) or len({*chain(*layers)}) < len([*chain(*layers)]):
            raise parts["layers"].error("a layer stands there twice, or none")
        firsts = (f"{ops[0]}:{part}" for ops in layers for part in ("inner", "values"))
        arrays = parts.get("weights", entry.holding({})).table((*firsts, *(f"{op}:outer" for op in chain(*layers))))
        found = {}
        for ops in layers:
            inner, values = (arrays[f"{ops[0]}:{part}"].array() for part in ("inner", "values"))
            own = Factors(inner, {op: arrays[f"{op}:outer"].array() for op in ops}, values)
            shapes = {outer.ndim for outer in own.outers.values()} | {inner.ndim}
            if inner.ndim < 2 or len(shapes) > 1 or values.ndim != 1:
                raise arrays[f"{ops[0]}:inner"].error("these are no factors of a weight")
            found[ops[0]] = own
        return cls(found)


def kept_whole(layer: Contraction, graph: Graph) -> str | None:
    """Why a layer cannot be two, if it cannot."""
    weight = layer.op.inputs[1]
    assert weight is not None
    if layer.groups > 1:
        return f"{layer.groups} groups"
    if not weight.dtype.startswith(("float", "bfloat")) or graph.stored(weight) is None:
        return "its weight is shared, computed or quantised"
    if not layer.as_stored:
        return "its windows are not known, or it is scaled"
    if min(layer.weight_shape[:2]) < 2:
        return "a rank of one"
    return None


def ranks(program: Program) -> dict[str, Rank]:
    """Of every layer that was factored, by the name of its first op."""
    return {rank.outers[0]: rank for edit in program.plan.of(Factor) for rank in _ranks(edit, program.graph)}


def _ranks(edit: Factor, graph: Graph) -> list[Rank]:
    found, ops = [], {op.name: op for op in graph.ops}
    for name, one in edit.layers.items():
        first = ops.get(name)
        inner = graph.maker(first.inputs[0]) if first is not None and first.inputs[0] is not None else None
        if first is not None and inner is not None:
            axis = 1 if first.kind == "conv" else -1
            found.append(Rank(inner.name, tuple(one.outers), inner.outputs[0].dims[axis]))
    return found


def undecided(program: Program) -> tuple[Rank, ...]:
    """The ranks of layers that may still be whole: where nothing was cut yet."""
    return tuple(ranks(program).values()) if all(edit.opens for edit in program.plan.edits) else ()


def settled(program: Program) -> Program:
    """The program, right before a cut, in which those layers are as they were given that stay whole (``Keep.whole``):
    that is a choice as well, and exact."""
    groups, keep = program.fact(Groups), program.fact(Keep)
    index, ops = keep.index(groups.channels), {op.name: op for op in program.graph.ops}
    whole, gone = set[str](), set[str]()
    for rank in undecided(program):
        if rank.outers[0] in keep.whole if keep.whole is not None else _no_smaller(rank, ops, index):
            whole.add(rank.outers[0])
            gone |= {group.name for group in groups if group.dim is find(rank.dim)}
    if not whole:
        return program
    made = Program(host=program.source, source=program.source)
    for edit in program.plan.edits:
        made = (edit.without(whole) if isinstance(edit, Factor) else edit).apply(made)
    made = replace(program, host=made.host, facts={}, plan=replace(program.plan, edits=made.plan.edits))
    known = {group.name for group in groups} - gone
    again = everything(made.graph)
    stay = (*(group for group in again if group.name in known), *groups.gates)
    kept = {name: own for name, own in keep.keep.items() if name in known}
    order = (program.fact(Order),) if program.knows(Order) else ()
    for fact in (replace(again, groups=stay, made=groups.made), replace(keep, keep=kept), *order):
        made = made.learn(fact)
    return made


def _no_smaller(rank: Rank, ops: Mapping[str, Op], index: Index) -> bool:
    """Whether so much of the rank stays that one weight is no larger than two."""
    inner, *outers = (_count(ops[name], index) for name in (rank.inner, *rank.outers))
    return inner + sum(outers) >= inner * sum(outers) // len(index(rank.dim)) ** 2


def _count(op: Op, index: Index) -> int:
    """The numbers that are left of the weight of an op."""
    weight = op.inputs[1]
    assert weight is not None
    return prod(len(index(dim)) for dim in weight.dims)
