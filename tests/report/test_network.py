"""The network in the report, from left to right: its layers, what each had and has, and where it is drawn."""

from __future__ import annotations

import itertools
import re
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.driver.layers import layers
from graphprune.report.network import ACROSS, LIMIT, blocks, drawing

RECIPE = "group,score,mask{macs=0.5x},propagate"


@pytest.mark.parametrize("name", ["MLP", "Residual", "Attention"])
def test_layers_add_up_to_what_the_report_says_of_the_whole(name: str) -> None:
    source = nets.program(name)
    artifact = gp.compile(source, recipe=RECIPE, measure=False)
    found = artifact.report["network"]["layers"]
    for side, k in (("before", 0), ("after", 1)):
        for unit in ("params", "macs"):
            assert sum(layer[unit][k] for layer in found) == artifact.report[side][unit], (side, unit)
    for layer in found:
        assert layer["channels"][1] <= layer["channels"][0]


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.body = nn.ModuleDict({"up": nn.Linear(16, 32), "down": nn.Linear(32, 16)})
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.body["down"](F.relu(self.body["up"](x)))
        out: Tensor = self.head(self.norm(x))
        return out


def skip() -> dict[str, Any]:
    program = gp.load(Skip(), torch.randn(2, 8))
    return layers(program, gp.run(RECIPE, program))


def test_edges_are_what_layers_read() -> None:
    found = skip()
    names = [layer["module"] + "." + layer["name"] if layer["module"] else layer["name"] for layer in found["layers"]]
    assert [one.replace(".linear", "") for one in names][:3] == ["stem", "body.up", "body.down"]
    assert [layer["kind"] for layer in found["layers"]] == ["linear", "linear", "linear", "pointwise", "linear"]
    assert sorted(map(tuple, found["edges"])) == [(0, 1), (0, 3), (1, 2), (2, 3), (3, 4)]
    assert found["layers"][1]["channels"][1] < 32 and found["layers"][0]["channels"] == [16, 16]


def test_the_drawing_goes_from_left_to_right_and_edges_avoid_bars() -> None:
    found = skip()
    drawn = drawing(found)
    assert drawn is not None
    middle = [bar["middle"] for bar in drawn["bars"]]
    assert all(middle[a][0] < middle[b][0] for a, b in found["edges"])
    assert len({tuple(place) for place in middle}) == len(middle)
    lines = [[tuple(map(float, point.split(","))) for point in line.split()] for line in drawn["lines"]]
    for (a, b), line in zip(found["edges"], lines, strict=True):
        assert list(line[0]) == middle[a] and list(line[-1]) == middle[b]
        assert {x2 - x1 for (x1, _), (x2, _) in itertools.pairwise(line)} == {ACROSS}
        assert not {tuple(place) for place in middle} & set(line[1:-1])
    for bar, layer in zip(drawn["bars"], found["layers"], strict=True):
        assert (
            bar["top"] >= 0
            and bar["top"] + bar["tall"] <= drawn["height"]
            and bar["x"] + bar["width"] <= drawn["width"]
        )
        if not bar["joins"]:
            assert bar["kept"] / bar["tall"] == pytest.approx(layer["channels"][1] / layer["channels"][0], abs=0.02)


def test_blocks_hold_every_layer_once() -> None:
    found = skip()
    rows = [row for block in blocks(found) for row in block["layers"]]
    assert len(rows) == sum(bool(layer["macs"][0] or layer["params"][0]) for layer in found["layers"])
    assert any(re.fullmatch(r"32 to \d+", row["channels"]) for row in rows)


def test_what_is_too_large_is_listed_and_not_drawn() -> None:
    layer = {"name": "a", "module": "", "kind": "linear", "channels": [4, 2], "params": [8, 4], "macs": [8, 4]}
    many = {"layers": [layer | {"name": str(k)} for k in range(LIMIT + 1)], "edges": []}
    assert drawing(many) is None and drawing({"layers": [layer], "edges": []}) is None
    assert sum(len(block["layers"]) for block in blocks(many)) == LIMIT + 1
