"""Norms that are written out are found as norms, on both hosts; what only looks like one is not."""

from __future__ import annotations

import nets
import onnx
import pytest
import torch
import torch.nn.functional as F
from kinds import Around

import graphprune as gp
from graphprune.coupling.groups import find_groups


def rms(h):
    return h / (h.square().mean(-1, keepdim=True) + 1e-6) ** 0.5


def deviation(h):
    return (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 1e-6)


def squares(h):
    mean = h.mean(-1, keepdim=True)
    return (h - mean) * torch.rsqrt((h * h).mean(-1, keepdim=True) - mean * mean + 1e-6)


def length(h):
    return F.normalize(h, dim=-1)


def gate(h):
    return h * h.mean(-1, keepdim=True)


def centre(h):
    return h - h.mean(-1, keepdim=True)


def others(h):  # a statistic of tokens, not of channels
    return h / (h.square().mean(1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("inside", [rms, deviation, squares, length, gate, centre, others], ids=lambda f: f.__name__)
def test_a_norm_in_torch_ops(inside):
    class Net(Around):
        def inside(self, h, x):
            return inside(h)

    graph = gp.load(nets.randomise(Net()).eval(), torch.randn(2, 5, 4)).graph
    reason = {dim.name: dim.reason for dim in find_groups(graph).frozen}.get("enter", "")
    offered = "enter" in {group.name for group in find_groups(graph, normalised=True)}
    if inside is others:
        assert not reason and offered
    else:
        norm = inside not in (gate, centre)
        assert ("normalises across it" if norm else "(reduce) reduces over it") in reason and offered is norm


LAYER_NORM = """
<ir_version: 9, opset_import: ["": 17]> net (float[N,4] x) => (float[N,3] y)
<float[4,2] a = {1, 2, 3, 4, 5, 6, 7, 9}, float[2,3] b = {1, 2, 3, 5, 6, 4}, float eps = {0.1}, float two = {2}> {
    h = MatMul(x, a)
    mean = ReduceMean<axes=[-1]>(h)
    centred = Sub(h, mean)
    square = Pow(centred, two)
    var = ReduceMean<axes=[-1]>(square)
    more = Add(var, eps)
    root = Sqrt(more)
    normed = Div(centred, root)
    y = MatMul(normed, b)
}"""


def test_a_layer_norm_in_onnx_ops():
    graph = gp.load(onnx.parser.parse_model(LAYER_NORM)).graph
    assert [group.size for group in find_groups(graph, normalised=True)] == [2]
    assert any("normalises across it" in dim.reason for dim in find_groups(graph).frozen)
