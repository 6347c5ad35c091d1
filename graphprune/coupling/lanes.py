"""Axes whose positions have ops of their own, such as experts that are modules of a list.

Some ops take single positions of such an axis (``share[:, 2]``, ``chosen == 2``), others join single positions to one
(a stack). A position that is masked has a share of zero, or no rows: so is all that is made of it, up to where that is
added to what others make. There it is left out, with all that only it is for.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from ..axes.dim import LEAF, Dim, find
from ..axes.index import Index
from ..ir.graph import Branch, Graph, Lanes, Op, Value
from ..ir.host import Host
from ..ir.liveness import dead
from ..ops.traits import traits
from ..ops.wording import axes_of, rank_of, shape_of
from .maskable import never

JOINS = ("stack", "concat")
_PUTS = ("index_put", "put_along", "scatter")
_PRODUCTS = ("matmul", "einsum")


@dataclass(frozen=True)
class Lane:
    """An op that takes single positions of an axis, one an output, or joins them, one an operand. ``rule``: what it
    does to axes, that axis being `e`. ``axis``: of what it takes or makes; None where it compares numbers of
    positions."""

    at: tuple[int, ...]
    rule: str
    axis: int | None = None

    def dim(self, op: Op) -> Dim | None:
        """The axis, before the op is related."""
        value = op.outputs[0] if op.kind in JOINS else op.inputs[0]
        assert value is not None
        return value.picks if self.axis is None else value.dims[self.axis]


def candidates(graph: Graph) -> dict[str, Lane]:
    """By name, the ops that take or join single positions of axes that something may choose of, several of each."""
    sizes = {shape_of(op.inputs[0])[axis] for op in graph.ops if (axis := _chosen_axis(op)) is not None}
    found: dict[object, dict[str, Lane]] = defaultdict(dict)
    for op in graph.ops if sizes else ():
        x = op.inputs[0] if op.inputs else None
        if x is None or x.constant or x.shape is None or any(out.shape is None for out in op.outputs):
            continue
        if op.kind in JOINS:
            axis = op.attrs["axis"] % max(rank_of(op.outputs[0]), 1)
            one = op.kind == "stack" or all(shape_of(value)[axis] == 1 for value in op.inputs)
            if one and len(op.inputs) > 1 and len(op.inputs) in sizes:
                found[op.name][op.name] = Lane(tuple(range(len(op.inputs))), _joins(op, axis), axis)
        elif (number := op.attrs.get("equals")) is not None and "int" in x.dtype:
            names = axes_of(rank_of(x), {})
            found[_source(graph, x)][op.name] = Lane((number,), f"{names} @e -> {names}")
        elif (taken := _taken(op)) is not None and shape_of(x)[taken[0]] in sizes:
            found[_source(graph, x), taken[0]][op.name] = Lane(taken[1], _takes(op, taken[0]), taken[0])
    several = (own for own in found.values() if len({place for lane in own.values() for place in lane.at}) > 1)
    return {name: lane for own in several for name, lane in own.items()}


def _source(graph: Graph, value: Value) -> Value:
    """What a value is, or is all of."""
    maker = graph.maker(value)
    while maker is not None and maker.kind == "slice" and maker.inputs[0].shape == value.shape:  # type: ignore[union-attr]
        value = maker.inputs[0]  # type: ignore[assignment]
        maker = graph.maker(value)
    return value


def _chosen_axis(op: Op) -> int | None:
    """Along which an op weighs positions against one another, if it does."""
    if not op.inputs or op.inputs[0] is None or not op.inputs[0].shape:
        return None
    if op.kind == "topk":
        return int(op.attrs["axis"])
    return int(op.attrs["axes"][0]) if op.attrs.get("function") == "softmax" and op.attrs.get("axes") else None


def _taken(op: Op) -> tuple[int, tuple[int, ...]] | None:
    """Along which axis an op takes single positions, and which, one an output."""
    shape = shape_of(op.inputs[0])
    if op.kind in ("select", "unbind", "split"):
        axis = op.attrs["axis"] % max(len(shape), 1)
        size = shape[axis]
        if not isinstance(size, int):
            return None
        if op.kind == "select":
            index = op.attrs["index"]
            return (axis, (index % size,)) if isinstance(index, int) else None
        one = len(op.outputs) == size and (op.kind == "unbind" or all(shape_of(v)[axis] == 1 for v in op.outputs))
        return (axis, tuple(range(size))) if one else None
    if op.kind == "slice" and len(op.attrs["axes"]) == 1:
        axis, start = op.attrs["axes"][0] % len(shape), op.attrs["starts"][0]
        size = shape[axis]
        one = isinstance(size, int) and isinstance(start, int) and shape_of(op.outputs[0])[axis] == 1
        return (axis, (start % size,)) if one else None
    return None


def _takes(op: Op, axis: int) -> str:
    rank, left = rank_of(op.inputs[0]), rank_of(op.outputs[0])
    names = axes_of(rank, {axis: "e"})
    made = axes_of(rank, {axis: "1" if left == rank else ""})
    return f"{names} -> {', '.join([made] * len(op.outputs))}"


def _joins(op: Op, axis: int) -> str:
    rank = rank_of(op.outputs[0])
    one = axes_of(rank, {axis: "" if op.kind == "stack" else "1"})
    return f"{', '.join([one] * len(op.inputs))} -> {axes_of(rank, {axis: 'e'})}"


def settle(graph: Graph, own: Mapping[str, Lane]) -> dict[str, str]:
    """Enter into ``graph`` the axes whose positions may go; the other ops of ``own``, and why, or nothing where that
    goes without saying."""
    ops = {op.name: op for op in graph.ops}
    together: dict[int, list[str]] = defaultdict(list)
    for name in own:
        together[id(find(graph.relations[name].dims["e"]))].append(name)
    unfit: dict[str, str] = {}
    for names in together.values():
        why = _enter(graph, {name: own[name] for name in names}, ops)
        unfit |= dict.fromkeys(names, why) if why is not None else {}
    return unfit


def _enter(graph: Graph, own: Mapping[str, Lane], ops: Mapping[str, Op]) -> str | None:
    dim = find(graph.relations[next(iter(own))].dims["e"])
    size = dim.size
    if dim.kind != LEAF or not isinstance(size, int) or dim.frozen or dim not in graph.weighed:
        return ""
    if any(place not in range(size) for lane in own.values() for place in lane.at):
        return ""
    takes = {name: lane.at for name, lane in own.items() if ops[name].kind not in JOINS}
    joins = {name: lane.at for name, lane in own.items() if ops[name].kind in JOINS}
    for name in takes:
        x = ops[name].inputs[0]
        if x is None or not (x.picks is not None or never(graph, x, dim)):
            return f"{ops[name].where} takes of it what is not zero where it is masked"
    lanes = Lanes(dim, takes, joins)
    try:
        each = {place: ends(graph, lanes, {place}) for place in range(size)}
        for place in range(size) if size > 2 else ():
            ends(graph, lanes, {*range(size)} - {place})
    except _Kept as kept:
        return kept.reason
    graph.lanes.append(Lanes(dim, takes, joins, each))
    return None


class _Kept(Exception):
    """What is made of one position is more than added to what others make."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def ends(graph: Graph, lanes: Lanes, gone: Set[int]) -> tuple[Branch, ...]:
    """What of positions that go is added to what others make, or joined with it."""
    place = {op.name: k for k, op in enumerate(graph.ops)}
    nothing: dict[Value, str] = {}  # zero: with no name; of no rows: what their number is called
    todo: list[int] = []

    def learn(values: Iterable[Value], what: str) -> None:
        for value in values:
            nothing[value] = what
            if graph.is_output(value):
                raise _Kept(f"`{value.name}`, which is made for one of it, leaves the graph")
            for user in graph.users(value):
                heapq.heappush(todo, place[user.name])

    for name, at in lanes.takes.items():
        op = graph.ops[place[name]]
        learn((out for out, one in zip(op.outputs, at, strict=False) if one in gone), "")
    found: list[Branch] = [
        Branch(name, k) for name, at in lanes.joins.items() for k, one in enumerate(at) if one in gone
    ]
    done = -1
    while todo:
        number = heapq.heappop(todo)
        if number == done:
            continue
        done, op = number, graph.ops[number]
        if op.name in lanes.joins:
            if any(v in nothing and one not in gone for v, one in zip(op.inputs, lanes.joins[op.name], strict=True)):
                raise _Kept(f"{op.where} joins in another order")
            continue
        what = _nothing(op, nothing)
        if what is not None:
            learn(op.outputs, what)
        elif (operand := _added(op, nothing)) is not None:
            found.append(Branch(op.name, operand))
        else:
            raise _Kept(f"{op.where} makes more of one of it than a sum")
    return tuple(found)


