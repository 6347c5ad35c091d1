"""A folder as newcomers have it: a few networks, data that fits and data that does not, files of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image

NETS = """
import torch
from torch import nn

A_NUMBER = 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.inner(torch.relu(self.conv(x)))).mean((2, 3)))


def net():
    torch.manual_seed(0)
    return Net().eval(), (torch.randn(2, 3, 8, 8),)


def leaves():
    raise SystemExit(0)


def judges(network):
    raise SystemExit(0)


def infinite():
    module, example = net()
    module.conv.weight.data[0, 0, 0, 0] = float("inf")
    return module, example


def chooses():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.where(self.b(torch.relu(self.a(x))) > 0, 1.0, 0.0))

    torch.manual_seed(0)
    return Chooses().eval(), (torch.randn(2, 4),)


def other():
    torch.manual_seed(1)
    return Net().eval(), (torch.randn(2, 3, 8, 8),)


def two():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, a, b):
            return self.head(torch.relu(self.left(a) + self.right(b)))

    return Two().eval(), (torch.randn(2, 4), torch.randn(2, 4))


def bound():
    return net()[0], (torch.randn(1, 3, 8, 8),)


def with_nan():
    module, example = net()
    module.conv.weight.data[0, 0, 0, 0] = float("nan")
    return module, example


def only_a_module():
    return net()[0]


def wants_arguments(width):
    return net()


def fails():
    return nn.Linear(3, "four")


def wrong_example():
    return net()[0], (torch.randn(2, 4, 8, 8),)


def nothing_to_prune():
    return nn.Linear(4, 4), (torch.randn(2, 4),)


def unused():
    class Unused(Net):
        def forward(self, x, mask):
            return super().forward(x)

    return Unused().eval(), (torch.randn(2, 3, 8, 8), torch.randn(2, 8))


def figure(model):
    return "good"


def broken_figure(model):
    raise RuntimeError("no test set")
"""


def furnish(here: Path) -> None:
    """Write it all."""
    rng = np.random.default_rng(0)
    (here / "nets.py").write_text(NETS, encoding="utf-8")
    for name, text in (
        ("text.onnx", "this is not a model"),
        ("empty.onnx", ""),
        ("text.pt2", "nor is this"),
        ("readme.txt", "hello"),
        ("table.csv", "1,2\n"),
        ("broken.toml", "[[pass]\n"),
        ("unknown.toml", '[[pass]]\nname = "groop"\n'),
        ("board.toml", 'base = "aarch65"\n'),
        ("plan.json", '{"hello": 1}'),
        ("table.jsonl", "hello\n"),
        ("syntax.py", "def net(:\n"),
        ("imports.py", "import no_such_package\n"),
    ):
        (here / name).write_text(text, encoding="utf-8")
    for name in ("empty", "texts", "few", "corrupt", "loose", "theirs"):
        (here / name).mkdir()
    (here / "texts" / "a.txt").write_text("a", encoding="utf-8")
    (here / "theirs" / "thesis.tex").write_text("years of work", encoding="utf-8")
    (here / "corrupt" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    Image.new("RGB", (8, 8)).save(here / "loose" / "a.png")
    x = rng.normal(size=(16, 3, 8, 8)).astype(np.float32)
    np.savez(here / "x.npz", x=x)
    np.savez(here / "labelled.npz", x=x, labels=np.arange(16))
    np.savez(here / "short.npz", x=x, labels=np.arange(4))
    np.savez(here / "shape.npz", x=np.zeros((4, 3, 9, 9), np.float32))
    np.savez(here / "last.npz", x=x.transpose(0, 2, 3, 1))
    np.savez(here / "bytes.npz", x=np.zeros((4, 3, 8, 8), np.uint8))
    np.savez(here / "nan.npz", x=np.full((4, 3, 8, 8), np.nan, np.float32))
    np.savez(here / "names.npz", a=np.zeros((4, 4), np.float32), c=np.zeros((4, 4), np.float32))
    np.savez(here / "counts.npz", a=np.zeros((4, 4), np.float32), b=np.zeros((5, 4), np.float32))
    np.savez(here / "pickled.npz", x=np.array([{"a": 1}], dtype=object))
    (here / "not.npz").write_bytes(b"PK\x03\x04 truncated")
    module = torch.nn.Linear(4, 3)
    torch.save(module.state_dict(), here / "state.pth")
    onnx.save(_onnx(), here / "net.onnx")


def _onnx() -> onnx.ModelProto:
    """Two matrix products, the nodes named as exporters name them."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(6, 16)), "w2": rng.normal(size=(16, 4))}
    nodes = [
        onnx.helper.make_node("MatMul", ["input", "w1"], ["val_170"], name="node_170"),
        onnx.helper.make_node("Relu", ["val_170"], ["val_171"], name="node_171"),
        onnx.helper.make_node("MatMul", ["val_171", "w2"], ["out"], name="node_172"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 6])],
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["N", 4])],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))
