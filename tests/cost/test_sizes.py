"""Costs where sizes are open are those of the example's sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.axes.dim import Dim, total
from graphprune.cost.latency.workload import works
from graphprune.cost.static import Cost, evaluate, macs, memory, params
from graphprune.errors import ShapeError
from graphprune.ir import Program
from graphprune.report.page import table

SHARED = next((path / "shared" for path in Path(__file__).parents if (path / "shared/cases").is_dir()), None)
needs_files = pytest.mark.skipif(SHARED is None, reason="no folder shared/cases beside the checkout")


def costs(program: Program) -> tuple[float, float, float, list[str]]:
    """MACs, parameters, memory and the key of every op in a latency table."""
    graph, host = program.graph, program.host
    keys = [work.family.text() + str(work.widths({}, host.sizes())) for work in works(graph, host)]
    return macs(graph, host)(), params(graph, host)(), memory(graph, host)(), keys


def onnx_net(height: Any, width: Any) -> onnx.ModelProto:
    """Strides that halve and round up, a pyramid that adds, and a product over positions."""
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 3, 3, 3), "b": (8, 8, 3, 3), "c": (8, 8, 1, 1), "d": (8, 5)}
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[n, 3, {height}, {width}] x) => (float[n, p, 5] y) {{
            half = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, a)
            some = Relu (half)
            quarter = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (some, b)
            back = ConvTranspose <strides = [2, 2]> (quarter, c)
            form = Constant <value_ints = [0, 8, -1]> ()
            rows = Reshape (back, form)
            last = Transpose <perm = [0, 2, 1]> (rows)
            y = MatMul (last, d)
        }}""")
    weights = [onnx.numpy_helper.from_array(rng.standard_normal(s, np.float32), name) for name, s in shapes.items()]
    model.graph.initializer.extend(weights)
    return model


