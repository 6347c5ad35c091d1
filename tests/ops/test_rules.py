"""The notation, views from shapes alone, and the table of rules."""

from __future__ import annotations

import re
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.axes.dim import PRODUCT, SUM, find, leaves
from graphprune.axes.index import Index
from graphprune.axes.notation import Axis, Compound, fit, parse
from graphprune.axes.reshape import monomial, regroup
from graphprune.coupling.relate import literals, relate, role
from graphprune.errors import GraphpruneError, ShapeError
from graphprune.ir.graph import Graph, Op, Value
from graphprune.ops.rules import RULES, rule, table

# ---- notation ----------------------------------------------------------------------------------------


def test_a_rule_is_read():
    pattern = parse("n (g:2 i) ~, (a + b:3), x^ -> n (g i) ... | groups=g sizes=a,b")
    x, sums, mixed = pattern.inputs
    assert x == (Axis("n"), Compound(PRODUCT, (Axis("g", 2), Axis("i"))), Axis("~"))
    assert sums == (Compound(SUM, (Axis("a"), Axis("b", 3))),)
    assert mixed == (Axis("x", mixed=True),)
    assert pattern.outputs == ((Axis("n"), Compound(PRODUCT, (Axis("g"), Axis("i"))), Axis("...")),)
    assert pattern.literals == {"groups": "g", "sizes": "a,b"}


def test_empty_rules():
    assert parse("").inputs == parse("").outputs == ()
    assert parse("-> _").inputs == ()
    assert parse("a -> ").outputs == ((),)  # a scalar


@pytest.mark.parametrize("text", ["a b", "a ; b -> c", "a:-1 -> a", "(a * b) -> a", "a b -> c!"])
def test_what_is_not_the_notation_is_an_error(text):
    with pytest.raises(ShapeError, match="rule `" + re.escape(text)):
        parse(text)


@pytest.mark.parametrize("text", ["(a b -> c", "a b) -> c", "(a + b c) -> a"])
def test_unbalanced_or_mixed_brackets_are_an_error(text):
    with pytest.raises(ShapeError, match="rule `" + re.escape(text)):
        parse(text)


def test_wildcards_fit_the_rank():
    assert fit(parse("n c ~ -> n").inputs[0], 4, "") == (Axis("n"), Axis("c"), Axis("_"), Axis("_"))
    assert fit(parse("... c -> c").inputs[0], 3, "") == (Axis("...2"), Axis("...1"), Axis("c"))
    assert fit(parse("... c -> c").inputs[0], 1, "") == (Axis("c"),)
    for text, rank in [("n c -> n", 3), ("n c ~ -> n", 1), ("... ... -> n", 2)]:
        with pytest.raises(ShapeError, match=f"to a tensor of rank {rank}"):
            fit(parse(text).inputs[0], rank, text)


# ---- views -------------------------------------------------------------------------------------------


def reshaped(before, after):
    """The reshape of a tensor of shape ``before``, related."""
    x = Value("x", tuple(before))
    w = Value("w", tuple(before), constant=True)
    added = Value("added", tuple(before))
    y = Value("y", tuple(after))
    ops = [Op("view", "reshape", (added,), (y,)), Op("add", "pointwise", (x, w), (added,)), made(x)]
    graph = Graph(ops, [], [], {"w": w})
    relate(graph)
    return graph, w, y


@st.composite
def shapes(draw):
    """Two shapes of one volume."""
    primes = draw(st.lists(st.sampled_from([2, 2, 3, 5]), max_size=4))

    def cut():
        order = draw(st.permutations(primes))
        sizes = [1]
        for prime in order:
            sizes = [*sizes, prime] if draw(st.booleans()) else [*sizes[:-1], sizes[-1] * prime]
        ones = draw(st.lists(st.integers(0, len(sizes)), max_size=2))
        for at in ones:
            sizes.insert(at, 1)
        return tuple(sizes)

    return cut(), cut()


@given(shapes(), st.data())
def test_a_view_is_what_numpy_does_to_labels(pair, data):
    """Cut any free leaf: taking from the reshaped array is reshaping what was taken before."""
    before, after = pair
    graph, w, y = reshaped(before, after)
    labels = np.arange(prod(before)).reshape(before)
    free = [leaf for dim in (*w.dims, *y.dims) for leaf in leaves(dim) if leaf.frozen is None]
    keep = {}
    for leaf in dict.fromkeys(free):
        order = data.draw(st.permutations(range(leaf.size)))
        keep[leaf] = np.array(order[: data.draw(st.integers(1, leaf.size))])
    index = Index(keep)
    cut = labels[np.ix_(*map(index, w.dims))]
    want = labels.reshape(after)[np.ix_(*map(index, y.dims))]
    np.testing.assert_array_equal(cut.reshape(want.shape), want)
    op = graph.ops[0]
    patched = literals(op, graph.relations["view"], index)
    assert patched.get("shape", list(after)) == list(want.shape)


