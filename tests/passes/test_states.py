"""States that go in and out: their widths are cut where the user says so, and nowhere else."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper as nh
import onnxruntime as ort
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import ModelError, RecipeError
from graphprune.facts import Groups
from graphprune.pipeline.compare import relative
from graphprune.pipeline.replay import replay

RECIPE = "group{states=h*},score{by=l1},mask{channels=0.5x},propagate"


class Step(nn.Module):
    """One step of a recogniser that runs as sound comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.rnn, self.head = nn.Linear(6, 7), nn.GRU(7, 8, num_layers=2), nn.Linear(8, 3)

    def forward(self, x, h):
        y, h = self.rnn(torch.relu(self.enter(x)), h)
        return self.head(y), h


@pytest.fixture
def step():
    torch.manual_seed(0)
    return Step(), (torch.randn(2, 3, 6), torch.randn(2, 3, 8))


def test_by_default_states_keep_their_width_with_the_reason(step):
    groups = gp.run("group", gp.load(*step)).fact(Groups)
    assert [group.name for group in groups] == ["enter"]
    assert {dim.name: dim.reason for dim in groups.frozen}["rnn.weight_ih_l0.1"] == "graph input"


def test_a_cut_state_goes_in_and_out_narrower_and_the_rest_computes_the_same(step):
    module, (x, h) = step
    program = gp.load(*step)
    done = gp.run(RECIPE, program)
    kept = done.plan.parameters["head.weight"]["1"]["keep"]
    assert len(kept) == 4 and done.host.example()[1].shape == (2, 3, 4)
    assert {note for note in done.notes if "now, it was" in note} == {
        "the input `h` is 2x3x4 now, it was 2x3x8",
        f"the output `{program.graph.outputs[1].name}` is 2x3x4 now, it was 2x3x8",
    }
    assert all(check.holds for check in gp.verify(done))
    masked = replay(done.plan, program.source, masked=True)
    y, state = masked.host.run([x.numpy(), h.numpy()])
    for given in (h, h[..., kept]):  # as wide as it was, and as wide as it is
        mine, own = done.host.run([x.numpy(), given.numpy()])
        assert relative(y, mine) < 1e-6 and relative(state[..., kept], own) < 1e-6
    assert relative(module(x, h)[0].detach().numpy(), y) > 1e-3


def test_the_plan_cuts_the_class_too(step):
    module, (x, h) = step
    done = gp.run(RECIPE, gp.load(*step))
    whole = copy.deepcopy(module)
    checked = gp.apply(done, module, in_place=True)
    kept = done.plan.parameters["head.weight"]["1"]["keep"]
    y, state = module(x, h[..., kept])
    mine, own = (torch.from_numpy(out) for out in checked.host.run([x.numpy(), h.numpy()]))
    assert torch.allclose(y, mine, atol=1e-6) and torch.allclose(state, own, atol=1e-6)
    assert whole.rnn.hidden_size == 8 and module.rnn.hidden_size == 4


def test_data_of_the_old_width_still_fits_the_layers(step):
    module, (x, h) = step
    data = [(torch.randn(2, 3, 6).numpy(), torch.randn(2, 3, 8).numpy()) for _ in range(3)]
    program = gp.load(module, (x, h), data=data)
    done = gp.run(f"{RECIPE.replace('l1', 'obs')},compensate", program)
    plain = gp.run(RECIPE.replace("l1", "obs"), program)
    assert all(check.holds for check in gp.verify(done))
    gap = {
        name: sum(relative(program.host.run(b)[0], one.host.run(b)[0]) for b in data)
        for name, one in (("fit", done), ("cut", plain))
    }
    assert gap["fit"] < gap["cut"]


def test_a_width_that_another_input_has_stays(step):
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRUCell(6, 8), nn.Linear(8, 3)

        def forward(self, x, h, g):
            return self.head(self.cell(x, h) + g)

    program = gp.load(Added(), (torch.randn(3, 6), torch.randn(3, 8), torch.randn(3, 8)))
    with pytest.raises(ModelError, match=r"cell\.weight_ih\.1: graph input"):
        gp.run("group{states=h}", program)
    assert [group.size for group in gp.run("group{states=h|g}", program).fact(Groups)] == [8]


class Flat(nn.Module):
    """Its state comes out, and may come in, as a list of all samples' channels."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x, h):
        h = torch.tanh(self.enter(x) + h.reshape(x.shape[0], 8))
        return self.head(h), h.reshape(-1)


def test_a_cut_state_that_comes_out_flat_is_compared_at_the_example_s_sizes():
    program = gp.load(Flat(), (torch.randn(3, 6), torch.randn(3, 8)))
    done = gp.run(RECIPE, program)
    assert program.graph.outputs[1].shape == (f"8*{program.graph.inputs[0].shape[0]}",)
    assert [out.shape for out in done.host.run(done.host.example())] == [(3, 3), (12,)]
    assert all(check.holds for check in gp.verify(done))


def test_a_state_that_comes_in_flat_stays():
    """Which positions go depends on the batch, and what is cut of an input is a fixed list."""
    batch = torch.export.Dim("n", min=2, max=9)
    program = gp.load(Flat(), (torch.randn(3, 6), torch.randn(24)), dynamic_shapes=[{0: batch}, {0: 8 * batch}])
    with pytest.raises(ModelError, match="enter: graph input"):
        gp.run("group{states=h}", program)


def test_an_input_that_is_not_there_is_an_error(step):
    with pytest.raises(RecipeError, match="`j` matches no input"):
        gp.run("group{states=j}", gp.load(*step))


def test_in_onnx_the_file_says_the_new_widths(tmp_path: Path):
    """As exporters of Keras write it: the states of two layers in one tensor."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[1,1,6] x, float[2,1,5] h, float[2,1,5] c) '
        "=> (float[1,1,3] y, float[2,1,5] hs, float[2,1,5] cs) {"
        "h0, h1 = Split<axis=0>(h) c0, c1 = Split<axis=0>(c) a, ha, ca = LSTM<hidden_size=5>(x, W, R, B, , h0, c0)"
        "s = Squeeze(a, one) b, hb, cb = LSTM<hidden_size=5>(s, U, S, B2, , h1, c1) t = Squeeze(b, one)"
        "y = MatMul(t, v) hs = Concat<axis=0>(ha, hb) cs = Concat<axis=0>(ca, cb) }"
    )
    shapes = {
        "W": (1, 20, 6),
        "R": (1, 20, 5),
        "B": (1, 40),
        "U": (1, 20, 5),
        "S": (1, 20, 5),
        "B2": (1, 40),
        "v": (5, 3),
    }
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model.graph.initializer.extend(nh.from_array(array, name) for name, array in arrays.items())
    model.graph.initializer.append(nh.from_array(np.array([1]), "one"))
    done = gp.run("group{states=h|c},score{by=l1},mask{channels=0.6x},propagate", gp.load(model))
    assert all(check.holds for check in gp.verify(done))
    done.host.save(tmp_path / "small.onnx")
    onnx.checker.check_model(tmp_path / "small.onnx", full_check=True)
    session = ort.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    widths: dict[str, object] = {
        value.name: [*value.shape] for value in (*session.get_inputs(), *session.get_outputs())
    }
    assert widths == {"x": [1, 1, 6], "h": [2, 1, 3], "c": [2, 1, 3], "y": [1, 1, 3], "hs": [2, 1, 3], "cs": [2, 1, 3]}
