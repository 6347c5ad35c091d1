"""The network in the report, from left to right: its layers, what each had and has, and where it is drawn."""

from __future__ import annotations

import itertools
import re
from typing import Any
from xml.etree import ElementTree

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.coupling.groups import find_groups
from graphprune.driver.layers import channels, kinds, layers
from graphprune.errors import OutputError
from graphprune.report.network import ACROSS, LIMIT, blocks, drawing, name_of, picture

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


def test_the_picture_of_inspect_has_a_colour_per_group_and_says_what_is_frozen() -> None:
    program = gp.load(Skip(), torch.randn(2, 8))
    groups = find_groups(program.graph)
    svg = picture(layers(program, program), channels(program, groups))
    tree = ElementTree.fromstring(svg)
    assert tree.tag.endswith("svg")
    titles = {one.text for one in tree.iter() if one.tag.endswith("title")}
    assert any("body.up" in str(one) and "32 of body.up" in str(one) for one in titles)
    assert any("head" in str(one) and "4 frozen, reaches the graph output" in str(one) for one in titles)
    fills = [one.get("fill") for one in tree.iter() if one.get("fill")]
    ups = len(groups)
    assert len(set(fills)) == ups == svg.count("channels, made by")
    assert svg == picture(layers(program, program), channels(program, groups))


def test_long_names_of_groups_have_room() -> None:
    layer = {"module": "", "kind": "linear", "channels": [4, 4], "params": [8, 8], "macs": [8, 8]}
    layers = [{**layer, "op": str(k), "name": str(k)} for k in range(40)]
    own = {str(k): [{"group": f"{k}{'n' * 60}", "frozen": None, "count": 4}] for k in range(40)}
    svg = picture({"layers": layers, "edges": [(k, k + 1) for k in range(39)]}, own)
    at = {float(x) for x in re.findall(r'<g><rect fill="[^"]+" x="([\d.]+)"[^>]*width="10"', svg)}
    assert at == {8.0} or min(b - a for a, b in itertools.pairwise(sorted(at))) > 60 * 7


def test_a_layer_of_several_groups_has_a_part_for_each() -> None:
    program = nets.program("SplitUneven")
    groups = find_groups(program.graph)
    found = channels(program, groups)
    joined = next(own for own in found.values() if len(own) > 1)
    assert [one["count"] for one in joined] == [3, 5, 4] and len({one["group"] for one in joined}) == 3
    svg = ElementTree.fromstring(picture(layers(program, program), found))
    parts = [len([rect for rect in bar if rect.tag.endswith("rect")]) for bar in svg if bar.tag.endswith("}g")]
    assert max(parts) == 3


def test_names_in_the_picture_are_text_and_no_more() -> None:
    layer = {"op": "a", "module": "", "kind": "linear", "channels": [4, 4], "params": [8, 8], "macs": [8, 8]}
    one = {
        "layers": [layer | {"name": "</title><script>x</script>"}, layer | {"op": "b", "name": "b"}],
        "edges": [(0, 1)],
    }
    own = {"a": [{"group": "<b>&\x1b", "frozen": None, "count": 4}]}
    svg = picture(one, own)
    ElementTree.fromstring(svg)
    assert "<script" not in svg and "<b>" not in svg and "\x1b" not in svg
    with pytest.raises(OutputError, match=r"1 layers are not drawn \(2 at least\)"):
        picture({"layers": [layer | {"name": "a"}], "edges": []}, {})


def test_times_are_of_layers_and_of_kinds_of_ops() -> None:
    program = gp.load(Skip(), torch.randn(2, 8))
    done = gp.run(RECIPE, program)
    names = [op.name for op in program.graph.ops]
    before = {name: float(k + 1) for k, name in enumerate(names)}
    after = {name: ms / 2 for name, ms in before.items() if name != names[0]}
    found = layers(program, done, (before, after))["layers"]
    assert all(layer["ms"] == [before[layer["op"]], after.get(layer["op"], 0.0)] for layer in found)
    each = kinds(program, done, (before, after))
    assert sum(one["ms"][0] for one in each) == sum(before.values())
    assert sum(one["ms"][1] for one in each) == sum(after.values())
    assert [one["ms"][0] for one in each] == sorted((one["ms"][0] for one in each), reverse=True)
    rows = [row for block in blocks({"layers": found}) for row in block["layers"]]
    assert all(" ms to " in row["ms"] for row in rows)


def test_layers_of_a_file_that_numbers_its_nodes_are_called_by_their_weights() -> None:
    named = torch.onnx.export(Skip().eval(), (torch.randn(2, 8),), dynamo=True, verbose=False, optimize=False)
    assert named is not None
    for k, node in enumerate(named.model.graph):
        node.name = str(k)
        for value in node.outputs:
            value.name = value.name if value.is_graph_output() else str(1000 + k)
    program = gp.load(named.model)
    names = [name_of(layer) for layer in layers(program, program)["layers"] if layer["macs"][0]]
    assert names == ["stem", "body.up", "body.down", "head"]