@given(shapes())
def test_a_view_that_only_splits_or_only_merges_freezes_nothing(pair):
    before, _ = pair
    for first, second in ((before, (prod(before),)), ((prod(before),), before)):
        _, w, y = reshaped(first, second)
        assert not any(leaf.frozen for dim in (*w.dims, *y.dims) for leaf in leaves(dim) if leaf.size != 1)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ((2, 12), (2, 3, 4), "a0 (a1:3 a2:4) -> a0 a1 a2"),
        ((2, 3, 4), (2, 12), "a0 a1 a2 -> a0 (a1:3 a2:4)"),
        ((6, 4), (6, 4), "a0 a1 -> a0 a1"),
        ((1, 6), (6, 1), "1 a0 -> a0 1"),
        ((2, 3), (3, 2), "_ _ -> _ _"),
        (("s0", 6), ("s0", 2, 3), "a0 (a1:2 a2:3) -> a0 a1 a2"),
        (("s0", 6), ("6*s0",), "a0 a1 -> (a0:s0 a1:6)"),
        ((4, "s0", 3), ("4*s0", 3), "a0 a1 a2 -> (a0:4 a1:s0) a2"),
        (("s0//2", 6), ("s0//2", 6), "a0 a1 -> a0 a1"),
        (("s0", 6, 5), ("s0//2", "s0//(s0//2)", 2, 3, 5), "_ (a0:2 a1:3) a2 -> _ _ a0 a1 a2"),
        (("s0//2", "s0//(s0//2)", 6), ("s0", 6), "_ _ a0 -> _ a0"),
        (("s0", 6, 1), ("n", 4, "m", 2), "_ _ _ -> _ _ _ _"),
        ((), (), " -> "),
    ],
)
def test_regroup(before, after, text):
    assert re.sub(r":\w+", "", regroup(before, after)) == re.sub(r":\w+", "", text)


def test_monomials():
    assert monomial((2, "s0", "3*s1*s0")) == (6, ("s0", "s0", "s1"))
    assert monomial(()) == (1, ())
    assert monomial(("s0+1", 2)) == (2, ("s0+1",))


# ---- the table ---------------------------------------------------------------------------------------


def one(kind, inputs, outputs, **attrs):
    """One op, related: shapes of activations, and of weights in brackets."""
    values, parameters = [], {}
    for k, shape in enumerate(inputs):
        if isinstance(shape, list):
            parameters[f"w{k}"] = Value(f"w{k}", tuple(shape), constant=True)
        values.append(None if shape is None else parameters.get(f"w{k}") or Value(f"x{k}", tuple(shape)))
    outs = tuple(Value(f"y{k}", tuple(shape)) for k, shape in enumerate(outputs))
    makers = [made(value) for value in values if value is not None and not value.constant]
    graph = Graph([Op("op", kind, tuple(values), outs, attrs, "net.layer"), *makers], [], [], parameters)
    relate(graph)
    return graph


def made(value):
    """An op that makes an activation without freezing it, as a graph input would be."""
    return Op(value.name, "pointwise", (), (value,))


def roles(graph):
    op = graph.ops[0]
    relation = graph.relations["op"]
    return {name: role(op, relation, name) for name in relation.dims}


def test_every_rule_of_the_table_that_is_text_parses():
    for kind, text in RULES.items():
        if isinstance(text, str):
            parse(text)
        else:
            assert text.__doc__, kind


def test_roles():
    assert roles(one("linear", [(2, 3), [4, 3], [4]], [(2, 4)])) == {"...1": None, "i": "reader", "o": "writer"}
    bn = roles(one("batch_norm", [(2, 3, 5), [3], [3], [3], [3]], [(2, 3, 5)], eps=1e-5))
    assert bn["c"] == "carrier"
    dense = roles(one("conv", [(2, 6, 5), [4, 6, 3], None], [(2, 4, 3)], groups=1))
    assert (dense["i"], dense["o"]) == ("reader", "writer")
    depthwise = roles(one("conv", [(2, 6, 5), [6, 1, 3], None], [(2, 6, 3)], groups=6))
    assert depthwise["g"] == "carrier"
    weights = roles(one("matmul", [[3, 4], [4, 5]], [(3, 5)]))
    assert set(weights.values()) == {None}


def test_attention_between_activations_freezes_what_it_contracts():
    graph = one("attention", [(2, 4, 5, 6), (2, 4, 7, 6), (2, 4, 7, 3), None], [(2, 4, 5, 3)])
    q, k, v, _ = graph.ops[0].inputs
    assert "contracts it between activations" in q.dims[3].frozen
    assert find(q.dims[1]) is find(v.dims[1]) and q.dims[1].frozen is None
    assert v.dims[3].frozen is None
    assert find(k.dims[3]) is find(q.dims[3])


