"""The report's drawing in strips: a block closes to one box, and the lines of the network meet whatever is closed."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_report import changed
from torch import Tensor, nn

import graphprune as gp
from graphprune.driver.layers import layers
from graphprune.report.network import ACROSS, block_of, drawing
from graphprune.report.page import render
from graphprune.report.strips import CLOSED, INSET, strips


class Down(nn.Module):
    """Two blocks down, two up, and what skips from one to the other; then a residual block."""

    def __init__(self) -> None:
        super().__init__()
        names = {"down1": (8, 8), "down2": (8, 12), "up2": (12, 8), "up1": (16, 8)}
        for name, (taken, given) in names.items():
            setattr(self, name, nn.Sequential(nn.Linear(taken, given), nn.ReLU(), nn.Linear(given, given), nn.ReLU()))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        x = self.up1(torch.cat([self.up2(self.down2(first)), first], 1))
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x)
        return out


def network(model: nn.Module) -> dict[str, Any]:
    torch.manual_seed(0)
    program = gp.load(model.eval(), torch.randn(2, 8))
    return layers(program, gp.run("group,score,mask{channels=0.5x},propagate", program))


def unnamed(found: dict[str, Any]) -> dict[str, Any]:
    """As ONNX files often are: numbers for names."""
    return {**found, "layers": [{**one, "module": "", "name": f"n{k}"} for k, one in enumerate(found["layers"])]}


def chain() -> nn.Module:
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))


def heights(lines: list[str], x: float) -> set[float]:
    """Where lines cross a vertical one."""
    found = set()
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.split()]
        for (x1, y1), (x2, y2) in pairwise(points):
            if x1 <= x <= x2:
                found.add(round(y1 + (y2 - y1) * (x - x1) / (x2 - x1), 1))
    return found


@pytest.mark.parametrize("named", [True, False])
def test_lines_meet_at_the_edges_whatever_is_closed(named: bool) -> None:
    found = network(Down()) if named else unnamed(network(Down()))
    drawn = drawing(found)
    assert drawn is not None
    made = strips(found, drawn)
    assert any(one["closed"] for one in made)
    for one in made:
        right = one["left"] + one["width"]
        if one["closed"]:
            assert heights(one["closed"]["lines"], 0) == heights(drawn["lines"], one["left"])
            assert heights(one["closed"]["lines"], CLOSED) == heights(drawn["lines"], right)
        assert heights(one["lines"], one["left"]) == heights(drawn["lines"], one["left"])
        assert heights(one["lines"], right) == heights(drawn["lines"], right)


def test_strips_hold_every_bar_once_side_by_side() -> None:
    found = network(Down())
    drawn = drawing(found)
    assert drawn is not None
    made = strips(found, drawn)
    assert [bar["middle"] for one in made for bar in one["bars"]] != []
    assert sorted(bar["x"] for one in made for bar in one["bars"]) == sorted(bar["x"] for bar in drawn["bars"])
    for before, after in pairwise(made):
        assert before["left"] + before["width"] == after["left"]
    assert made[0]["left"] == ACROSS / 2 and sum(one["width"] for one in made) + ACROSS == drawn["width"]


def test_blocks_are_those_of_names_and_what_skips_one_passes_its_box() -> None:
    found = network(Down())
    drawn = drawing(found)
    assert drawn is not None
    made = {one["label"]: one for one in strips(found, drawn) if one["closed"]}
    assert [*made] == ["down1", "down2", "up2", "up1", "blocks.0", "blocks.1"]
    for name in ("down2", "up2"):  # past which `first` goes
        box = made[name]["closed"]
        past = [line for line in box["lines"] if line.startswith("0,") and f" {CLOSED}," in line]
        assert len(past) == 1
        lane = float(past[0].split()[1].split(",")[1])
        assert not box["top"] <= lane <= box["top"] + box["tall"]
    assert made["down1"]["closed"]["lines"][0].startswith(f"{CLOSED - INSET},")  # nothing leads to the first
    assert made["up2"]["title"].startswith("up2: 2 layers, 176 to ")
    kept = made["up2"]["closed"]["kept"] / made["up2"]["closed"]["tall"]
    inside = [layer["macs"] for layer in found["layers"] if block_of(layer) == "up2"]
    assert kept == pytest.approx(sum(after for _, after in inside) / sum(before for before, _ in inside), abs=0.01)


def test_without_names_a_block_ends_where_one_layer_is_read() -> None:
    found = unnamed(network(Down()))
    drawn = drawing(found)
    assert drawn is not None
    closed = [one for one in strips(found, drawn) if one["closed"]]
    assert len(closed) == 3  # what the skip spans, and two residual blocks
    assert {len(one["bars"]) for one in closed[1:]} == {3}


def test_a_chain_has_nothing_to_close() -> None:
    found = unnamed(network(chain()))
    drawn = drawing(found)
    assert drawn is not None
    (whole,) = strips(found, drawn)
    assert whole["closed"] is None and len(whole["bars"]) == 4


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("layer1.0.conv1", "layer1.0"),
        ("transformer.h.3.attn.q", "transformer.h.3"),
        ("features.3", "features"),
        ("encoder.stem.conv", "encoder.stem"),
        ("encoder.conv", "encoder"),
        ("fc", "fc"),
        ("/layer1/layer1.0/conv1/Conv", "layer1.layer1.0"),
    ],
)
def test_the_block_of_a_name(name: str, block: str) -> None:
    module, _, own = name.rpartition(".")
    assert block_of({"module": module, "name": own, "macs": [1, 1], "params": [1, 1]}) == block


def test_the_page_closes_blocks_without_a_script_and_escapes_their_names() -> None:
    found = network(Down())
    page = render(changed(network=found))
    assert "<script" not in page and len(re.findall(r'<details class="strip" open>', page)) == 6
    evil = [{**one, "module": one["module"].replace("down1", '"><script>x</script>')} for one in found["layers"]]
    page = render(changed(network={**found, "layers": evil}))
    assert "<script" not in page
    long = [{**found["layers"][0], "module": f"blocks.{k // 2}", "name": f"fc{k}"} for k in range(60)]
    page = render(changed(network={"layers": long, "edges": [(k, k + 1) for k in range(59)]}))
    assert page.count('<details class="strip">') == 30  # closed, where the whole is wider than the page
