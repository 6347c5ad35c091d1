"""Norms that are written out are found as norms, on both hosts; what only looks like one is not."""

from __future__ import annotations

import copy
import io

import nets
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from kinds import Around
from torch import nn

import graphprune as gp
from graphprune.coupling.groups import find_groups
from graphprune.ir.facts import Groups, Keep


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
    if inside in (length, others):  # to a length, what is zero adds nothing
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


@pytest.mark.parametrize("name", ["Lengths", "Respond"])
@pytest.mark.parametrize("dynamo", [False, True], ids=["trace", "dynamo"])
def test_what_is_exported_to_onnx_has_the_same_groups(name, dynamo):
    module = copy.deepcopy(nets.module(name)).float()
    inputs = tuple(x.float() if x.is_floating_point() else x for x in nets.ZOO[name].inputs())
    file = io.BytesIO()
    given = torch.onnx.export(module, inputs, None if dynamo else file, dynamo=dynamo, opset_version=18)
    model = given.model_proto if dynamo else onnx.load_from_string(file.getvalue())
    known = gp.run("group", gp.load(model))
    traced = name == "Lengths" and not dynamo  # there attention computes with the width of its heads
    expected = {one: size for one, size in nets.ZOO[name].prunable.items() if not (traced and one == "q.1")}
    assert sorted(group.size for group in known.fact(Groups)) == sorted(expected.values())
    done = gp.run("score,mask{channels=0.6x},propagate", known)
    assert all(check.holds for check in gp.verify(done))


@pytest.mark.parametrize(
    ("norm", "weight", "eps"),
    [
        (nets.Rms(6, 0.3, "sum"), 1, 1),
        (nets.Rms(6, 0.3, "clamped"), 1, 1),
        (nets.Rms(6, 0.3, "divide"), 1.5**0.5, 1.5),
        (nets.Rms(6, 0.3, "root"), 1.5**0.5, 1.5**0.5),
        (nets.Responses(6, 0.3, "weight"), 1.5, 1.5),
    ],
    ids=lambda given: getattr(given, "way", None),
)
def test_four_of_six_channels_and_what_makes_up_for_their_share(norm, weight, eps):
    image = norm.way == "weight"
    first, last = (nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)) if image else (nn.Linear(3, 6), nn.Linear(6, 2))
    module = nets.randomise(nn.Sequential(first, norm, last).double().eval())
    before, kept = module[1].weight.detach().clone(), np.array([5, 0, 2, 3])
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64) if image else torch.randn(4, 3, dtype=torch.float64)
    known = gp.run("group", gp.load(module, (x,)))
    done = gp.run("propagate", known.learn(Keep({"0": kept})))
    assert done.host.parameter("1.weight") == pytest.approx(before[kept].numpy() * weight)
    added = [op.attrs["plus"] for op in done.graph.ops if "plus" in op.attrs]
    assert added == ([] if norm.way == "clamped" else [pytest.approx(0.3 * eps)])
    assert all(check.holds for check in gp.verify(done))
    with torch.no_grad():
        module[0].weight[[1, 4]], module[0].bias[[1, 4]] = 0, 0
        module[2].weight[:, [1, 4]] = 0
    assert nets.relative_error(nets.outputs(module, (x,)), nets.outputs(done.model, (x,))) <= 1e-12
