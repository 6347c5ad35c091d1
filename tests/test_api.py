"""The Python interface on the torch host: load, run, compile, apply, verify."""

from __future__ import annotations

import json
import sys

import nets
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import graphprune as gp
from graphprune.errors import BudgetError, DataError, ModelError, OutputError, RecipeError, TargetError

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return nets.randomise(nets.Residual())


# ---- load --------------------------------------------------------------------------------------------


def test_load_takes_a_module_a_program_and_a_file(module, tmp_path):
    exported = torch.export.export(module.eval(), (IMAGES,))
    torch.export.save(exported, tmp_path / "net.pt2")
    programs = [
        gp.load(module, IMAGES),
        gp.load(module, (IMAGES,)),
        gp.load(exported),
        gp.load(tmp_path / "net.pt2"),
        gp.load(str(tmp_path / "net.pt2")),
    ]
    want = module(IMAGES).detach()
    for program in programs:
        assert isinstance(program, gp.Program)
        torch.testing.assert_close(program.model(IMAGES), want)


FACTORY = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (torch.randn(2, 4),)

def wrong():
    return nn.Linear(4, 6)

def fails():
    return 1 / 0

number = 3
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_nets"
    sys.modules.pop("my_nets", None)


def test_load_takes_a_factory(factory):
    program = gp.load(f"{factory}:build")
    assert program.model(torch.randn(5, 4)).shape == (5, 2)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("my_nets:missing", "my_nets:missing: `missing` is not there\n  hint: known: build, fails, wrong"),
        ("no_such_package.nets:build", "No module named 'no_such_package'"),
        ("my_nets:wrong", "my_nets:wrong returned Linear"),
        ("my_nets:fails", "ZeroDivisionError: division by zero"),
        ("my_nets:number", "my_nets:number"),
        ("nowhere.onnx", "nowhere.onnx: no such file"),
        ("nowhere.pt2", "nowhere.pt2: no such file"),
        ("nowhere", "nowhere: no such file"),
        ("my_nets.py", "my_nets.py: a Python file, of which a function is to be named"),
        ("", "an empty name is no model"),
        (":", ":"),
    ],
)
def test_what_is_no_model_is_one_clear_error(factory, what, message):
    with pytest.raises(ModelError) as error:
        gp.load(what)
    assert message in str(error.value)


@pytest.mark.parametrize("what", [None, 3, [], {"a": 1}, lambda x: x, np.zeros(3), torch.zeros(3)])
def test_objects_that_are_no_model(what):
    with pytest.raises(ModelError, match="is not a model"):
        gp.load(what)


def test_a_module_needs_inputs(module):
    with pytest.raises(ModelError, match="needs example inputs"):
        gp.load(module)


def test_nan_weights_and_empty_axes_are_refused(module):
    bad = nets.Residual()
    with torch.no_grad():
        bad.conv3.weight[0, 0, 0, :2] = float("nan")
    with pytest.raises(ModelError, match=r"weight `conv3.weight` has 2 NaN of 378 numbers"):
        gp.load(bad, IMAGES)
    bad = nets.Residual()
    bad.bn0.running_var.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"weight `bn0.running_var` has 6 NaN of 6 numbers"):
        gp.load(bad, IMAGES)
    with pytest.raises(ModelError, match="axis of size zero"):
        gp.load(nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 2)), torch.randn(2, 4))
    with pytest.raises(ModelError, match="axis of size zero"):
        gp.load(nn.Linear(4, 2), torch.randn(2, 0, 4))


def test_data_is_checked_when_loading(module):
    assert len(gp.load(module, IMAGES, data=np.zeros((70, 3, 8, 8), np.float32)).data) == 2
    with pytest.raises(DataError, match="takes Nx3x8x8, the calibration array is 4x1x8x8"):
        gp.load(module, IMAGES, data=np.zeros((4, 1, 8, 8), np.float32))


# ---- run, compile, apply -----------------------------------------------------------------------------


def test_run_takes_text_and_recipes(module):
    program = gp.load(module, IMAGES)
    text = "group,score{by=l1},mask{channels=0.5x},propagate"
    a, b = gp.run(text, program), gp.run(gp.Recipe.parse(text), program)
    assert a.plan == b.plan
    assert max(check.error for check in gp.verify(a)) <= 1e-12
    assert program.plan == {}