def test_grouped_query_heads_are_a_product():
    graph = one("attention", [(2, 6, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4), (5, 5)], [(2, 6, 5, 4)])
    q, k, _, mask = graph.ops[0].inputs
    heads = list(leaves(q.dims[1]))
    assert [leaf.size for leaf in heads] == [2, 3]
    assert heads[0] is find(k.dims[1])
    assert find(mask.dims[0]) is find(q.dims[2])


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "attrs", "numbers"),
    [
        ("linear", [(2, 3), [4, 5], None], [(2, 4)], {}, "3 and 5"),
        ("conv", [(2, 6, 8), [4, 5, 3], None], [(2, 4, 6)], {"groups": 1}, "5"),
        ("batch_norm", [(2, 6, 8), [5], [6], [6], [6]], [(2, 6, 8)], {"eps": 1e-5}, "6 and 5"),
        ("concat", [(2, 3), (2, 4)], [(2, 8)], {"axis": 1}, "8"),
        ("pointwise", [(2, 3), (2, 4)], [(2, 4)], {}, "3 and 4"),
    ],
)
def test_two_sizes_for_one_axis_name_op_rule_and_both(kind, inputs, outputs, attrs, numbers):
    with pytest.raises(ShapeError) as error:
        one(kind, inputs, outputs, **attrs)
    assert "net.layer" in str(error.value) and kind in str(error.value)
    for number in numbers.split(" and "):
        assert number in str(error.value)


def test_an_unknown_kind_freezes_all_it_touches_with_its_name():
    graph = one("my::op", [(2, 3), [4]], [(5,)])
    op = graph.ops[0]
    for value in (*op.inputs, *op.outputs):
        assert all(dim.frozen == "net.layer: no rule for `my::op`" for dim in value.dims)


def test_an_unknown_shape_freezes_the_rest():
    x = Value("x", (3,))
    graph = Graph([made(x), Op("op", "pointwise", (x,), (Value("y", None),))], [], [], {})
    relate(graph)
    assert x.dims[0].frozen == "op: the shape of y is not known"


def test_broadcasting_couples_only_axes_of_one_size():
    graph = one("pointwise", [(2, 3, 4), (3, 1), [4]], [(2, 3, 4)])
    x, y, w = graph.ops[0].inputs
    out = graph.ops[0].outputs[0]
    assert find(x.dims[1]) is find(y.dims[0]) is find(out.dims[1])
    assert find(w.dims[0]) is find(x.dims[2])
    assert find(y.dims[1]) is not find(x.dims[2])


def test_a_computed_weight_that_zeros_do_not_pass_freezes_what_it_reads():
    def graph(kind, zero):
        x, w, e = Value("x", (2, 3)), Value("w", (4, 3), constant=True), Value("e", (4, 3), constant=True)
        ops = [
            made(x),
            Op("e", kind, (w,), (e,), {"zero": zero} if zero else {}),
            Op("y", "linear", (x, e), (Value("y", (2, 4)),)),
        ]
        relate(Graph(ops, [], [], {"w": w}))
        return w.dims

    assert [dim.frozen for dim in graph("pointwise", "first")] == [None, None]
    frozen = graph("pointwise", None)
    assert frozen[0].frozen is None
    assert frozen[1].frozen == "y (linear) reads it with a weight that is not zero where e (pointwise) gets zeros"


# ---- rules of others ---------------------------------------------------------------------------------


def test_a_rule_can_be_entered(monkeypatch):
    monkeypatch.setitem(RULES, "my.scale", "n c, c -> n c")
    graph = one("my.scale", [(2, 3), [3]], [(2, 3)])
    assert roles(graph) == {"n": None, "c": "carrier"}
    with pytest.raises(ShapeError, match="no `->`"):
        rule("my.other", axes="a b")
    assert "my.other" not in RULES


class _Entry:
    def __init__(self, name, load):
        self.name, self.value, self.load = name, f"package.{name}", load


def test_rules_of_plug_ins_are_loaded_and_cannot_replace_ours(monkeypatch):
    import graphprune.ops.rules as rules

    def enter():
        rule("theirs", axes="a -> a")
        rule("linear", axes="a -> a")

    ours = dict(RULES)
    monkeypatch.setattr(
        rules, "entry_points", lambda group: [_Entry("mine", enter)] if group == "graphprune.rules" else []
    )
    table.cache_clear()
    try:
        assert table()["theirs"] == "a -> a"
        assert table()["linear"] == ours["linear"]
    finally:
        RULES.clear()
        RULES.update(ours)
        table.cache_clear()


def test_a_plug_in_that_does_not_load_is_an_error(monkeypatch):
    import graphprune.ops.rules as rules

    def broken():
        raise ImportError("no module named `x`")

    monkeypatch.setattr(rules, "entry_points", lambda group: [_Entry("bad", broken)])
    table.cache_clear()
    try:
        with pytest.raises(GraphpruneError, match=r"the rules `bad` \(package.bad\) do not load: no module named `x`"):
            table()
    finally:
        table.cache_clear()