def _nothing(op: Op, nothing: Mapping[Value, str]) -> str | None:
    """What an op makes of operands some of which are zero (``""``) or have no rows (the name of their number); None
    where that is something."""
    at = [k for k, value in enumerate(op.inputs) if value in nothing]
    rows = {what for value in op.inputs if value is not None and (what := nothing.get(value))}
    if rows:
        short = next(iter(rows))
        return short if all(_without_rows(out, short) for out in op.outputs) else None
    if op.kind == "nonzero":
        return str(shape_of(op.outputs[0])[0])
    every = all(value is None or value in nothing for value in op.inputs)
    match traits(op).zeros:
        case "declared":
            zero = op.attrs.get("zero")
            unchanged = op.attrs.get("function") == "add" and op.attrs.get("plus") == 0
            holds = zero == "any" or (zero == "first" and 0 in at) or (zero == "both" and every) or unchanged
        case "moved":
            holds = every
        case "first":
            holds = 0 in at
        case "written":
            biased = op.kind == "linear" and op.inputs[2] is not None
            holds = (op.kind in _PRODUCTS and len(op.inputs) == 2) or (op.kind == "linear" and at == [0] and not biased)
        case _:
            holds = False
    return "" if holds else None


def _without_rows(value: Value, number: str) -> bool:
    return any(number in str(size).split("*") for size in value.shape or ())


