"""Functions and If in ONNX: what is in them is seen, cut where it can be, and told of where it cannot."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import helper as oh
from onnx import numpy_helper as nh
from test_onnx_host import difference, free, masked, pruned

import graphprune as gp
from graphprune.axes.index import Index
from graphprune.cli import main
from graphprune.coupling.groups import find_groups
from graphprune.errors import ModelError, VerificationError
from graphprune.hosts.onnx.host import OnnxHost

SHARED = next((path / "shared" for path in Path(__file__).parents if (path / "shared/cases").is_dir()), None)
needs_files = pytest.mark.skipif(SHARED is None, reason="no folder shared/cases beside the checkout")
RECIPE = "group,score{by=l1},mask{channels=0.5x},propagate"
HEADER = '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>'


def model(
    text: str, inputs: str = "float[n,6] x, bool c", output: str = "float[n,3] y", **shapes: Any
) -> onnx.ModelProto:
    """ONNX text, functions behind it; weights of these shapes filled with random numbers."""
    graph, *functions = text.split("###")
    made = onnx.parser.parse_model(f"{HEADER} net ({inputs}) => ({output}) {{ {graph} }} {' '.join(functions)}")
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = shape if isinstance(shape, np.ndarray) else (rng.standard_normal(shape) * 0.5).astype(np.float32)
        made.graph.initializer.append(nh.from_array(array, name))
    return made


def branch(text: str, output: str, **shapes: Any) -> onnx.GraphProto:
    """A branch with weights of its own."""
    made = model(text, "float[n,6] unused", output, **shapes).graph
    del made.input[:]
    made.name = "branch"
    return made


def put(made: onnx.ModelProto, at: int, then: onnx.GraphProto, other: onnx.GraphProto, **names: Any) -> onnx.ModelProto:
    """An If with these branches before node ``at``."""
    node = oh.make_node("If", [names.get("condition", "c")], names.get("outputs", ["b"]), name="choice")
    node.attribute.extend([oh.make_attribute("then_branch", then), oh.make_attribute("else_branch", other)])
    nodes = [*made.graph.node[:at], node, *made.graph.node[at:]]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


MODELS: dict[str, tuple[onnx.ModelProto, int]] = {
    "all of it, the same names in both branches": (
        put(
            model("y = Relu(b)"),
            0,
            branch("a = MatMul(x, w) r = Relu(a) t = MatMul(r, v)", "float[n,3] t", w=(6, 8), v=(8, 3)),
            branch("a = MatMul(x, w) r = Tanh(a) t = MatMul(r, v)", "float[n,3] t", w=(6, 5), v=(5, 3)),
        ),
        2,
    ),
    "names that are used again behind": (
        put(
            model("a = MatMul(b, u) r = Relu(a) y = MatMul(r, v)", u=(4, 7), v=(7, 3)),
            0,
            branch("a = MatMul(x, w) r = Relu(a) t = MatMul(r, v2)", "float[n,4] t", w=(6, 8), v2=(8, 4)),
            branch("t = MatMul(x, w)", "float[n,4] t", w=(6, 4)),
        ),
        3,
    ),
    "channels that both hand on": (
        put(
            model("y = MatMul(b, v)", v=(8, 3)),
            0,
            branch("a = MatMul(x, w) t = Relu(a)", "float[n,8] t", w=(6, 8)),
            branch("a = MatMul(x, w) s = Add(a, bias) t = Sigmoid(s)", "float[n,8] t", w=(6, 8), bias=(8,)),
        ),
        1,
    ),
    "what is outside is read inside": (
        put(
            model("a = MatMul(x, w) h = Relu(a) y = MatMul(b, u)", w=(6, 8), v=(8, 5), u=(5, 3)),
            2,
            branch("t = MatMul(h, v)", "float[n,5] t"),
            branch("s = MatMul(h, v) q = Neg(s) t = Relu(q)", "float[n,5] t"),
        ),
        2,
    ),
    "one in the other": (
        put(
            model("y = MatMul(b, v)", "float[n,6] x, bool c, bool d", v=(8, 3)),
            0,
            put(
                model("t = Relu(b)"),
                0,
                branch("i = MatMul(x, w) j = Relu(i) t = MatMul(j, k)", "float[n,8] t", w=(6, 9), k=(9, 8)),
                branch("t = MatMul(x, w)", "float[n,8] t", w=(6, 8)),
                condition="d",
            ).graph,
            branch("t = MatMul(x, w)", "float[n,8] t", w=(6, 8)),
        ),
        2,
    ),
    "several results, one of them of no use": (
        put(
            model("s = Add(b, e) y = MatMul(s, v)", v=(8, 3)),
            0,
            branch("t = MatMul(x, w) u = Relu(t) z = Neg(t)", "float[n,8] t, float[n,8] u, float[n,8] z", w=(6, 8)),
            branch("t = MatMul(x, w) u = Tanh(t) z = Abs(t)", "float[n,8] t, float[n,8] u, float[n,8] z", w=(6, 8)),
            outputs=["b", "e", "unread"],
        ),
        1,
    ),
    "a condition that is computed": (
        put(
            model(
                "m = ReduceMean<keepdims=0>(x) d = Greater(m, zero) y = MatMul(b, v)",
                "float[n,6] x, float z",
                zero=np.asarray(0, np.float32),
                v=(8, 3),
            ),
            2,
            branch("a = MatMul(x, w) t = Relu(a)", "float[n,8] t", w=(6, 8)),
            branch("a = MatMul(x, w) t = Clip(a, , one)", "float[n,8] t", w=(6, 8), one=np.asarray(1, np.float32)),
            condition="d",
        ),
        1,
    ),
}
nested = MODELS["one in the other"][0].graph.node[0].attribute[0].g
del nested.input[:]
nested.output[0].CopyFrom(oh.make_tensor_value_info("t", 1, ["n", 8]))
del MODELS["a condition that is computed"][0].graph.input[1]


def feeds(made: onnx.ModelProto) -> list[list[np.ndarray]]:
    """Inputs of every choice of flags, positive and negative."""
    x = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    flags = len(made.graph.input) - 1
    choices = itertools.product([np.array(True), np.array(False)], repeat=flags)
    return [
        [sign * np.abs(x) if not flags else x, *some] for some in choices for sign in ((1, -1) if not flags else (1,))
    ]


def runtime(made: onnx.ModelProto, batch: list[np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(made.SerializeToString(), options)
    return session.run(None, dict(zip((value.name for value in made.graph.input), batch, strict=True)))


@pytest.mark.parametrize("name", MODELS)
def test_every_channel_in_a_branch_is_cut_as_it_is_masked(name: str, tmp_path: Path) -> None:
    made, groups = MODELS[name]
    host = OnnxHost(made)
    graph = host.lift()
    dims = free(graph)
    assert len(dims) == groups
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
        assert list(written.graph.input) == list(made.graph.input)
        assert list(written.graph.output) == list(made.graph.output)
        assert (written.ir_version, written.opset_import) == (made.ir_version, made.opset_import)
        assert [node.op_type for node in written.graph.node] == [node.op_type for node in made.graph.node]
    for batch, whole in zip(feeds(made), before, strict=True):
        assert difference(host.run(batch), whole) == 0


def groups_are_whole(made: onnx.ModelProto, tells: float = 1e-4) -> None:
    """In another order each computes the same; with any member left out it does not, by ``tells`` and more."""
    program = gp.load(made)
    for group in find_groups(program.graph):
        index = Index({group.dim: np.roll(np.arange(group.size), 1)})

        def permuted(leave_out: object = None, index: Index = index) -> list[list[np.ndarray]]:
            host = program.host.copy()
            for parameter, value in program.graph.parameters.items():
                for axis, dim in enumerate(value.dims):
                    if index.touches(dim) and (parameter, axis) != leave_out:
                        host.take(parameter, axis, index(dim))
            return [host.run(batch) for batch in feeds(made)]

        whole = [program.host.run(batch) for batch in feeds(made)]
        assert max(difference(a, b) for a, b in zip(permuted(), whole, strict=True)) <= 1e-5
        for member in group.members:
            moved = permuted((member.parameter, member.axis))
            assert max(difference(a, b) for a, b in zip(moved, whole, strict=True)) > tells, member


@pytest.mark.parametrize("name", MODELS)
def test_a_group_is_whole(name: str) -> None:
    groups_are_whole(MODELS[name][0])


def test_the_whole_way_in_a_branch(tmp_path: Path) -> None:
    """Cut, order, fold and fit within branches; the result is the user's file with smaller branches."""
    text = "h = Conv(x, w) g = BatchNormalization(h, s, b2, m, q) r = Relu(g) t = Conv(r, v)"
    weights = {"w": (8, 3, 3, 3), "s": (8,), "b2": (8,), "m": (8,), "v": (2, 8, 1, 1)}
    weights["q"] = np.random.default_rng(3).uniform(0.5, 1.5, 8).astype(np.float32)  # type: ignore[assignment]
    branches = [branch(text, "float[n,2,i,j] t", **weights) for _ in range(2)]
    made = model("y = Tanh(b)", "float[n,3,9,9] x, bool c", "float[n,2,i,j] y")
    made = put(made, 0, *branches)
    data = {"x": np.random.default_rng(0).standard_normal((40, 3, 9, 9)).astype(np.float32), "c": np.array(True)}
    recipe = "group,score{by=obs},mask{channels=0.5x},reorder,propagate,compensate,fold"
    artifact = gp.compile(made, recipe=recipe, data=data, measure=False, out=tmp_path / "out")
    written = onnx.load(tmp_path / "out/model.onnx")
    inside = [attribute.g for attribute in written.graph.node[0].attribute]
    assert [[node.op_type for node in graph.node] for graph in inside] == [["Conv", "Relu", "Conv"]] * 2
    assert [group["kept"] for group in artifact.report["groups"]] == [4, 4]
    again = gp.apply(tmp_path / "out/plan.json", made)
    for flag in (True, False):
        batch = [data["x"][:3], np.array(flag)]
        assert difference(runtime(written, batch), again.host.run(batch)) <= 1e-6


