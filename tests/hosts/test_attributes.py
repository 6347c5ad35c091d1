"""What hosts hand to the rules of plug-ins for an op that graphprune does not read: operands in order,
the absent ones too, and attributes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper as nh
import torch
from torch import nn

import graphprune as gp
from graphprune.coupling.groups import find_groups
from graphprune.ops.rules import RULES

SCHEMA = "(Tensor x, Tensor? by, Tensor[] more, int axis, str? how=None) -> Tensor"


@torch.library.custom_op("attributes::scale", mutates_args=(), schema=SCHEMA)
def scale(x, by, more, axis, how=None):
    return x * more[0].movedim(0, -1 - axis)


@scale.register_fake
def _(x, by, more, axis, how=None):
    return torch.empty_like(x)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.by, self.out = nn.Conv2d(3, 5, 1), nn.Parameter(torch.rand(5, 1, 1)), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.out(torch.ops.attributes.scale(self.conv(x), None, [self.by], 2))


def entered(monkeypatch, kind, rule):
    """The op that a plug-in's rule is given."""
    seen = []
    monkeypatch.setitem(RULES, kind, lambda op: seen.append(op) or rule)
    return seen


def test_the_torch_host_hands_over_what_the_schema_says(monkeypatch):
    seen = entered(monkeypatch, "attributes.scale.default", "n c ~, ~, c 1 1 -> n c ~")
    program = gp.load(Scaled().eval(), (torch.randn(2, 3, 4, 4),))
    assert {group.name: group.size for group in find_groups(program.graph)} == {"conv": 5}
    op = seen[0]
    assert dict(op.attrs) == {"axis": 2, "how": None}
    assert [value and value.name for value in op.inputs] == ["conv2d", None, "by"]
    done = gp.run("group,score,mask{channels=0.5x},propagate", program)
    assert all(check.error <= check.tolerance for check in gp.verify(done))


def test_the_onnx_host_hands_over_what_the_node_says(monkeypatch):
    seen = entered(monkeypatch, "MaxRoiPool", "n c ~, ~ -> _ c ~")
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 19]> net (float[1,3,4,4] x, float[2,5] at, float[5,3,1,1] w, '
        "float[2,5,1,1] v) => (float[] y) { a = Conv(x, w) b = MaxRoiPool<pooled_shape=[1, 2]>(a, at) y = Conv(b, v) }"
    )
    for name, shape in {"w": (5, 3, 1, 1), "v": (2, 5, 1, 1), "at": (2, 5)}.items():
        model.graph.initializer.append(nh.from_array(np.zeros(shape, np.float32), name))
    assert {group.name: group.size for group in find_groups(gp.load(model).graph)} == {"w": 5}
    assert dict(seen[0].attrs) == {"pooled_shape": (1, 2)}