@pytest.fixture(scope="module")
def artifact(module, tmp_path_factory):
    data = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
    out = tmp_path_factory.mktemp("out") / "small"
    return gp.compile(module, (IMAGES,), macs="0.5x", data=data, out=out, seed=7)


def test_compile_writes_the_whole_folder(artifact):
    names = {path.name for path in artifact.path.iterdir()}
    assert {"model.pt2", "plan.json", "report.json", "report.html"} <= names
    assert not [path for path in artifact.path.parent.iterdir() if path != artifact.path]
    report = json.loads((artifact.path / "report.json").read_text())
    assert report == json.loads(json.dumps(artifact.report))
    assert {"before", "after", "groups", "frozen", "passes", "verification", "recipe", "versions", "seed"} <= set(
        report
    )
    for side in ("before", "after"):
        assert {"params", "macs", "weights_bytes", "latency_ms", "per_target"} <= set(report[side])
    assert report["seed"] == 7
    assert report["after"]["macs"] <= 0.5 * report["before"]["macs"]
    assert report["after"]["params"] == sum(p.numel() for p in artifact.program.model.parameters())
    read = {name: artifact.program.host.parameter(name) for name in artifact.program.graph.parameters}
    assert report["after"]["weights_bytes"] == sum(weight.nbytes for weight in read.values())
    assert report["verification"]["max_relative_error"] <= 1e-12
    assert report["verification"]["dtype"] == "float64"
    assert [step["name"] for step in report["passes"]] == [
        step.name for step in gp.Recipe.parse(report["recipe"]).steps
    ]
    assert {row["name"] for row in report["frozen"]} == {"stem.weight[1]", "fc"}
    assert all(row["reason"] and row["size"] for row in report["frozen"])


def test_the_recipe_of_the_report_reproduces_the_plan(artifact, module):
    data = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
    program, _ = gp.hold_back(gp.load(module, IMAGES, data=data, seed=7))
    again = gp.run(artifact.report["recipe"], program)
    assert again.plan["parameters"] == artifact.program.plan["parameters"]
    for one, other in zip(again.plan["steps"], artifact.program.plan["steps"], strict=True):
        assert {k: v for k, v in one.items() if k != "weights"} == {k: v for k, v in other.items() if k != "weights"}
        for name, weight in other.get("weights", {}).items():
            assert one["weights"][name].tobytes() == weight.tobytes(), name


def test_apply_gives_the_same_bytes(artifact, module):
    for plan in (artifact.path / "plan.json", str(artifact.path / "plan.json"), artifact.program.plan):
        again = gp.apply(plan, module, (IMAGES,))
        for key, tensor in artifact.program.model.state_dict().items():
            assert again.model.state_dict()[key].numpy().tobytes() == tensor.numpy().tobytes(), key
    assert max(check.error for check in gp.verify(again)) <= 1e-12
    written = gp.load(artifact.path / "model.pt2")
    assert torch.equal(written.model(IMAGES), again.model(IMAGES))


def test_plan_json_alone_gives_the_masked_and_the_pruned_network(artifact, module):
    """With the user's module, plan.json with its weights, and torch; nothing of graphprune."""
    plan = json.loads((artifact.path / "plan.json").read_text())
    fitted = load_file(artifact.path / "plan.safetensors")
    assert plan["version"] == 2
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    pruned = artifact.program.model.state_dict()
    compensated = {"block.conv2.bias", "down.bias", "conv3.bias", "last.bias", "fc.bias", "block.conv1.bias"}
    for name, axes in plan["parameters"].items():
        cut = state[name]
        for axis, entry in axes.items():
            assert set(entry) == {"role", "keep"} and entry["role"] in ("writer", "reader", "carrier")
            cut = cut.index_select(int(axis), torch.tensor(entry["keep"]))
        cut = fitted.get(f"1:{name}", cut)
        assert torch.equal(cut, pruned[name]) or name in compensated
        assert cut.shape == pruned[name].shape
    assert {name.partition(":")[2] for name in fitted} >= {"block.conv2.weight", "down.weight", "fc.weight"}


def test_plans_that_are_none_are_refused(tmp_path, module):
    for number, content in enumerate(["", "[]", "{}", '{"version": 3, "steps": []}', '{"version": true}', "\x00"]):
        path = tmp_path / f"{number}.json"
        path.write_text(content)
        with pytest.raises(RecipeError, match=f"{number}.json: not a plan"):
            gp.apply(path, module, (IMAGES,))
    with pytest.raises(RecipeError, match=r"missing.json: no such file"):
        gp.apply(tmp_path / "missing.json", module, (IMAGES,))


