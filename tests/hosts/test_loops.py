"""Loop and Scan in ONNX: one iteration is read, and what is cut in a body is cut in all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as oh
from onnx import numpy_helper as nh
from test_control_flow import branch, feeds, groups_are_whole, model, reasons, runtime
from test_onnx_host import difference, free, masked, pruned

import graphprune as gp
from graphprune.axes.index import Index
from graphprune.cost.static import macs
from graphprune.coupling.groups import find_groups
from graphprune.errors import GraphpruneError
from graphprune.hosts.onnx.host import OnnxHost

RECIPE = "group,score{by=l1},mask{channels=0.5x},propagate"
FLOAT, INT, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL


def body(text: str, given: dict[str, Any], made: str, **weights: Any) -> onnx.GraphProto:
    """What one iteration computes of what it is given (shapes by name)."""
    found = branch(text, made, **weights)
    kinds = {"i": INT, "go": BOOL}
    found.input.extend(oh.make_tensor_value_info(name, kinds.get(name, FLOAT), shape) for name, shape in given.items())
    for out in found.output:
        if out.name == "on":
            out.CopyFrom(oh.make_tensor_value_info("on", BOOL, []))
    return found


def put(made: onnx.ModelProto, at: int, node: onnx.NodeProto) -> onnx.ModelProto:
    made.graph.node.insert(at, node)
    return made


def counted(made: onnx.ModelProto, at: int, steps: int, given: list[str], outputs: list[str], inside: Any) -> Any:
    made.graph.initializer.append(nh.from_array(np.array(steps), "steps"))
    return put(made, at, oh.make_node("Loop", ["steps", "", *given], outputs, name="again", body=inside))


def loop(inner: str) -> onnx.ModelProto:
    """Three times the same layer; with a weight of the body's own beside one from outside."""
    made = model(
        "a = MatMul(x, u) f = Relu(a) y = MatMul(l, v)", "float[n,6] x, bool c", u=(6, 5), v=(6, 3), w=(6, 6), k=(5, 6)
    )
    made.graph.node.insert(2, oh.make_node("MatMul", ["f", "k"], ["e"]))
    body = branch(inner, "bool o, float[n,6] t", z=(6, 6))
    body.input.extend([oh.make_tensor_value_info("i", 7, []), oh.make_tensor_value_info("cond", 9, [])])
    body.input.append(oh.make_tensor_value_info("carried", 1, ["n", 6]))
    body.output[0].CopyFrom(oh.make_tensor_value_info("o", 9, []))
    made.graph.node.insert(3, oh.make_node("Loop", ["three", "", "e"], ["l"], name="again", body=body))
    made.graph.initializer.append(nh.from_array(np.array(3), "three"))
    return made  # fmt: skip


STATES = {"i": [], "go": [], "h": ["n", 8]}
SCALAR = np.array(0.5, np.float32)


def scan(**attributes: Any) -> onnx.ModelProto:
    """An Elman network over the rows of x, or its columns."""
    along = attributes.get("scan_input_axes") == [1]
    width = "n" if along else 6
    text = "p = MatMul(e, w) q = MatMul(h, r) s = Add(p, q) g = Tanh(s) k = MatMul(g, o1)"
    weights = {"w": (6, 8), "r": (8, 8), "o1": (8, 5)}
    if along:  # one column of n is one number for each of so many that are one another's batch
        text = "u = Unsqueeze(e, one) p = Mul(u, w) q = MatMul(h, r) s = Add(p, q) g = Tanh(s) k = MatMul(g, o1)"
        weights = {"w": (8,), "r": (8, 8), "o1": (8, 5), "one": np.array([1])}  # type: ignore[dict-item]
    state = ["n", 8] if along else [8]
    lead = "n," * along
    inside = body(text, {"h": state, "e": [width]}, f"float[{lead}8] g, float[{lead}5] k", **weights)
    if along:
        made = model("a = MatMul(x, m) start = Tanh(a) y = MatMul(all, v)", "float[n,6] x", m=(6, 8), v=(5, 3))
        made.graph.output[0].CopyFrom(oh.make_tensor_value_info("y", FLOAT, ["n", 6, 3]))
    else:
        made = model("y = MatMul(all, v)", "float[n,6] x", start=(8,), v=(5, 3))
    node = oh.make_node("Scan", ["start", "x"], ["last", "all"], num_scan_inputs=1, body=inside, **attributes)
    return put(made, 2 if along else 0, node)


def nested() -> onnx.ModelProto:
    inner = body(
        "on2 = Identity(go2) d = MatMul(k, w) t = Tanh(d) m = MatMul(t, z)", {}, "float[n,8] on2, float[n,8] m"
    )
    inner.input.extend([oh.make_tensor_value_info("j", INT, []), oh.make_tensor_value_info("go2", BOOL, [])])
    inner.input.append(oh.make_tensor_value_info("k", FLOAT, ["n", 8]))
    inner.output[0].CopyFrom(oh.make_tensor_value_info("on2", BOOL, []))
    outer = body("on = Identity(go) f = Add(deep, h)", STATES, "float on, float[n,8] f")
    outer.node.insert(1, oh.make_node("Loop", ["steps", "", "h"], ["deep"], name="inner", body=inner))
    made = model("e = MatMul(x, u) y = MatMul(l, v)", "float[n,6] x", u=(6, 8), v=(8, 3), w=(8, 5), z=(5, 8))
    return counted(made, 1, 2, ["e"], ["l"], outer)