class Halving(nn.Module):
    """Two convolutions that halve and round up, and attention over what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 6, 3, stride=2)
        self.last = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu()).flatten(2).transpose(1, 2)
        return self.last(torch.softmax(x @ x.transpose(1, 2), -1) @ x)


class Chosen(nn.Module):
    """As many rows as the data says."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x[torch.nonzero(x[:, 0] > 0).squeeze(1)]).relu())


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_an_onnx_model_costs_the_same_open_and_fixed(size: tuple[int, int]) -> None:
    image = np.zeros((1, 3, *size), np.float32)
    opened, fixed = gp.load(onnx_net("h", "w"), image), gp.load(onnx_net(*size), image)
    assert costs(opened) == costs(fixed)
    h, w = ((n + 1) // 2 for n in size)
    at, deep = h * w, ((h + 1) // 2) * ((w + 1) // 2)
    back = 4 * deep - 2 * ((h + 1) // 2) - 2 * ((w + 1) // 2) + 1  # stride 2 with a kernel of 1
    assert costs(opened)[0] == at * 8 * 27 + deep * 8 * 72 + deep * 64 + back * 40


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_a_torch_model_costs_the_same_open_and_fixed(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net, image = Halving(), torch.zeros(2, 3, *size)
    auto = torch.export.Dim.AUTO
    opened = gp.load(net, image, dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    assert any("//" in str(n) for value in opened.graph.values() for n in value.shape or ())
    assert costs(opened) == costs(gp.load(net, image, dynamic_shapes=({},)))


def test_sizes_that_depend_on_data_are_those_of_the_example() -> None:
    rows = torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0], [2, 0, 0, 0]])
    program = gp.load(Chosen(), rows)
    assert macs(program.graph, program.host)() == 2 * (4 * 6 + 6 * 2) / 3


def test_a_budget_is_met_in_truth_and_the_report_says_at_which_sizes() -> None:
    image = np.zeros((1, 3, 33, 47), np.float32)
    made = gp.compile(onnx_net("h", "w"), image, macs="0.5x", targets=["onnx"], measure=False)
    fixed = gp.apply(made.program, onnx_net(33, 47))
    whole = gp.load(onnx_net(33, 47), image)
    share = costs(fixed)[0] / costs(whole)[0]
    assert 0.4 < share <= 0.5
    assert made.report["after"]["macs"] / made.report["before"]["macs"] == pytest.approx(share, abs=1e-6)
    assert made.report["sizes"] == {"x": [1, 3, 33, 47]}
    assert "counted at the example's sizes: x 1x3x33x47." in table(made.report)


def test_a_size_that_nobody_knows_is_an_error_not_one() -> None:
    assert evaluate("4*n + m", {"n": 3, "m": 5}) == 17
    assert evaluate("(h-1)//2", {"(h-1)//2": 7}) == 7
    with pytest.raises(ShapeError, match="open size `Max\\(1,n\\)` comes to; known are n"):
        evaluate("Max(1,n)", {"n": 3})


@needs_files
def test_open_and_fixed_files_cost_the_same() -> None:
    assert SHARED is not None
    image = np.zeros((1, 3, 64, 64), np.float32)
    names = ("dynamic_hw_macs", "fixed_hw_macs")
    opened, fixed = (gp.load(SHARED / f"cases/onnx/{name}.onnx", image) for name in names)
    assert costs(opened) == costs(fixed)
    assert costs(fixed)[0] == 60_686_336


@needs_files
@pytest.mark.parametrize("name", ["ppocr_det_infer", "yunet26"])
def test_a_budget_of_a_real_detector_is_met_at_fixed_sizes(name: str, tmp_path: Path) -> None:
    assert SHARED is not None
    path = SHARED / f"data/onnx/{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no file {path.name}")
    program = gp.load(path)
    done = gp.run("group,score,mask{macs=0.5x allocate=global},propagate", program)
    shapes = [list(array.shape) for array in program.host.example()]
    counted = [macs(one.graph, one.host)() for one in (fixed(program, shapes), fixed(done, shapes))]
    assert 0.48 < counted[1] / counted[0] <= 0.5


def fixed(program: Program, shapes: list[list[int]]) -> Program:
    """The same network, its inputs declared to have those sizes."""
    model = program.host.copy().model
    for value, shape in zip(model.graph.inputs, shapes, strict=True):
        value.shape = type(value.shape)(shape)
    return gp.load(model)


def test_what_is_no_batch_divides_nothing():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(6, 5), torch.nn.Conv2d(3, 4, 3)

        def forward(self, q, image):
            return self.a(q).sum() + self.b(image).sum()

    class Swapped(Two):
        def forward(self, image, q):
            return super().forward(q, image)

    q, image = torch.randn(50, 6), torch.randn(2, 3, 9, 9)
    fixed = [
        gp.load(Two(), (q, image), dynamic_shapes=({}, {})),
        gp.load(Swapped(), (image, q), dynamic_shapes=({}, {})),
    ]
    for program in fixed:
        assert macs(program.graph, program.host)() == 50 * 6 * 5 + 2 * 4 * 7 * 7 * 27
    batched = gp.load(torch.nn.Conv2d(3, 4, 3), image)
    assert macs(batched.graph, batched.host)() == 4 * 7 * 7 * 27


def test_a_cost_is_a_sum_of_products_whichever_dims_are_asked_for_in_turn() -> None:
    a, b, c = (Dim(size) for size in (5, 7, 3))
    both = total([a, b])
    cost = Cost("MACs", ((a, b, c), (both, a), (c, c), (a, c), (b, a, c)), {}, 0.5)
    for kept in ({}, {a: 2}, {b: 4}, {a: 2, b: 4}, {c: 1}, {a: 1, b: 6, c: 2}, {a: 3}):
        x, y, z = (kept.get(dim, size) for dim, size in ((a, 5), (b, 7), (c, 3)))
        assert cost(kept) == 0.5 * (2 * x * y * z + (x + y) * x + z * z + x * z)


class Turned(nn.Module):
    """Angles of positions and a filter in buffers, a norm, and weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.Conv1d(8, 4, 1)
        self.register_buffer("angles", torch.rand(8, 6))
        self.register_buffer("smooth", torch.rand(8, 1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)) * torch.cos(self.angles)
        return self.last(nn.functional.conv1d(x, self.smooth, padding=1, groups=8))


def test_parameters_of_a_module_are_what_torch_counts() -> None:
    module = Turned().eval()
    program = gp.load(module, torch.rand(2, 3, 6))
    assert params(program.graph, program.host)() == sum(one.numel() for one in module.parameters())
    done = gp.run("group,score,mask{params=0.6x},propagate", program)
    left = sum(one.numel() for one in done.model.parameters())
    assert params(done.graph, done.host)() == left <= 0.6 * sum(one.numel() for one in module.parameters())


def test_a_network_whose_weights_are_buffers_alone_has_them_counted() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("first", torch.rand(8, 3))
            self.register_buffer("last", torch.rand(4, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(nn.functional.linear(x, self.first).relu(), self.last)

    program = gp.load(Fixed(), torch.rand(2, 3))
    assert params(program.graph, program.host)() == 8 * 3 + 4 * 8
