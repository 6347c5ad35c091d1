"""Residual branches: what is added to the stream that it read, and could go.

A branch goes when its add becomes its other operand; what only the branch was for goes along. In the masked model
the last parameters that the whole of it is multiplied by are zero: its last layer with the bias, a norm's or a
layer's scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..axes.dim import Dim, leaves
from ..axes.index import coordinates
from ..ir.facts import Frozen, Group, Member
from ..ir.graph import Branch, Graph, Op, Value
from ..ir.host import Host
from ..ir.liveness import dead
from .maskable import silencers


@dataclass(frozen=True)
class Residual:
    """A branch that may go. ``axis``: of what it adds, the one that ``silent`` parameter axes make, which are zero
    in the masked model. ``other``: what it is added to."""

    name: str
    branch: Branch
    op: Op
    other: Value
    axis: int
    silent: Mapping[tuple[str, int], Dim]
    attends: bool  # it contracts activations with one another

    @property
    def value(self) -> Value:
        """What the branch adds."""
        value = self.op.inputs[self.branch.operand]
        assert value is not None
        return value

    @property
    def out(self) -> Value:
        """The stream behind it."""
        return self.op.outputs[0]


@dataclass(frozen=True)
class Gap:
    """Where branches went: ``before``, the sum or other value that can make up for them, and what is ``behind`` the
    last of them. Between the two no more is left than ReLUs, one of which is as good as several, and layer norms, in
    order, whose results only other norms read, which do not see their scale."""

    before: Value
    norms: tuple[Op, ...]
    behind: Value


def residuals(graph: Graph) -> tuple[tuple[Residual, ...], tuple[Frozen, ...]]:
    """Every residual branch in order of execution, and those that must stay, with the reason."""
    found: list[Residual] = []
    frozen: list[Frozen] = []
    behind = _Behind(graph)
    lanes = {branch.op for one in graph.lanes for own in one.ends.values() for branch in own}
    for op in graph.ops:
        if not adds(op) or op.name in lanes:
            continue
        mine, stay = [], []
        for operand in (0, 1):
            made = _branch(graph, op, operand, behind)
            if isinstance(made, Frozen):
                stay.append(made)
            elif made is not None:
                mine.append(made)
        mine.sort(key=lambda pair: -pair[1])
        for one, _ in mine[:1]:
            again = any(one.name == other.name for other in found)  # a layer that ends two branches
            found.append(replace(one, name=f"{one.name}@{op.name}") if again else one)
        frozen += [Frozen(one.name, 1, f"`{found[-1].name}` may go, which it is added to") for one, _ in mine[1:]]
        frozen += stay
    return tuple(found), tuple(frozen)


def silence(graph: Graph, host: Host, branches: Iterable[Branch]) -> None:
    """Zero in ``host`` what makes each branch zero. Nothing else reads that: see ``residuals``."""
    for branch in branches:
        for (name, axis), dim in silent(graph, branch).items():
            host.zero(name, axis, places(graph.parameters[name].dims[axis], dim))


def silent(graph: Graph, branch: Branch) -> Mapping[tuple[str, int], Dim]:
    """What is zeroed for a branch, see Residual; nothing where that is no branch that may go."""
    op = next((op for op in graph.ops if op.name == branch.op), None)
    value = op.inputs[branch.operand] if op is not None and adds(op) else None
    if value is None:
        return {}
    gone, found = dead(graph, [branch]), silencers(graph, value)[1]
    return found if all(_only_for(graph, graph.parameters[name], gone) for name, _ in found) else {}


def places(axis: Dim, dim: Dim) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """The positions of ``axis`` that a leaf of ``dim`` has part in."""
    at = np.stack([coordinates(axis, leaf) for leaf in leaves(dim)])
    return np.flatnonzero((at >= 0).any(0))


def streams(found: Iterable[Residual], graph: Graph) -> list[list[Residual]]:
    """The branches in runs that follow one another: between two lies nothing but what keeps the stream's shape."""
    runs: list[list[Residual]] = []
    ends: dict[str, list[Residual]] = {}
    for one in found:
        value = one.other
        while value.name not in ends and (before := _passed(value, graph)) is not None:
            value = before
        run = ends.pop(value.name, None)
        if run is None:
            run = []
            runs.append(run)
        run.append(one)
        ends[one.out.name] = run
    return runs