# ---- conditions that are known ------------------------------------------------------------------------


def choice(
    condition: str = "c", before: str = "", inputs: str = "float[n,6] x, bool c", **shapes: Any
) -> onnx.ModelProto:
    made = model(f"{before} y = MatMul(b, v)", inputs, v=(8, 3), **shapes)
    then = branch("a = MatMul(x, w) t = Relu(a)", "float[n,8] t", w=(6, 8))
    other = branch("a = MatMul(x, w) t = Neg(a)", "float[n,8] t", w=(6, 8))
    return put(made, len(made.graph.node) - 1, then, other, condition=condition)


ALONE = "float[n,6] x"
KNOWN = {
    "a constant": (choice("k", inputs="float[n,6] x", k=np.array(True)), None, "Relu"),
    "computed from constants": (choice("k", "k = Not(l)", "float[n,6] x", l=np.array(True)), None, "Neg"),
    "given as a number": (
        choice("k", "k = Equal(rate, r)", "float[n,6] x, int64 rate", r=np.array(16000)),
        {"rate": 16000},
        "Relu",
    ),
    "given as an array": (choice(), {"c": np.array(False)}, "Neg"),
    "given in order": (choice(), [(3, 6), np.array(True)], "Relu"),
    "a size that is declared": (
        choice("k", "s = Shape(x) e = Gather(s, one) k = Equal(e, six)", ALONE, one=np.array(1), six=np.array(6)),
        None,
        "Relu",
    ),
    "a rank": (choice("k", "s = Shape(x) e = Size(s) k = Equal(e, two)", ALONE, two=np.array(2)), None, "Relu"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_branch_that_runs_stands_in_the_place_of_the_if(name: str) -> None:
    made, example, kept = KNOWN[name]
    program = gp.load(made, example)
    types = [node.op_type for node in program.model.graph]
    assert "If" not in types
    assert [kind for kind in types if kind in ("Relu", "Neg")] == [kept]
    result = gp.run(RECIPE, program)
    assert all(check.holds for check in gp.verify(result))
    assert [value.name for value in result.model.graph.inputs] == [value.name for value in made.graph.input]
    assert any("right for no other value" in note for note in program.notes) == ("given" in name)
    x = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)
    flag = {"rate": np.array(16000), "c": np.array(kept == "Relu")}
    batch = [x, *(flag[value.name] for value in made.graph.input[1:])]
    assert difference(program.host.run(batch), runtime(made, batch)) <= 1e-6


def test_an_output_of_a_branch_that_is_an_output_of_the_model_keeps_its_name() -> None:
    made = choice("k", inputs="float[n,6] x", k=np.array(True))
    made.graph.node[0].output[0] = "y"
    del made.graph.node[1]
    made.graph.output[0].CopyFrom(oh.make_tensor_value_info("y", 1, ["n", 8]))
    program = gp.load(made)
    assert [value.name for value in program.model.graph.outputs] == ["y"]
    batch = [np.ones((2, 6), np.float32)]
    assert difference(program.host.run(batch), runtime(made, batch)) == 0


@pytest.mark.parametrize(
    "made",
    [
        choice(),
        choice("k", "s = Shape(x) e = Gather(s, o) k = Equal(e, two)", ALONE, o=np.array(0), two=np.array(2)),
        choice("k", inputs="float[n,6] x, bool k", k=np.array(True)),  # a default that a caller may replace
    ],
)
def test_a_condition_that_a_caller_decides_stays(made: onnx.ModelProto) -> None:
    program = gp.load(made)
    assert [node.op_type for node in program.model.graph].count("If") == 1
    assert len(find_groups(program.graph)) == 1
    result = gp.run(RECIPE, program)
    for rows in (2, 5):
        x = np.random.default_rng(rows).standard_normal((rows, 6)).astype(np.float32)
        batch = [x, *(np.array(False) for value in made.graph.input[1:] if value.name == "c")]
        assert result.host.run(batch)[0].shape == (rows, 3)


# ---- what cannot be looked into -------------------------------------------------------------------------


def reasons(program: gp.Program) -> dict[str, str]:
    return {dim.name: dim.reason for dim in find_groups(program.graph).frozen}


def test_branches_that_do_not_both_run_are_listed_with_what_would_help() -> None:
    made = model("a = MatMul(b, u) r = Relu(a) y = MatMul(r, v)", "float[n,6] x, bool c", u=(6, 7), v=(7, 3))
    then = branch("s = MatMul(x, w) r2 = Relu(s) t = MatMul(r2, k)", "float[n,6] t", w=(6, 8), k=(8, 6))
    other = branch("r3 = Reshape(x, shape) t = MatMul(r3, w)", "float[n,6] t", w=(5, 6), shape=np.array([-1, 5]))
    program = gp.load(put(made, 0, then, other), {"x": (8, 6)})
    assert [group.name for group in find_groups(program.graph)] == ["u"]  # outside it goes on
    found = reasons(program)
    for weight in ("w", "w_1", "k"):
        mine = [reason for name, reason in found.items() if name.split("[")[0] == weight]
        assert mine
        assert any("choice: its branches cannot both be run on one input" in reason for reason in mine)
        assert any("--input c=VALUE" in reason for reason in mine)
    assert all(check.holds for check in gp.verify(gp.run(RECIPE, program)))
    chosen = gp.load(program.model, {"c": True})
    assert sorted(group.name for group in find_groups(chosen.graph)) == ["k", "u", "w"]


def test_branches_of_other_ranks_and_sizes_are_cut_inside_alone() -> None:
    made = model("y = Abs(b)", output="float y")
    then = branch("a = MatMul(x, w) t = MatMul(a, v)", "float[n,3] t", w=(6, 8), v=(8, 3))
    flatter = branch("a = MatMul(x, w) s = MatMul(a, v) t = ReduceSum<keepdims=0>(s)", "float t", w=(6, 8), v=(8, 3))
    wider = branch("a = MatMul(x, w) t = MatMul(a, v)", "float[n,4] t", w=(6, 8), v=(8, 4))
    for other in (flatter, wider):
        del made.graph.output[:]
        made.graph.output.append(oh.make_tensor_value_info("y", 1, None))
        one = onnx.ModelProto()
        one.CopyFrom(made)
        program = gp.load(put(one, 0, then, other))
        assert [group.size for group in find_groups(program.graph)] == [8, 8]
        result = gp.run(RECIPE, program)
        zeroed = [check.holds for check in gp.verify(result)]
        assert all(zeroed)


# ---- functions --------------------------------------------------------------------------------------------


def test_a_function_by_the_name_of_a_kernel_is_what_the_kernel_computes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    body = oh.make_function(
        "com.microsoft", "Gelu", ["X"], ["Y"], [oh.make_node("Tanh", ["X"], ["Y"])], [oh.make_opsetid("", 17)]
    )
    nodes = [
        oh.make_node("MatMul", ["x", "a"], ["h"]),
        oh.make_node("Gelu", ["h"], ["g"], domain="com.microsoft"),
        oh.make_node("MatMul", ["g", "b"], ["y"]),
    ]
    graph = oh.make_graph(
        nodes,
        "net",
        [oh.make_tensor_value_info("x", 1, [2, 6])],
        [oh.make_tensor_value_info("y", 1, [2, 4])],
        [
            nh.from_array(rng.standard_normal(shape).astype(np.float32), name)
            for name, shape in (("a", (6, 8)), ("b", (8, 4)))
        ],
    )
    opsets = [oh.make_opsetid("", 17), oh.make_opsetid("com.microsoft", 1)]
    whole = oh.make_model(graph, functions=[body], opset_imports=opsets, ir_version=8)
    x = rng.standard_normal((2, 6)).astype(np.float32)
    (given,) = ort.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    (read,) = gp.load(whole).host.run([x])
    np.testing.assert_allclose(read, given, rtol=1e-5, atol=1e-6)


FUNCTION = '<domain: "my", opset_import: ["" : 17, "my" : 1]>'
FUNCTIONS = {
    "one in the other, called twice": (
        "a = my.Layer(x, w) y = my.Layer(a, v) "
        f"### {FUNCTION} Layer (i, k) => (o) {{ s = MatMul(i, k) o = my.Act(s) }} "
        f"### {FUNCTION} Act (i) => (o) {{ s = Relu(i) o = Identity(s) }}",
        {"w": (6, 8), "v": (8, 3)},
    ),
    "an attribute by default and by name": (
        "a = MatMul(x, w) b = my.Leak(a) d = my.Leak<slope=0.9>(b) y = MatMul(d, v) "
        '### <domain: "my", opset_import: ["" : 17]> Leak <slope: float = 0.25> (i) => (o) '
        "{ o = LeakyRelu<alpha: float = @slope>(i) }",
        {"w": (6, 8), "v": (8, 3)},
    ),
    "an operand that is left out": (
        "a = MatMul(x, w) b = my.Bound(a) y = MatMul(b, v) "
        f"### {FUNCTION} Bound (i, low) => (o) {{ o = Clip(i, low) }}",
        {"w": (6, 8), "v": (8, 3)},
    ),
    "a choice that reads from around it": (
        f"y = my.Either(x, c, w, v) ### {FUNCTION} Either (x, c, w, v) => (y) {{ s = MatMul(x, w) "
        "q = If(c) <then_branch = one () => (t) { t = Relu(s) }, else_branch = two () => (t) { t = Neg(s) }> "
        "y = MatMul(q, v) }",
        {"w": (6, 8), "v": (8, 3)},
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_written_out_and_cut(name: str, tmp_path: Path) -> None:
    text, weights = FUNCTIONS[name]
    made = model(text, **weights)
    before = made.SerializeToString()
    program = gp.load(made)
    assert made.SerializeToString() == before
    assert [group.name for group in find_groups(program.graph)] == ["w"]
    assert any(note.startswith("functions of the model are written out") for note in program.notes)
    for batch in feeds(made):
        assert difference(program.host.run(batch), runtime(made, batch)) <= 1e-6
    result = gp.run(RECIPE, program)
    assert all(check.holds for check in gp.verify(result))
    result.host.save(tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert not written.functions
    assert list(written.graph.input) == list(made.graph.input)
    assert list(written.graph.output) == list(made.graph.output)
    for batch in feeds(made):
        assert difference(runtime(written, batch), result.host.run(batch)) <= 1e-6


def test_a_model_that_calls_itself_is_refused() -> None:
    text = f"y = my.Again(x) ### {FUNCTION} Again (i) => (o) {{ o = my.Again(i) }}"
    with pytest.raises(ModelError, match="calls itself"):
        gp.load(model(text))


@pytest.mark.parametrize("choice", [True, False])
def test_large_weights_outside_that_only_the_other_branch_reads(choice: bool, tmp_path: Path) -> None:
    then = branch("a = MatMul(x, w) r = Relu(a) t = MatMul(r, v)", "float[n,3] t")
    other = branch("a = MatMul(x, wide) r = Relu(a) t = MatMul(r, back)", "float[n,3] t")
    made = put(model("y = Relu(b)", w=(6, 300), v=(300, 3), wide=(6, 400), back=(400, 3)), 0, then, other)
    program = gp.load(made, {"x": (2, 6), "c": choice})
    assert [group.size for group in find_groups(program.graph)] == [300 if choice else 400]
    result = gp.run(RECIPE, program)
    assert all(check.holds for check in gp.verify(result))
    result.host.save(tmp_path / "out.onnx")
    batch = [np.ones((2, 6), np.float32), np.array(choice)]
    assert difference(runtime(onnx.load(tmp_path / "out.onnx"), batch), result.host.run(batch)) <= 1e-5


# ---- the files that people have ---------------------------------------------------------------------------


@needs_files
def test_a_choice_that_holds_everything() -> None:
    assert SHARED is not None
    path = SHARED / "cases/onnx/if_holds_everything.onnx"
    program = gp.load(path)
    assert sorted(group.name for group in find_groups(program.graph)) == ["w10", "w11"]
    result = gp.run(RECIPE, program)
    assert all(check.holds for check in gp.verify(result))


@needs_files
@pytest.mark.parametrize(("rate", "samples", "groups"), [(16000, 512, 5), (8000, 256, 5), (None, None, 10)])
def test_voice_activity(rate: int | None, samples: int | None, groups: int, tmp_path: Path) -> None:
    assert SHARED is not None
    path = SHARED / "data/onnx/silero_vad.onnx"
    program = gp.load(path, None if rate is None else {"sr": rate, "input": (1, samples), "state": (2, 1, 128)})
    assert len(find_groups(program.graph)) >= groups
    result = gp.run("group,score{by=l1},mask{channels=0.7x},propagate", program)
    assert all(check.holds for check in gp.verify(result))
    result.host.save(tmp_path / "out.onnx")
    before, after = onnx.load(path), onnx.load(tmp_path / "out.onnx")
    assert list(before.graph.input) == list(after.graph.input)
    assert list(before.graph.output) == list(after.graph.output)
    rng = np.random.default_rng(0)
    for some in (16000, 8000) if rate is None else (rate,):
        sound = rng.standard_normal((1, some // 16000 * 256 + 256)).astype(np.float32)
        batch = [sound, np.zeros((2, 1, 128), np.float32), np.array(some)]
        outputs = runtime(after, batch)
        assert difference(outputs, result.host.run(batch)) <= 1e-5


def test_the_command_line_says_what_a_given_value_means(tmp_path: Path) -> None:
    onnx.save(KNOWN["given as a number"][0], tmp_path / "net.onnx")
    said = "its branch for `rate` = 16000 stands in its place; the model is right for no other value"
    shown = said.replace("`rate`", "<code>rate</code>")
    for line in (["inspect"], ["compile", "--passes", RECIPE, "-o", str(tmp_path / "out")]):
        done = CliRunner().invoke(main, [*line, str(tmp_path / "net.onnx"), "--input", "rate=16000"])
        assert done.exit_code == 0, done.output
        assert f"note: choice (If): {said}" in done.output
    assert shown in (tmp_path / "out/report.html").read_text().replace("&#x27;", "'")


# ---- what cannot be a reference -----------------------------------------------------------------------------


def test_a_model_that_is_not_finite_is_no_reference() -> None:
    made = model(
        "h = MatMul(x, a) r = Relu(h) p = Pow(r, e) y = MatMul(p, b)",
        inputs="float[n,6] x",
        a=(6, 8),
        e=np.array([-1, -1, -1, -1, -1, -1, -1, 2], np.float32),
        b=(8, 3),
    )
    with pytest.raises(VerificationError, match="not finite"):
        gp.verify(gp.run(RECIPE, gp.load(made)))


def test_numbers_of_several_axes_at_once() -> None:
    made = model(
        "h = MatMul(x, a) k = Reshape(h, s) g = GatherND(k, at) y = MatMul(g, b)",
        inputs="float[2,6] x",
        output="float[3,3] y",
        a=(6, 32),
        s=np.array([2, 4, 8], np.int64),
        at=np.array([[0, 1], [1, 3], [0, 0]], np.int64),
        b=(8, 3),
    )
    program = gp.load(made)
    done = gp.run(RECIPE, program)
    assert any(group.size == 8 for group in find_groups(program.graph))
    assert done.host.parameter("b").shape == (4, 3)
    gp.verify(done)
