"""What nothing needs any more once branches of a graph are gone."""

from __future__ import annotations

from collections.abc import Container, Iterable

from .graph import Branch, Graph, Op, Value


def dead(graph: Graph, branches: Iterable[Branch], unwanted: Container[Value] = ()) -> dict[str, Op]:
    """The ops, by name, whose results nobody reads once each add of ``branches`` is its other operand; the adds
    themselves only where nobody reads those. ``unwanted``: outputs of the graph that are not to count."""
    left: dict[Value, int] = {}
    gone: dict[str, Op] = {}
    ops = {op.name: op for op in graph.ops}
    lost: list[Value] = []
    cut: set[tuple[str, Value]] = set()

    def drop(value: Value) -> None:
        if value not in left:
            left[value] = sum(op.inputs.count(value) for op in graph.users(value))
            left[value] += graph.is_output(value) and value not in unwanted
        left[value] -= 1
        if left[value] == 0:
            lost.append(value)

    def follow() -> None:
        while lost:
            op = graph.maker(lost.pop())
            if op is None or op.name in gone or any(_read(out, graph, left, unwanted) for out in op.outputs):
                continue
            gone[op.name] = op
            for operand in op.inputs:
                if operand is not None and (op.name, operand) not in cut:
                    drop(operand)

    for value in graph.outputs:
        if value in unwanted and not graph.users(value):
            left[value] = 0
            lost.append(value)
    for branch in branches:
        added = ops[branch.op].inputs[branch.operand]
        assert added is not None
        cut.add((branch.op, added))
        drop(added)
    follow()
    return gone


def _read(value: Value, graph: Graph, left: dict[Value, int], unwanted: Container[Value]) -> bool:
    """Whether anybody still reads a value."""
    if value in left:
        return left[value] > 0
    return bool(graph.users(value)) or (graph.is_output(value) and value not in unwanted)
