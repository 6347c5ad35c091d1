"""Applying what a program did to a fresh copy of the same model, on either host."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import DataError, ModelError, RecipeError

RECIPE = "group,score,mask{channels=0.5x},propagate"
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)


class Net(nn.Module):
    """Two convolutions and a product that fits images of 5 x 7 alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 2, 1)
        self.head = nn.Linear(70, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).flatten(1))


def onnx_net() -> onnx.ModelProto:
    """The same with every size of the input open: nothing but an example says what fits."""
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 3, 3, 3), "b": (2, 8, 1, 1), "c": (70, 4)}
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal(shape, np.float32), name) for name, shape in shapes.items()
    ]
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[n, 3, h, w] x) => (float[n, 4] y) {
            first = Conv <pads = [1, 1, 1, 1]> (x, a)
            rectified = Relu (first)
            second = Conv (rectified, b)
            flat = Flatten (second)
            y = MatMul (flat, c)
        }""")
    model.graph.initializer.extend(weights)
    return model


@pytest.fixture(params=["torch", "onnx"])
def model(request: pytest.FixtureRequest) -> object:
    return Net() if request.param == "torch" else onnx_net()


def given(model: object) -> object:
    return (torch.from_numpy(IMAGES),) if isinstance(model, nn.Module) else [IMAGES]


@pytest.mark.parametrize("example", [True, False])
def test_apply_a_program_with_and_without_example_inputs(model: object, example: bool) -> None:
    done = gp.run(RECIPE, gp.load(model, given(model)))
    again = gp.apply(done, model, given(model) if example else None)
    assert again.graph.text() == done.graph.text()
    for name in done.graph.parameters:
        np.testing.assert_array_equal(again.host.parameter(name), done.host.parameter(name))
    np.testing.assert_array_equal(again.host.example()[0], IMAGES)  # the program's own where none is given
    np.testing.assert_array_equal(again.host.run([IMAGES])[0], done.host.run([IMAGES])[0])


def test_apply_a_program_to_the_file_of_an_onnx_model(tmp_path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(onnx_net(), path)
    done = gp.run(RECIPE, gp.load(path, IMAGES))  # one array stands for a list of one
    again = gp.apply(done, path)
    np.testing.assert_array_equal(again.host.run([IMAGES])[0], done.host.run([IMAGES])[0])


def test_a_program_is_applied_with_what_its_host_is_called_with(model: object) -> None:
    program = gp.load(model, given(model))
    args, kwargs = program.host.call_arguments([IMAGES])
    again = gp.load(model, {"args": args, "kwargs": kwargs})
    np.testing.assert_array_equal(again.host.example()[0], IMAGES)


def test_example_inputs_of_an_onnx_model_by_name() -> None:
    assert gp.load(onnx_net(), {"args": (), "kwargs": {"x": IMAGES}}).host.example()[0].shape == IMAGES.shape
    for given in ({"args": (IMAGES,), "kwargs": {"images": IMAGES}}, {"images": IMAGES}):
        with pytest.raises(DataError, match=r"no input `images`\n  hint: its inputs: x"):
            gp.load(onnx_net(), given)


def test_in_place_is_for_modules_and_examples_are_of_the_models_own_kind(tmp_path):
    module, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), torch.randn(2, 4)
    torch.onnx.export(module, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    done = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(tmp_path / "net.onnx"))
    with pytest.raises(ModelError, match=r"in_place cuts an nn\.Module, not a PosixPath"):
        gp.apply(done, tmp_path / "net.onnx", in_place=True)
    with pytest.raises(ModelError, match="made from an ONNX model"):
        gp.apply(done, module)


def test_a_compiled_module_is_the_module_in_it(tmp_path):
    module, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    compiled = torch.compile(copy.deepcopy(module), backend="eager")
    artifact = gp.compile(compiled, x, channels="0.5x", out=tmp_path / "out")
    want = artifact.program.model(x)
    torch.testing.assert_close(gp.rebuild(tmp_path / "out", copy.deepcopy(module))(x), want)
    gp.apply(tmp_path / "out", compiled, x, in_place=True)
    torch.testing.assert_close(compiled(x), want)


def test_a_plan_of_what_was_compiled_again_is_applied_to_the_first_result() -> None:
    x = torch.randn(4, 6)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
    one = gp.compile(net, x, width={"0": 8}, measure=False)
    two = gp.compile(one.program, width={"2": 12}, measure=False)
    done = gp.apply(two, one.program)
    assert torch.equal(done.model(x), two.model(x))
    torch.testing.assert_close(gp.rebuild(done, copy.deepcopy(net))(x), two.model(x))
    assert torch.equal(gp.apply(one, one.program).model(x), one.model(x))  # of what is there, or was given
    assert torch.equal(gp.apply(two, two.program).model(x), two.model(x))
    for model in (net, two.model):
        with pytest.raises(
            RecipeError, match="hint: it follows the plan of an earlier compilation: apply that one first"
        ):
            gp.apply(two, model, x)
    with pytest.raises(RecipeError, match="hint: is it the same model"):  # the first, on its own result
        gp.apply(one, one.model, x)