def blocks(run: Iterable[Residual]) -> list[list[Residual]]:
    """A run in parts: one begins with a branch that attends and lasts until the next such one; where none attends,
    every branch is a block."""
    made: list[list[Residual]] = []
    for one in run:
        if one.attends or not made or not made[-1][0].attends:
            made.append([])
        made[-1].append(one)
    return made


def gate(graph: Graph, parts: Iterable[Residual]) -> Group:
    """Branches as one group of size one."""
    parts = list(parts)
    name = parts[0].name if len(parts) == 1 else f"{parts[0].name}..{parts[-1].name.removeprefix('branch:')}"
    silent = dict.fromkeys(at for part in parts for at in part.silent)
    members = tuple(Member(p, axis, "reader", graph.parameters[p].dims[axis]) for p, axis in silent)
    return Group(name, Dim(1), 1, members, tuple(part.branch for part in parts))


def gaps(graph: Graph, branches: Iterable[Branch]) -> list[Gap]:
    """What ``branches`` leave open when they go, those that follow one another as one, in order of execution."""
    branches, place = list(branches), {op.name: k for k, op in enumerate(graph.ops)}
    inner, found = dead(graph, branches), dict[str, Gap]()
    begun: dict[str, Gap] = {}  # by what they end in so far
    for branch in sorted(branches, key=lambda branch: place[branch.op]):
        if branch.op in inner:  # part of another that goes
            continue
        op = graph.ops[place[branch.op]]
        before, norms = _ahead(op, branch, graph)
        run = begun.get(before.name, Gap(before, (), op.outputs[0]))
        run = Gap(run.before, (*run.norms, *norms), op.outputs[0])
        begun[run.behind.name] = found[run.before.name] = run
    return list(found.values())


def _ahead(op: Op, branch: Branch, graph: Graph) -> tuple[Value, tuple[Op, ...]]:
    """What a branch is added to, before ReLUs, and before layer norms where a norm alone reads the stream behind it."""
    value, norms = op.inputs[1 - branch.operand], list[Op]()
    assert value is not None
    reader = graph.only_user(op.outputs[0])
    while (maker := graph.maker(value)) is not None and maker.inputs[0] is not None:
        normed = reader is not None and reader.kind == "layer_norm" and _plain_norm(maker, graph)
        if not normed and maker.attrs.get("function") != "relu":
            break
        norms[:0] = [maker] if normed else []
        value = maker.inputs[0]
    return value, tuple(norms)


def _plain_norm(op: Op, graph: Graph) -> bool:
    """A layer norm of the last axis, whose weights are parameters."""
    plain = all(value is None or value.name in graph.parameters for value in op.inputs[1:3])
    return op.kind == "layer_norm" and op.attrs["trailing"] == 1 and plain


def adds(op: Op) -> bool:
    """Whether an op is the sum of two activations of one shape."""
    if op.attrs.get("function") != "add" or len(op.inputs) != 2:
        return False
    first, second = op.inputs
    return (
        first is not None
        and second is not None
        and first is not second
        and not first.constant
        and not second.constant
        and bool(first.shape)
        and first.shape == second.shape
    )


def _branch(graph: Graph, op: Op, operand: int, behind: _Behind) -> tuple[Residual, int] | Frozen | None:
    """With the number of ops that go along; None where it is no branch: nothing with parameters is for it alone, or
    it does not come from what it is added to."""
    branch, value, other = Branch(op.name, operand), op.inputs[operand], op.inputs[1 - operand]
    assert value is not None and other is not None
    gone = dead(graph, [branch])
    kept, keeper = _kept_by_output(graph, op, branch, gone, behind)
    weighted = [one for one in (*gone.values(), *kept.values()) if _weights(one)]
    if not weighted or not behind.common(value, other):
        return None
    axis, silent = silencers(graph, value)
    name = f"branch:{_base(graph, silent, weighted)}"
    if keeper is not None:
        return Frozen(name, 1, f"part of it leaves the graph as `{keeper.name}`, which would go along")
    if not silent:
        return Frozen(name, 1, "no parameter multiplies the whole of it, so there is no masked model to compare with")
    if shared := next((p for p, _ in sorted(silent) if not _only_for(graph, graph.parameters[p], gone)), None):
        return Frozen(name, 1, f"`{shared}`, the last that it is multiplied by, is used elsewhere too")
    return Residual(name, branch, op, other, axis, silent, any(attends(one, graph) for one in gone.values())), len(gone)


