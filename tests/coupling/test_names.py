"""Groups are called by the names of layers, parameters and ops, wherever the user sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.coupling.groups import find_groups
from graphprune.errors import RecipeError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Linear(8, 32)
        self.mid = nn.ModuleList([nn.Linear(32, 24), nn.Linear(24, 16)])
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enc(x))
        for layer in self.mid:
            x = F.relu(layer(x))
        out: Tensor = self.head(x)
        return out


@pytest.fixture(scope="module")
def program() -> gp.Program:
    torch.manual_seed(0)
    return gp.load(Net(), torch.randn(4, 8))


def free(program: gp.Program, **options: list[str]) -> list[str]:
    return [group.name for group in find_groups(program.graph, **options).groups]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("enc", ["mid.0", "mid.1"]),
        ("mid.1", ["enc"]),  # a layer with what it reads
        ("mid", []),
        ("mid.*", []),
        ("head", ["enc", "mid.0"]),
        ("mid.0.weight", ["mid.1"]),
        ("mid.0.weight[0]", ["enc", "mid.1"]),  # one axis
        ("*.0.weight[0]", ["enc", "mid.1"]),
        ("mid.0.bias", ["enc", "mid.1"]),
        ("?nc", ["mid.0", "mid.1"]),
    ],
)
def test_freeze(program: gp.Program, pattern: str, left: list[str]) -> None:
    assert free(program, freeze=[pattern]) == left
    frozen = {dim.name: dim.reason for dim in find_groups(program.graph, freeze=[pattern]).frozen}
    asked = [name for name, reason in frozen.items() if reason == f"asked for by `{pattern}`"]
    assert set(asked) == {"enc", "mid.0", "mid.1"} - set(left)


@pytest.mark.parametrize(
    ("pattern", "left"), [("enc", ["enc"]), ("mid", ["mid.0", "mid.1"]), ("mid.0.weight[0]", ["mid.0"]), ("head", [])]
)
def test_only_is_of_layers_whose_outputs_may_go(program: gp.Program, pattern: str, left: list[str]) -> None:
    assert free(program, only=[pattern]) == left
    assert free(program, only=[pattern], freeze=["enc"]) == [name for name in left if name != "enc"]


@pytest.mark.parametrize("option", ["freeze", "only"])
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest(program: gp.Program, option: str) -> None:
    with pytest.raises(RecipeError, match=r"`mod.0` matches no group") as raised:
        gp.run(f"group{{{option}=enc|mod.0}}", program)
    assert "`mid.0`" in str(raised.value)
    with pytest.raises(RecipeError, match="matches no group"):
        gp.run(f"group{{{option}=x*}}", program)


def test_of_onnx_files_nodes_too(tmp_path: Path) -> None:
    import onnx_ir as ir

    path = tmp_path / "net.onnx"
    torch.onnx.export(Net().eval(), (torch.randn(4, 8),), path, dynamo=True, verbose=False)
    model = ir.load(path)
    gemms = [node for node in model.graph if node.op_type == "Gemm"]
    gemms[1].name = "second"
    host = gp.load(model)
    whole = free(host)
    weight = gemms[1].inputs[1]
    assert weight is not None and weight.name is not None
    assert len(whole) == 3
    assert free(host, freeze=["second"]) == free(host, freeze=[weight.name]) == whole[2:]
    assert free(host, only=["second"]) == whole[1:2]