def test_a_plan_of_another_network_is_refused(artifact):
    with pytest.raises(RecipeError, match="which this model does not have"):
        gp.apply(
            artifact.path / "plan.json", nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(2, 4)
        )


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"macs": "0.5x", "params": "0.5x"}, RecipeError, "one budget or a recipe, not 2"),
        ({"macs": "0.5x", "recipe": "group"}, RecipeError, "one budget or a recipe, not 2"),
        ({"macs": "1x"}, BudgetError, "macs=1x is not a budget"),
        ({"channels": "0x"}, BudgetError, "channels=0x is not a budget"),
        ({"params": "0.001x"}, BudgetError, "cannot be met"),
        ({"latency": "2x"}, BudgetError, "latency=2x is not a budget"),
        ({"recipe": "grup"}, RecipeError, "unknown pass `grup`"),
        ({"macs": "0.5x", "targets": ["tmv"]}, TargetError, "unknown target `tmv`"),
        ({"macs": "0.5x", "data": np.zeros((2, 2))}, DataError, "takes Nx3x8x8"),
    ],
)
def test_bad_input_leaves_nothing_behind(module, tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        gp.compile(module, (IMAGES,), out=tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_kept(module, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputError, match="out exists"):
            gp.compile(module, (IMAGES,), out=tmp_path / "out", force=force)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        gp.compile(module, (IMAGES,), out=tmp_path / "file" / "out")


def test_force_replaces_what_compile_wrote(module, tmp_path):
    options = {"channels": "0.5x", "out": tmp_path / "out", "measure": False}
    gp.compile(module, (IMAGES,), **options)
    with pytest.raises(OutputError, match="exists"):
        gp.compile(module, (IMAGES,), **options)
    gp.compile(module, (IMAGES,), **{**options, "channels": "0.3x"}, force=True)
    assert "channels=0.3x" in (tmp_path / "out" / "plan.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_does_not_replace_what_is_read(module, tmp_path):
    options = {"channels": "0.5x", "measure": False, "out": tmp_path / "out"}
    gp.compile(module, (IMAGES,), **options)
    there = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(OutputError, match="what is read is in it"):
        gp.compile(tmp_path / "out" / "model.pt2", **options, force=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == there


@pytest.mark.parametrize(("text", "kept"), [("0.5x", (8, 4)), ("0.25x", (4, 2))])
def test_a_share_of_narrow_layers_is_not_rounded_away_by_the_target(text, kept):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    made = gp.compile(net, (IMAGES,), channels=text, targets=["onnx"], measure=False)
    model = made.program.model
    assert (model.get_parameter("0.weight").shape[0], model.get_parameter("2.weight").shape[0]) == kept


def test_without_verification_the_report_says_so(module):
    made = gp.compile(module, (IMAGES,), channels="0.5x", verify=False, measure=False)
    assert made.report["verification"]["used"] is False
    assert made.path is None


def test_every_error_has_one_base():
    assert all(
        issubclass(kind, gp.GraphpruneError)
        for kind in (BudgetError, DataError, ModelError, OutputError, RecipeError, TargetError)
    )


def test_an_onnx_model_is_loaded_as_one():
    from onnx import TensorProto, helper, numpy_helper

    weights = [
        numpy_helper.from_array(np.random.default_rng(0).standard_normal(shape).astype(np.float32), name)
        for name, shape in (("a", (4, 6)), ("b", (6, 2)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["y"]),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("MatMul", ["z", "b"], ["out"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 4), ("out", 2))
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    program = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(model))
    assert program.host.kind == "onnx"
    assert max(check.error for check in gp.verify(program)) <= 1e-5
    assert isinstance(model, onnx.ModelProto)


def test_an_input_that_only_says_how_often_is_read():
    class Regulator(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(6, 12), torch.nn.Linear(12, 3)

        def forward(self, x, times):
            return self.last(torch.relu(torch.repeat_interleave(self.first(x), times, dim=0, output_size=9)))

    program = gp.load(Regulator().eval(), (torch.randn(5, 6), torch.tensor([1, 2, 3, 2, 1])))
    assert program.notes == ()
    gp.verify(gp.run("group,score,mask{channels=0.5x},propagate", program))