def _kept_by_output(
    graph: Graph, op: Op, branch: Branch, gone: Mapping[str, Op], behind: _Behind
) -> tuple[dict[str, Op], Value | None]:
    """The ops that would go too if it were not for an output of the graph that does not come from the add, and
    that output: the keys and values of a cache."""
    aside = [value for value in graph.outputs if not behind.reads(value, op.outputs[0])]
    if not aside:
        return {}, None
    free, more = dead(graph, (), aside), dead(graph, [branch], aside)
    kept = {name: one for name, one in more.items() if name not in free and name not in gone}
    keeper = (v for v in aside if any(behind.reads(v, out) for one in kept.values() for out in one.outputs))
    return kept, next(keeper, None)


def _base(graph: Graph, silent: Mapping[tuple[str, int], Dim], weighted: Iterable[Op]) -> str:
    """What a branch is called by: the last layer of it."""
    if silent:  # exporters rename matrices more often than biases
        named = max(silent, key=lambda at: ("." in at[0], len(graph.parameters[at[0]].dims), at))[0]
        return named.removesuffix(".weight").removesuffix(".bias")
    return max((one.origin or one.name for one in weighted), key=len)


def _weights(op: Op) -> bool:
    operands = [value for value in op.inputs if value is not None]
    return any(value.constant and any(dim.size != 1 for dim in value.dims) for value in operands)


def _only_for(graph: Graph, value: Value, gone: Mapping[str, Op]) -> bool:
    """Whether all that reads a constant, or what is computed from it, is ``gone``."""
    return all(
        user.name in gone or all(out.constant and _only_for(graph, out, gone) for out in user.outputs)
        for user in graph.users(value)
    ) and not graph.is_output(value)


def attends(op: Op, graph: Graph) -> bool:
    """Whether it contracts activations with one another. Weights of experts that were picked by number are none."""
    varying = [value for value in op.inputs if value is not None and not value.constant and not _picked(value, graph)]
    return "attention" in op.kind or (op.kind in ("matmul", "einsum", "fused_matmul") and len(varying) > 1)


def _picked(value: Value, graph: Graph) -> bool:
    maker = graph.maker(value)
    table = maker.inputs[0] if maker is not None and maker.kind in ("index", "gather") else None
    return table is not None and table.constant and maker is not None and bool(graph.relations[maker.name].picks)


def _passed(value: Value, graph: Graph) -> Value | None:
    """What a value was before an op that reads nothing else and keeps its shape."""
    op = graph.maker(value)
    varying = [v for v in op.inputs if v is not None and not v.constant] if op is not None else []
    return varying[0] if len(varying) == 1 and varying[0].shape == value.shape else None


class _Behind:
    """What every value is computed from, as sets of bits: one a floating-point value."""

    def __init__(self, graph: Graph) -> None:
        self._own: dict[Value, int] = {}
        self._all: dict[Value, int] = {}
        for value in graph.inputs:
            self._enter(value, 0)
        for op in graph.ops:
            before = 0
            for operand in op.inputs:
                before |= self._all.get(operand, 0) if operand is not None else 0
            for out in op.outputs:
                self._enter(out, before)

    def _enter(self, value: Value, before: int) -> None:
        if not value.constant:
            self._own[value] = 1 << len(self._own) if "float" in value.dtype else 0
            self._all[value] = before | self._own[value]

    def common(self, a: Value, b: Value) -> bool:
        """Whether two values come from one."""
        return bool(self._all.get(a, 0) & self._all.get(b, 0))

    def reads(self, value: Value, source: Value) -> bool:
        """Whether ``value`` comes from ``source``."""
        return bool(self._all.get(value, 0) & self._own.get(source, 0))
