"""Mixtures of experts in a graph: which dims are of experts, and where what each expert makes can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..axes.dim import Dim, find, leaves
from ..ir.graph import Graph, Lanes, Op, Value
from ..ops.traits import traits


@dataclass(frozen=True)
class Route:
    """What experts make. ``dim``: their axis, all of it. ``ids``: the numbers of those that are chosen; the rows of
    ``made`` are in the order of these, flattened. Where all experts are computed, ``made`` has ``dim`` as that axis;
    where each has ops of its own, there is one of each, in order."""

    dim: Dim
    made: Value | tuple[Value, ...]
    ids: Value | None = None
    axis: int = 0


def experts(graph: Graph) -> frozenset[Dim]:
    """The leaves of axes that something is chosen or weighed of, and weights are picked or multiplied by, or whose
    positions have ops of their own."""
    own = {find(lanes.dim) for lanes in graph.lanes}
    return frozenset(own) | (graph.weighed & {leaf for route in _routes(graph) for leaf in leaves(route.dim)})


def routes(graph: Graph) -> list[Route]:
    """For every axis of experts the last that they compute, where that is."""
    mine, last = experts(graph), dict[Dim, Route]()
    for route in _routes(graph):
        if any(leaf in mine for leaf in leaves(route.dim)):
            last[find(route.dim)] = route
    return list(last.values())


def chosen(graph: Graph, dim: Dim) -> Value | None:
    """The numbers of experts that are chosen, or where all are, their shares, with ``dim`` as the last axis."""
    found = None
    for op in graph.ops:
        value = op.outputs[-1] if op.outputs else None
        if value is None:
            continue
        if op.kind == "topk" and value.picks is not None and find(value.picks) is find(dim):
            found = value
        elif op.attrs.get("function") == "softmax" and find(value.dims[-1]) is find(dim):
            found = value if found is None or found.picks is None else found
    return found


def _routes(graph: Graph) -> Iterator[Route]:
    yield from (Route(lanes.dim, _alone(graph, lanes)) for lanes in graph.lanes)
    for op in graph.ops:
        relation = graph.relations[op.name]
        if op.kind in ("index", "gather") and op.inputs[0] is not None and op.inputs[0].constant:
            for name, operands in relation.picks.items():
                made = _multiplied(graph, op)
                if made is not None:
                    yield Route(relation.dims[name], made, op.inputs[operands[0]])
        elif op.kind == "grouped_matmul" and op.inputs[1] is not None and (ids := _counted(graph, op)) is not None:
            yield Route(relation.dims["e"], op.outputs[0], ids)
        elif traits(op).zeros == "written" and len(op.inputs) > 1:
            yield from _batched(op)


def _alone(graph: Graph, lanes: Lanes) -> tuple[Value, ...]:
    """What is made for each position, before it is weighed, added to what others make or joined with it."""
    ops = {op.name: op for op in graph.ops}
    found = []
    for _, branches in sorted(lanes.ends.items()):
        value = ops[branches[-1].op].inputs[branches[-1].operand]
        assert value is not None
        maker = graph.maker(value)
        factors = maker.inputs if maker is not None and maker.attrs.get("function") == "mul" else ()
        whole = [factor for factor in factors if factor is not None and factor.shape == value.shape]
        found.append(whole[0] if len(whole) == 1 else value)
    return tuple(found)


def _multiplied(graph: Graph, op: Op) -> Value | None:
    """What is made with weights that were picked."""
    user = graph.only_user(op.outputs[0])
    return user.outputs[0] if user is not None and user.kind in ("matmul", "einsum") else None


def _counted(graph: Graph, op: Op) -> Value | None:
    """The numbers that the ends of groups of rows are counted of."""
    value = op.inputs[2]
    while value is not None and (maker := graph.maker(value)) is not None:
        if maker.kind == "count":
            return maker.inputs[0]
        value = maker.inputs[0]
    return None


def _batched(op: Op) -> Iterator[Route]:
    """Weights that all have an axis of the result, and so does what they are multiplied with, or none of it does."""
    weights = [value for value in op.inputs if value is not None and value.constant]
    out = op.outputs[0]
    for axis, dim in enumerate(out.dims):
        if len(weights) == 1 and len(weights[0].dims) > 2 and any(find(own) is find(dim) for own in weights[0].dims):
            yield Route(dim, out, axis=axis)
