"""Readers with channels of their own: where they may differ, and what each then takes of what it is given.

A ``reindex`` op before a reader makes the axis that it reads an axis of its own. So an unconstrained
network is a constrained one with some ops more, and everything else (groups, scores, slicing, the
masked model) is the same. Each such op becomes nothing, a slice, or a gather.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..axes.dim import Dim, find
from ..axes.index import Index, Indices, shares
from ..errors import ShapeError
from ..ir.facts import Order
from ..ir.graph import Graph, Op, Piece, Value


def ends(op: Op) -> tuple[Dim, Dim]:
    """The axis before and after a ``reindex`` op."""
    axis, source = op.attrs["axis"], op.inputs[0]
    assert source is not None
    return source.dims[axis], op.outputs[0].dims[axis]


def reindexes(graph: Graph) -> Iterator[Op]:
    return (op for op in graph.ops if op.kind == "reindex")


def positions(dim: Dim, leaf: Dim, at: Indices) -> Indices:
    """Where along ``dim`` the positions ``at`` of one of its leaves are."""
    where, which = shares(dim)[find(leaf)]
    found: Indices = np.sort(where[np.isin(which, at)])
    return found


def selections(graph: Graph, index: Index, order: Order) -> Iterator[tuple[Op, list[Piece]]]:
    """For every ``reindex`` op what it puts together, when ``index`` says what is left of each axis.

    Raises ShapeError where a reader keeps what its producers do not.
    """
    for op in reindexes(graph):
        before, after = ends(op)
        at = located(index(before), index(after))
        if not op.attrs["fills"] and len(at) and at.min() < 0:
            lost = index(after)[at < 0]
            raise ShapeError(f"{op.where} takes channel {lost[0]}, which nothing before it keeps")
        if op.name in order.sinks:
            yield op, _sunk(op, at, index, graph, order.sinks[op.name])
        else:
            yield op, [Piece(op, 0, at, len(index(before)))]


def located(have: Indices, want: Indices) -> Indices:
    """Where each of ``want`` is in ``have``, -1 where it is not. Of a channel that is there twice, the one
    that makes a run of them, if there is one."""
    if len(np.unique(have)) == len(have):
        order = np.argsort(have)
        at = np.minimum(np.searchsorted(have, want, sorter=order), len(have) - 1)
        return np.where(have[order[at]] == want, order[at], -1)
    for start in np.flatnonzero(have[: len(have) - len(want) + 1] == want[0]) if len(want) else ():
        if np.array_equal(have[start : start + len(want)], want):
            return np.arange(start, start + len(want))
    first = {int(channel): k for k, channel in reversed(list(enumerate(have)))}
    return np.array([first.get(int(channel), -1) for channel in want], dtype=np.intp)


def is_run(at: Indices) -> bool:
    return len(at) > 0 and at[0] >= 0 and bool((np.diff(at) == 1).all())


def runs(at: Indices) -> list[Indices]:
    """Cut into runs of neighbours."""
    return np.split(at, np.flatnonzero(np.diff(at) != 1) + 1)


def sources(value: Value | None, axis: int, graph: Graph) -> list[tuple[Op, int]]:
    """The operands, through concatenations of concatenations, that a value is put together of along
    ``axis``; none where it is not."""
    maker = graph.maker(value) if value is not None else None
    if value is None or maker is None or maker.kind != "concat" or maker.attrs["axis"] % len(value.dims) != axis:
        return []
    found = []
    for k, operand in enumerate(maker.inputs):
        found += sources(operand, axis, graph) or [(maker, k)]
    return found


def _sunk(op: Op, at: Indices, index: Index, graph: Graph, most: int) -> list[Piece]:
    """The selection as pieces of what the concatenation before it is made of."""
    axis, pieces, start = op.attrs["axis"], list[Piece](), 0
    for maker, operand in sources(op.inputs[0], axis, graph):
        value = maker.inputs[operand]
        assert value is not None
        size = len(index(value.dims[axis]))
        mine = at[(at >= start) & (at < start + size)] - start
        for part in _parts(mine, most):
            pieces.append(Piece(maker, operand, part, size))
        start += size
    return pieces


def _parts(at: Indices, most: int) -> Sequence[Indices]:
    if not len(at):
        return []
    cut = runs(at)
    return cut if len(cut) <= most else [at]
