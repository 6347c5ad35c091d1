"""A network whose vocabulary was trimmed, by the numbers that tokens have among those that stay: what a class of the
transformers library with a smaller ``vocab_size`` computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..axes.dim import find
from ..coupling.vocabulary import roots
from ..errors import ModelError
from ..ir.graph import Graph, Op
from ..ir.program import Program
from ..pipeline.vocabulary import Vocabulary


def renumbered(program: Program, edit: Vocabulary) -> Program:
    """The program without what an edit of its plan put there: the table before its embedding, the constants behind its
    head. Its example has the other numbers, and its plan lacks that edit. Raises ModelError where numbers are computed
    of others before they are looked up."""
    host: Any = program.host.copy()  # of torch: only that has folders
    graph = program.graph
    given = host.example()
    values, tables = list(given), list(_tables(graph, edit))
    for table in tables:
        numbers = list(roots(graph, [table]))
        if not numbers:
            name = _name(table, 1)
            raise ModelError(f"`{name}` is computed of numbers of tokens: nothing says what it is by other numbers")
        new = edit.renumbered(len(host.parameter(_name(table, 0))))
        for number in numbers:
            values[number] = new[given[number]].astype(given[number].dtype)
    for table in tables:
        host.remove(table, 1)
    for op, places in list(_heads(graph)):
        wide, own = find(op.outputs[0].dims[-1]), {_name(op, 0), _name(op, 2), _name(places, 1)}
        for name, value in graph.parameters.items():
            for axis, dim in enumerate(value.dims):
                if name not in own and find(dim) is wide:  # what is added behind
                    host.take(name, axis, np.array(edit.keep, np.intp))
        host.remove(op, 1)
        host.remove(places, 0)
    host.shapes()
    host.resize(values)
    edits = tuple(one for one in program.plan.edits if one is not edit)
    return replace(program, host=host, facts={}, plan=replace(program.plan, edits=edits))


def _tables(graph: Graph, edit: Vocabulary) -> Iterator[Op]:
    for op in graph.ops:
        if op.kind == "gather" and _name(op, 0) == edit.embedding and op.inputs[1] is not None:
            maker = graph.maker(op.inputs[1])
            if maker is not None and _name(maker, 0) in graph.parameters:
                yield maker


def _heads(graph: Graph) -> Iterator[tuple[Op, Op]]:
    """What chooses among outputs of a head and constants, and what puts the outputs in their places."""
    for op in graph.ops:
        if op.kind == "pointwise" and len(op.inputs) == 3 and op.inputs[1] is not None:
            kept, maker = graph.parameters.get(_name(op, 0)), graph.maker(op.inputs[1])
            if kept is not None and kept.dtype == "bool" and maker is not None and maker.kind == "gather":
                yield op, maker


def _name(op: Op, operand: int) -> str:
    value = op.inputs[operand]
    return value.name if value is not None else ""
