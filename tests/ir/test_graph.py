"""Who makes and who reads a value."""

from __future__ import annotations

import pytest

from graphprune.ir import Graph, Op, Value


def op(name: str, *inputs: Value | None) -> Op:
    return Op(name, "pointwise", inputs, (Value(name, (2,)),))


@pytest.fixture
def graph() -> Graph:
    """x -> a -> b(a, a) -> c(a, b), with a weight that nobody reads; b leaves the graph."""
    x, w = Value("x", (2,)), Value("w", (2,), constant=True)
    a = op("a", x, None)
    b = op("b", a.outputs[0], a.outputs[0])
    c = op("c", a.outputs[0], b.outputs[0])
    return Graph([a, b, c], [x], [b.outputs[0]], {"w": w})


def test_makers_and_users(graph: Graph) -> None:
    a, b, c = graph.ops
    x, w = graph.inputs[0], graph.parameters["w"]
    assert [graph.maker(value) for value in (x, w, a.outputs[0], c.outputs[0])] == [None, None, a, c]
    assert graph.users(x) == (a,)
    assert graph.users(a.outputs[0]) == (b, c)  # in order, each once, however often it reads
    assert graph.users(w) == graph.users(c.outputs[0]) == ()


def test_only_user_is_one_place_in_the_graph(graph: Graph) -> None:
    a, b, c = graph.ops
    assert graph.only_user(graph.inputs[0]) is a
    assert graph.only_user(a.outputs[0]) is None  # two ops
    assert graph.only_user(b.outputs[0]) is None  # one op, and whoever reads the output
    assert [graph.is_output(made.outputs[0]) for made in graph.ops] == [False, True, False]
    twice = op("twice", c.outputs[0], c.outputs[0])
    graph.ops.append(twice)
    assert graph.users(c.outputs[0]) == (twice,)
    assert graph.only_user(c.outputs[0]) is None  # two places of one op


def test_ops_appended_while_a_graph_is_built_are_seen(graph: Graph) -> None:
    last = graph.ops[-1].outputs[0]
    assert graph.users(last) == ()
    more = op("more", last)
    graph.ops.append(more)
    assert graph.users(last) == (more,)
    assert graph.maker(more.outputs[0]) is more
