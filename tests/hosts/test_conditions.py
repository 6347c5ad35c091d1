"""``torch.cond``: what is in both branches is read, cut where they agree, and chosen from when the network runs."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings

import nets
import numpy as np
import pytest
import torch
from nets import outputs, relative_error
from torch import nn

import graphprune as gp
from graphprune.axes.index import Index
from graphprune.coupling.groups import find_groups
from graphprune.ir.facts import Groups

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
HALF = "group,score,mask{channels=0.5x},propagate"


class Net(nn.Module):
    """A layer, a choice by flags that are inputs, and a layer behind it."""

    def __init__(self, choice, flags, **layers):
        super().__init__()
        self.a, self.c = nn.Linear(8, 12), nn.Linear(6, 3)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.choice, self.flags = choice, flags

    def forward(self, x, *flags):
        return self.c(self.choice(self, torch.relu(self.a(x)), *flags))


def deep(out=6):
    return nn.Sequential(nn.Linear(12, 10, bias=False), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, out))


def either(net, h, flag):
    return torch.cond(flag, lambda h: net.p(h), lambda h: torch.tanh(net.q(h)), (h,))


def within(net, h, flag, second):
    return torch.cond(
        flag,
        lambda h, f: torch.cond(f, lambda h: net.p(h), lambda h: net.q(h).sin(), (h,)),
        lambda h, f: torch.tanh(net.r(h)),
        (h, second),
    )


def one_after_the_other(net, h, flag, second):
    h = torch.cond(flag, lambda h: net.e(h), lambda h: h.cos(), (h,))
    return torch.cond(second, lambda h: net.p(h), lambda h: net.q(h), (h,))


def a_layer_of_both(net, h, flag):
    k = net.q(h)
    return k + torch.cond(flag, lambda h, k: net.q(torch.relu(net.e(h))) + k, lambda h, k: net.q(h) * k, (h, k))


def two_results(net, h, flag):
    one, two = torch.cond(flag, lambda h: (net.p(h), h * 2), lambda h: (net.q(h), h.sin()), (h,))
    return one + net.r(two)


def other_parts(net, h, flag):
    """One branch joins what the other has whole."""
    joined = lambda h: torch.cat([net.r(h), net.s(h).view(-1, 2, 2).mT.reshape(-1, 4)], 1)  # noqa: E731
    return torch.cond(flag, joined, lambda h: net.q(h), (h,))


def linear(out, width=12):
    return nn.Linear(width, out)


NETS = {
    "either": (either, 1, {"p": deep(), "q": linear(6)}, {"a": 12, "p.0": 10, "p.3": 6}),
    "within": (within, 2, {"p": deep(), "q": linear(6), "r": linear(6)}, {"a": 12, "p.0": 10, "p.3": 6}),
    "one after the other": (
        one_after_the_other,
        2,
        {"p": deep(), "q": linear(6), "e": linear(12)},
        {"a": 12, "p.0": 10, "p.3": 6},
    ),
    "a layer of both": (a_layer_of_both, 1, {"q": linear(6), "e": linear(12)}, {"a": 12, "q": 6}),
    "two results": (
        two_results,
        1,
        {"p": deep(), "q": linear(6), "r": linear(6)},
        {"a": 12, "p.0": 10, "p.3": 6},
    ),
    "other parts": (
        other_parts,
        1,
        {"q": linear(6), "r": linear(2), "s": linear(4)},
        {"a": 12, "r": 2, "s.0": 2, "s.1": 2},
    ),
}


def made(name):
    choice, flags, layers, _ = NETS[name]
    return nets.randomise(Net(choice, flags, **copy.deepcopy(layers))).double().eval()


def calls(net):
    return [(X, *map(torch.tensor, some)) for some in itertools.product([True, False], repeat=net.flags)]


def load(net):
    flags = calls(net)[0]
    shapes = {"x": {0: torch.export.Dim.AUTO}, "flags": tuple(None for _ in flags[1:])}
    return gp.load(net, flags, dynamic_shapes=shapes)


@pytest.mark.parametrize("name", NETS)
def test_a_group_is_whole_and_a_cut_is_a_mask_in_both_branches(name):
    net = made(name)
    program = load(net)
    groups = find_groups(program.graph)
    assert {group.name: group.size for group in groups} == NETS[name][3]
    whole = [outputs(net, call) for call in calls(net)]
    assert max(relative_error(a, outputs(program.model, call)) for a, call in zip(whole, calls(net), strict=True)) == 0

    def permuted(leave_out=None):
        host = program.host.copy()
        for value in program.graph.parameters.values():
            for axis, dim in enumerate(value.dims):
                if index.touches(dim) and (value.name, axis) != leave_out:
                    host.take(value.name, axis, index(dim))
        made = [outputs(host.model, call) for call in calls(net)]
        return max(relative_error(a, b) for a, b in zip(whole, made, strict=True))

    for group in groups:
        index = Index({group.dim: np.roll(np.arange(group.size), 1)})
        assert permuted() <= 1e-12
        assert all(permuted((member.parameter, member.axis)) > 1e-6 for member in group.members)

    pruned = gp.run(HALF, program)
    masked = copy.deepcopy(net)
    for parameter, axes in pruned.plan["parameters"].items():
        tensor = masked.state_dict()[parameter]
        for axis, entry in axes.items():
            if entry["role"] == "reader":
                drop = np.setdiff1d(np.arange(tensor.shape[int(axis)]), entry["keep"])
                tensor.index_fill_(int(axis), torch.from_numpy(drop), 0)
    for call in calls(net):
        assert relative_error(outputs(masked, call), outputs(pruned.model, call)) <= 1e-12


def test_only_the_chosen_branch_runs_and_files_have_a_branch_again(tmp_path):
    net = made("either").float()
    artifact = gp.compile(net, (X.float(), *calls(net)[0][1:]), channels="0.5x", measure=False)
    model = artifact.model
    assert "higher_order.cond" in model.code and "choose(" not in model.code
    artifact.program.host.save(tmp_path / "small.pt2")
    artifact.program.host.save_onnx(tmp_path / "small.onnx")
    exported = torch.export.load(tmp_path / "small.pt2").module()
    again, onnx = gp.load(tmp_path / "small.pt2"), gp.load(tmp_path / "small.onnx")
    assert [op.kind for op in again.graph.ops].count("if") == 1
    for call in calls(net):
        call = (X.float(), *call[1:])
        want = outputs(model, call)
        assert relative_error(want, outputs(exported, call)) == relative_error(want, outputs(again.model, call)) == 0
        assert relative_error(want, onnx.host.run([x.numpy() for x in call])) <= 1e-5
    assert len(gp.run("group", again).fact(Groups)) == 3


def test_what_passes_add_in_a_branch_runs_in_it_alone():
    net = made("either")
    program = load(net)
    pruned = gp.run("group,score,mask{channels=0.5x},reorder,propagate,fold", program)
    assert gp.verify(pruned)[0].error <= 1e-12
    then = pruned.model.get_submodule("choose_then").graph
    assert [str(node.target) for node in then.nodes if node.op == "call_function"] == [
        "aten.linear.default",  # its norm is folded
        "aten.relu.default",
        "aten.linear.default",
    ]


def test_a_size_that_chooses():
    def large(net, h):
        return torch.cond(h.shape[0] > 4, lambda h: net.p(h), lambda h: net.q(h), (h,))

    net = nets.randomise(Net(large, 0, p=deep(), q=linear(6))).double().eval()
    pruned = gp.run(HALF, gp.load(net, X))
    assert gp.verify(pruned)[0].error <= 1e-12
    assert {group.name: group.size for group in find_groups(gp.load(net, X).graph)} == NETS["either"][3]
    for count in (2, 6):
        x = torch.cat([X, X])[:count]
        assert torch.equal(gp.load(net, X).model(x), net(x))


def test_branches_that_do_not_both_run_stay_closed():
    def looked_up(net, h, flag):
        at = torch.where(flag, 100, 1).expand(len(h))
        return torch.cond(flag, lambda h, at: net.q(h), lambda h, at: net.q(h) + net.emb(at), (h, at))

    net = nets.randomise(Net(looked_up, 1, q=linear(6), emb=nn.Embedding(20, 6))).double().eval()
    program = load(net)
    frozen = {dim.name: dim.reason for dim in find_groups(program.graph).frozen}
    assert "`cond` runs one of its branches" in frozen["emb.weight[0]"]
    for call in calls(net):
        assert torch.equal(program.model(*call), net(*call))


def test_training_goes_through_the_chosen_branch():
    net = made("either")
    pruned = gp.run(HALF, load(net))
    gp.apply(pruned, net, calls(net)[0], in_place=True)
    model = pruned.model.train()
    assert torch.equal(net(*calls(net)[1]), model(*calls(net)[1]))
    model(*calls(net)[1]).sum().backward()
    assert model.q.weight.grad.abs().sum() > 0 and not model.get_parameter("p.0.weight").grad.abs().sum() > 0
    with pytest.raises(pickle.PicklingError, match="no branch or loop anew"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pickle.dumps(model)
