"""Regions of a graph: autocast, gradient modes, branches and loops."""

from __future__ import annotations

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._higher_order_ops.map import map as over_slices
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

import graphprune as gp
from graphprune.ir.facts import Groups

HALF = "group,score,mask{channels=0.5x},propagate"
X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 12), nn.Linear(12, 6), nn.Linear(6, 3)
        if inside in (half, branch, steps):
            self.p = nn.Linear(6, 6)
        if inside is half:
            self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.inside = inside

    def forward(self, x):
        return self.c(self.inside(self, self.b(torch.relu(self.a(x)))))


def made(inside):
    torch.manual_seed(0)
    return nets.randomise(Net(inside)).eval()


def island(net, h):
    with torch.autocast("cpu", enabled=False):
        return h.float() / (1 + h.float().abs().amax(1, keepdim=True))


def half(net, h):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net.conv(net.p(h).mT).mT
        y = torch.einsum("bte,de->btd", F.gelu(y), net.p.weight)
        with torch.autocast("cpu", enabled=False):
            y = y.float() * h
        return (F.layer_norm(y @ h.mT, (5,)).softmax(1) @ h).float()


def modes(net, h):
    with torch.enable_grad():
        k = torch.sigmoid(h)
        with torch.no_grad():
            k = k * 2
    with torch.inference_mode():
        return k * h.cos()


@pytest.mark.parametrize("inside", [island, half, modes], ids=lambda f: f.__name__)
def test_what_modes_hold_is_read_and_cut_and_computes_what_it_did(inside):
    net = made(inside)
    program = gp.load(net, X)
    with torch.no_grad():
        assert torch.equal(program.model(X), net(X))
    assert not [op for op in program.graph.ops if "wrap_with" in op.kind]
    assert {group.size for group in gp.run("group", program).fact(Groups)} == {12, 6}
    pruned = gp.run(HALF, program)
    assert gp.verify(pruned)[0].error <= 1e-12
    assert pruned.model(X).dtype == torch.float32
    assert gp.apply(pruned, net, X, in_place=True) and net.b.weight.shape == (3, 6)


def test_casts_of_autocast_are_ops_and_said_in_a_note():
    program = gp.load(made(half), X)
    kinds = [str(node.target) for node in program.model.graph.nodes]
    assert kinds.count("aten.to.dtype") >= 6
    assert [note for note in program.notes if "autocast on" in note] and len(program.notes) == 2


def test_what_was_made_without_gradients_gets_none():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 6)

        def forward(self, x):
            x = self.a(x)
            with torch.no_grad():
                gate = torch.sigmoid(self.b(x))
            return x * gate

    module = Cut()
    exported = torch.export.export(module, (X[..., :4],))
    assert [node for node in exported.graph.nodes if "set_grad" in str(node.target)]
    model = gp.load(exported).model
    model(X[..., :4]).sum().backward()
    assert model.a.weight.grad is not None and model.b.weight.grad is None


def branch(net, h):
    """Of which one hands on what a loop does, and is not looked into."""
    return torch.cond(h.sum() > 0, lambda h: net.p(h), lambda h: loop(net, h), (h,))


def loop(net, h):
    return while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, torch.tanh(h)), (torch.tensor(0), h))[1]


def slices(net, h):
    return over_slices(lambda h: torch.tanh(h) * 2, h)


def steps(net, h):
    def step(c, x):
        c = torch.tanh(net.p(c) + x)
        return c, c.clone()

    return scan(step, torch.zeros(2, 6), h.transpose(0, 1))[1].transpose(0, 1)


CONTROL = {branch: "cond", loop: "while_loop", slices: "map", steps: "scan"}


@pytest.mark.parametrize("inside", CONTROL, ids=CONTROL.get)
def test_what_enters_a_branch_or_loop_stays_and_the_rest_is_cut(inside):
    net = made(inside)
    program = gp.load(net, X, dynamic_shapes={"x": None})
    found = gp.run("group", program).fact(Groups)
    assert [group.name for group in found] == ["a"]
    reasons = {dim.name: dim.reason for dim in found.frozen}
    assert f"`{CONTROL[inside]}` runs " in reasons["b"]
    weights = [reason for name, reason in reasons.items() if name.startswith("p.")]
    assert bool(weights) == (inside in (branch, steps)) and all(f"`{CONTROL[inside]}` runs " in w for w in weights)
    pruned = gp.run(HALF, program)
    assert gp.verify(pruned)[0].error <= 1e-12
    assert torch.allclose(program.model(X), net(X))
    assert gp.apply(pruned, net, X, in_place=True) and net.a.weight.shape == (6, 8)


def test_a_branch_that_is_decided_is_taken():
    def decided(net, h):
        return torch.cond(True, lambda h: h.cos(), lambda h: h.sin(), (h,))

    found = gp.run("group", gp.load(made(decided), X)).fact(Groups)
    assert {group.size for group in found} == {12, 6}