def _added(op: Op, nothing: Mapping[Value, str]) -> int | None:
    """The operand that an op adds to the other, or puts rows of in their places, where that is nothing."""
    at = [k for k, value in enumerate(op.inputs) if value in nothing]
    if op.kind in _PUTS:
        rows = all(nothing.get(value, "rows") for value in op.inputs if value is not None)
        if not rows or 0 in at:
            return None
        return 1 if op.kind == "index_put" and 1 in at else at[-1]  # what is put, not where
    if op.attrs.get("function") != "add" or len(op.inputs) != 2 or len(at) != 1:
        return None
    stays = op.inputs[1 - at[0]]
    alike = stays is not None and stays.shape == op.outputs[0].shape and stays.dtype == op.outputs[0].dtype
    return at[0] if alike else None


def shared(graph: Graph) -> Iterator[tuple[Lanes, frozenset[str]]]:
    """For every position of such axes, the names of the ops that only it is for."""
    for lanes in graph.lanes:
        for branches in lanes.ends.values():
            yield lanes, frozenset(dead(graph, branches))


def thin(graph: Graph, host: Host, index: Index) -> None:
    """Leave out of ``host`` what positions that are not kept are for, and give the others the numbers they now have."""
    ops = {op.name: op for op in graph.ops}
    for lanes in graph.lanes:
        if not index.touches(lanes.dim):
            continue
        kept = index(lanes.dim).tolist()
        gone = {*range(int(lanes.dim.size))} - {*kept}
        branches = ends(graph, lanes, gone) if gone else ()
        unread = dead(graph, branches)
        for branch in branches:
            if branch.op not in unread and branch.op not in lanes.joins:
                op = ops[branch.op]
                host.remove(op, 0 if op.kind in _PUTS else 1 - branch.operand)
        for name, at in lanes.joins.items():
            host.join(ops[name], [at.index(one) for one in kept])
        now = {one: k for k, one in enumerate(kept)}
        for name, at in lanes.takes.items():
            if any(one in now for one in at):
                host.take_single(ops[name], [now.get(one, -1) for one in at])
