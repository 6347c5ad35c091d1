"""A budget is of what comes out: biases that the repair behind it makes count."""

import io

import onnx
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.cost import static

COST = {"params": static.params, "size": static.size}


class Written(nn.Module):
    """x @ W + b, written out."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.w = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.b = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.w + self.b


class Residual(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.first = linear(8, 12)
        self.norm = nn.LayerNorm(12)
        self.up, self.down = linear(12, 24), linear(24, 12)
        self.last = linear(12, 5)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.down(torch.relu(self.up(self.norm(x)))))


LINEAR = {
    "none": lambda i, o: nn.Linear(i, o, bias=False),
    "own": nn.Linear,
    "written out": Written,
}


def programs(linear):
    torch.manual_seed(0)
    module = Residual(LINEAR[linear]).eval()
    x = torch.randn(64, 3, 8)
    yield gp.load(module, (x[:2],), data=[[x.numpy()]])
    file = io.BytesIO()
    torch.onnx.export(module, (x[:2],), file, dynamo=False, dynamic_axes={"x": {0: "n"}}, input_names=["x"])
    yield gp.load(onnx.load_from_string(file.getvalue()), data=[[x.numpy()]])


def share(unit, made, given):
    after, before = (COST[unit](one.graph, one.host)() for one in (made, given))
    return after / before


@pytest.mark.parametrize("unit", ["params", "size"])
@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("repair", ["lsq", "mean"])
def test_biases_that_a_repair_makes_are_of_the_budget(unit, linear, repair):
    for program in programs(linear):
        for budget in (0.4, 0.55, 0.7, 0.85):
            recipe = f"group,score,mask{{{unit}={budget}x allocate=global}},propagate"
            bare = gp.run(recipe, program)
            made = gp.run(f"{recipe},compensate{{by={repair}}}", program)
            assert share(unit, made, program) <= budget
            if linear != "none":  # what has biases of its own gets no others, so that nothing is held back
                assert share(unit, made, program) == share(unit, bare, program)


def test_without_a_repair_behind_it_all_of_the_budget_is_for_channels():
    program = next(programs("none"))
    recipe = "group,score,mask{params=0.7x allocate=global},propagate"
    cut, repaired = gp.run(recipe, program), gp.run(f"{recipe},compensate{{bias=false}}", program)
    assert share("params", repaired, program) == share("params", cut, program)
    assert share("params", gp.run(f"{recipe},compensate", program), program) != share("params", cut, program)
    assert not [fact for fact in cut.facts if fact.__name__ == "Ahead"]