def chosen() -> onnx.ModelProto:
    made = loop("o = Identity(cond) a1 = Relu(q) t = MatMul(a1, z)")
    inside = made.graph.node[3].attribute[0].g
    then = branch("d = MatMul(carried, w)", "float[n,6] d")
    other = branch(
        "d1 = MatMul(carried, deep) d2 = Relu(d1) d = MatMul(d2, back)", "float[n,6] d", deep=(6, 7), back=(7, 6)
    )
    inside.node.insert(1, oh.make_node("If", ["c"], ["q"], then_branch=then, else_branch=other))
    return made


LOOPS: dict[str, tuple[onnx.ModelProto, int]] = {
    "widths within, and one that is carried": (
        loop("o = Identity(cond) s = MatMul(carried, w) p = Relu(s) t = MatMul(p, z)"),
        3,
    ),
    "a choice within": (chosen(), 4),
    "steps that are handed out": (
        counted(
            model(
                "e = MatMul(x, u) q = MatMul(all, v) y = ReduceSum<keepdims=0>(q, zero)",
                "float[n,6] x",
                u=(6, 8),
                v=(5, 3),
                zero=np.array([0]),
            ),
            1,
            3,
            ["e"],
            ["rest", "all"],
            body(
                "on = Identity(go) a = MatMul(h, w) b = Relu(a) c = MatMul(b, z) s = MatMul(c, k)",
                STATES,
                "float on, float[n,8] c, float[n,5] s",
                w=(8, 7), z=(7, 8), k=(8, 5),
            ),
        ),
        3,
    ),
    "one in the other": (nested(), 2),
    "a recurrent network": (scan(), 2),
    "backwards": (scan(scan_input_directions=[1], scan_output_directions=[1]), 2),
    "along another axis": (scan(scan_input_axes=[1], scan_output_axes=[1]), 2),
    "weights that are outside, and one number a step": (
        counted(
            model("e = MatMul(x, u) y = MatMul(l, v)", "float[n,6] x", u=(6, 8), v=(8, 3), w=(8, 8), half=SCALAR),
            1,
            3,
            ["e"],
            ["l"],
            body(
                "on = Identity(go) k = Cast<to=1>(i) a = MatMul(h, w) b = Add(a, k) c = Sigmoid(b)",
                STATES,
                "float on, float[n,8] c",
            ),
        ),
        1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_every_channel_in_a_body_is_cut_as_it_is_masked(name: str, tmp_path: Path) -> None:
    made, groups = LOOPS[name]
    host = OnnxHost(made)
    graph = host.lift()
    dims = free(graph)
    assert len(dims) == groups, reasons(gp.load(made))
    before = [runtime(made, batch) for batch in feeds(made)]
    for leaf in dims:
        assert isinstance(leaf.size, int)
        index = Index({leaf: np.random.default_rng(2).permutation(leaf.size)[: leaf.size // 2]})
        small, zeroed = pruned(host, graph, index), masked(host, graph, index)
        small.save(tmp_path / "small.onnx")
        onnx.checker.check_model(tmp_path / "small.onnx", full_check=True)
        written = onnx.load(tmp_path / "small.onnx")
        want = [zeroed.run(batch) for batch in feeds(made)]
        for batch, expected in zip(feeds(made), want, strict=True):
            assert difference(runtime(written, batch), expected) <= 1e-5
        assert max(difference(a, b) for a, b in zip(want, before, strict=True)) > 1e-4
        assert small.shapes()  # each is what the rules say
        assert [node.op_type for node in written.graph.node] == [node.op_type for node in made.graph.node]
    for batch, whole in zip(feeds(made), before, strict=True):
        assert difference(host.run(batch), whole) == 0


@pytest.mark.parametrize("name", LOOPS)
def test_a_group_is_whole(name: str) -> None:
    groups_are_whole(LOOPS[name][0], 1e-5)


def test_the_whole_way_in_a_body(tmp_path: Path) -> None:
    """Cut, order, fold and fit within a body; the result is the user's file with a smaller body."""
    text = "on = Identity(go) f = Conv(h, w) g = BatchNormalization(f, s, b2, m, q) r = Relu(g) t = Conv(r, v)"
    weights: dict[str, Any] = {"w": (8, 2, 1, 1), "s": (8,), "b2": (8,), "m": (8,), "v": (2, 8, 1, 1)}
    weights["q"] = np.random.default_rng(3).uniform(0.5, 1.5, 8).astype(np.float32)
    inside = body(text, {"i": [], "go": [], "h": ["n", 2, "j", "k"]}, "float on, float[n,2,j,k] t", **weights)
    made = model("e = Conv(x, first) y = Tanh(l)", "float[n,3,7,7] x", "float[n,2,7,7] y", first=(2, 3, 1, 1))
    made = counted(made, 1, 3, ["e"], ["l"], inside)
    data = {"x": np.random.default_rng(0).standard_normal((40, 3, 7, 7)).astype(np.float32)}
    recipe = "group,score{by=obs},mask{channels=0.5x},reorder,propagate,compensate,fold"
    artifact = gp.compile(made, recipe=recipe, data=data, measure=False, out=tmp_path / "out")
    written = onnx.load(tmp_path / "out/model.onnx")
    kept = {group["name"]: group["kept"] for group in artifact.report["groups"]}
    assert kept["w"] == 4
    assert [node.op_type for node in written.graph.node[1].attribute[0].g.node] == ["Identity", "Conv", "Relu", "Conv"]
    assert any("again (Loop): what is in its body counts once" in note for note in artifact.report["notes"])
    again = gp.apply(tmp_path / "out/plan.json", made)
    batch = [data["x"][:3]]
    assert difference(runtime(written, batch), again.host.run(batch)) <= 1e-6


def test_what_a_body_holds_is_counted_once() -> None:
    made, _ = LOOPS["widths within, and one that is carried"]
    program = gp.load(made)
    inside, outside = 2 * 6 * 6, 6 * 5 + 5 * 6 + 6 * 3
    assert macs(program.graph, program.host)() == inside + outside
    assert [note for note in program.notes if "counts once" in note]


GROWING = counted(
    model("e = MatMul(x, u) y = MatMul(l, v)", "float[n,6] x", "float[m,3] y", u=(6, 8), v=(8, 3)),
    1,
    3,
    ["e"],
    ["l"],
    body("on = Identity(go) a = MatMul(h, w) c = Concat<axis=0>(a, h)", STATES, "float on, float[m,8] c", w=(8, 8)),
)
ROUNDED = counted(
    model("e = MatMul(x, u) y = MatMul(l, v)", "float[n,6] x", u=(6, 8), v=(8, 3)),
    1,
    3,
    ["e"],
    ["l"],
    body(
        "on = Identity(go) q = QuantizeLinear(h, s, z) d = DequantizeLinear(q, s, z) c = MatMul(d, w)",
        STATES,
        "float on, float[n,8] c",
        w=(8, 8), s=np.array(0.1, np.float32), z=np.array(0, np.int8),
    ),
)  # fmt: skip


@pytest.mark.parametrize(("made", "why"), [(GROWING, "`h` changes its shape"), (ROUNDED, "quantises")])
def test_a_body_whose_iterations_are_not_alike_is_listed(made: onnx.ModelProto, why: str) -> None:
    program = gp.load(made)
    assert len(find_groups(program.graph)) == 0
    found = reasons(program)
    assert any(name.startswith("w[") and why in reason for name, reason in found.items()), found
    assert any("again (Loop): what is in its body counts for nothing" in note for note in program.notes)


def test_a_loop_that_is_the_whole_model_is_not_empty() -> None:
    text = "p = MatMul(i, w) q = MatMul(h, r) s = Add(p, q) g = Tanh(s) o = Identity(g)"
    inside = branch(text, "float[1,8] g, float[1,8] o", w=(6, 8))
    inside.input.extend([oh.make_tensor_value_info("h", FLOAT, [1, 8]), oh.make_tensor_value_info("i", FLOAT, [1, 6])])
    made = model("y = Relu(all)", "float[t,1,6] x, float[1,8] start", "float[t,1,8] y", r=(8, 8))
    put(made, 0, oh.make_node("Scan", ["start", "x"], ["last", "all"], num_scan_inputs=1, body=inside))
    program = gp.load(made)
    assert len(find_groups(program.graph)) == 0
    assert reasons(program) == {"w[0]": "graph input", "w": "graph input"}
    with pytest.raises(GraphpruneError, match="nothing can be pruned"):
        gp.compile(made, channels=0.5, measure=False)


def test_states_of_a_loop_that_come_and_go_are_cut_where_the_user_says_so() -> None:
    text = "p = MatMul(e, w) q = MatMul(h, r) s = Add(p, q) g = Tanh(s) k = MatMul(g, o1)"
    inside = body(text, {"h": [8], "e": [6]}, "float[8] g, float[5] k", w=(6, 8), r=(8, 8), o1=(8, 5))
    made = model("y = MatMul(all, v)", "float[n,6] x, float[8] start", "float[n,3] y, float[8] last", v=(5, 3))
    put(made, 0, oh.make_node("Scan", ["start", "x"], ["last", "all"], num_scan_inputs=1, body=inside))
    program = gp.load(made)
    assert [group.size for group in find_groups(program.graph)] == [5]
    done = gp.run("group{states=start},score{by=l1},mask{channels=0.5x},propagate", program)
    assert [array.shape for array in done.host.example()] == [(2, 6), (4,)]
    assert all(check.holds for check in gp.verify(done))
