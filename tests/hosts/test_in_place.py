"""Networks that write into views: every value is what the network computes, and whoever looks at values gets
from them what it gets from the same network in other words."""

from __future__ import annotations

from dataclasses import replace

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphprune.calibration import least_squares
from graphprune.calibration.batches import batches
from graphprune.hosts.torch.export import trace
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.network import network
from graphprune.ir.facts import Groups, Keep, Scores
from graphprune.ir.program import Program
from graphprune.pipeline import verify as proof
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import run


class Net(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.a, self.n, self.c = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Conv2d(3, 6, 1)
        self.d, self.b = nn.Dropout(0.5), nn.Conv2d(12, 4, 1)
        self.inside = inside

    def forward(self, x):
        return self.b(self.inside(self, self.n(self.a(x)), self.c(x)))


def relu(net, a, c):
    a[:, :6].relu_()
    return a


def relu_twin(net, a, c):
    return torch.cat([F.relu(a[:, :6]), a[:, 6:]], 1)


def add(net, a, c):
    a[:, 3:9].add_(c)
    return a


def add_twin(net, a, c):
    return torch.cat([a[:, :3], a[:, 3:9] + c, a[:, 9:]], 1)


def assign(net, a, c):
    a[:, :6] = F.relu(c)
    a[:, :, 0] = 0.5
    return a


def assign_twin(net, a, c):
    a = torch.cat([F.relu(c), a[:, 6:]], 1)
    return torch.cat([torch.full_like(a[:, :, :1], 0.5), a[:, :, 1:]], 2)


def narrow(net, a, c):
    first = a.narrow(1, 0, 6)
    first.mul_(c).sub_(1)
    return a * 2


def narrow_twin(net, a, c):
    return torch.cat([a[:, :6] * c - 1, a[:, 6:]], 1) * 2


TWINS = {
    "relu": (relu, relu_twin),
    "add": (add, add_twin),
    "assign": (assign, assign_twin),
    "mul": (narrow, narrow_twin),
}


def chunk(net, a, c):
    a.split([6, 6], 1)[0].detach().mul_(2)
    return a


def put(net, a, c):
    a.transpose(1, 2).index_put_((torch.tensor([0]),), torch.tensor(1.0, dtype=a.dtype))
    a.view(a.shape[0], 12, -1)[:, :, 3].mul_(3)
    return a


def strided(net, a, c):
    a[:, ::2].relu_()
    a.unbind(1)[3].detach().mul_(2)
    return a


def diagonal(net, a, c):  # not put back by us
    a.diagonal(0, 2, 3).mul_(2)
    return a


def views(net, a, c):
    flat = a.flatten(2)
    again = a[:, 2:]
    a.clamp_(-0.2, 0.7)
    again[:, :, 1:].zero_()
    again[:, 3].fill_(2)
    return a + flat.mean() + again.amax()


OTHERS = {"chunk": chunk, "put": put, "strided": strided, "diagonal": diagonal, "views": views}
WRITING = {**{name: pair[0] for name, pair in TWINS.items()}, **OTHERS}


def module(inside):
    return nets.randomise(Net(inside).double().eval())


def load(inside):
    host = TorchHost.export(module(inside), (torch.zeros(2, 3, 5, 6, dtype=torch.float64),))
    program = Program(host=host, source=host)
    x = np.random.default_rng(1).standard_normal((40, 3, 5, 6))
    return replace(program, data=batches(x, program.graph.inputs))


@pytest.fixture
def every_row(monkeypatch):
    """No row is left to chance: which are drawn depends on the number of an op."""
    monkeypatch.setattr(least_squares, "ROWS", 10**6)


def do(recipe, program):
    return run(Recipe.parse(recipe), program)


@pytest.mark.parametrize("name", WRITING)
def test_values_are_what_the_network_computes(name):
    program, net = load(WRITING[name]), module(WRITING[name])
    host, x = program.host, program.data[0][0]
    with torch.no_grad():
        want = net(torch.from_numpy(x.copy())).numpy()
    (out,) = (value.name for value in program.graph.outputs)
    np.testing.assert_allclose(host.run([x])[0], want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(host.watch([x], [out])[out], want, rtol=0, atol=1e-12)
    assert not {name for name, _ in net.named_parameters()} - set(program.graph.parameters)


@pytest.mark.parametrize("name", TWINS)
def test_the_result_still_trains(name):
    """Norms follow train(), and gradients are those of the network."""
    net, x = module(TWINS[name][0]), torch.from_numpy(np.random.default_rng(0).standard_normal((4, 3, 5, 6)))
    ours = load(TWINS[name][0]).model.train()
    for one in (net.train(), ours):
        one(x).square().mean().backward()
    ours = dict(ours.named_parameters())
    for key, parameter in net.named_parameters():
        if parameter.grad is not None:
            np.testing.assert_allclose(ours[key].grad, parameter.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("by", ["obs", "wifv", "ifv", "wifn", "wanda", "variance", "aap"])
@pytest.mark.parametrize("name", TWINS)
def test_scores_from_data_are_those_of_the_same_network_in_other_words(name, by, every_row):
    ours, theirs = (do(f"group,score{{by={by}}}", load(inside)) for inside in TWINS[name])
    groups = ours.fact(Groups), theirs.fact(Groups)
    assert [group.name for group in groups[0]] == [group.name for group in groups[1]] != []
    for mine, other in zip(*groups, strict=True):
        np.testing.assert_allclose(ours.fact(Scores)[mine], theirs.fact(Scores)[other], rtol=1e-9)


@pytest.mark.parametrize("name", TWINS)
def test_allocation_and_compensation_are_those_of_the_same_network_in_other_words(name, every_row):
    for recipe in ("mask{channels=0.6x},propagate,compensate", "mask{channels=0.6x},propagate,compensate{by=mean}"):
        ours, theirs = (do(f"group,score,{recipe}", load(inside)) for inside in TWINS[name])
        for key, _ in theirs.model.named_parameters():
            np.testing.assert_allclose(ours.host.parameter(key), theirs.host.parameter(key), rtol=1e-8, atol=1e-10)
        assert all(check.error <= check.tolerance for check in proof.verify(ours))
    kept = [do("group,score,mask{macs=0.6x allocate=rd}", load(inside)).fact(Keep).keep for inside in TWINS[name]]
    assert kept[0].keys() == kept[1].keys()
    assert all(np.array_equal(kept[0][group], kept[1][group]) for group in kept[0])


def test_least_squares_sees_what_is_written():
    """Cut channels that are copies of kept ones up to what is written in place cost little only if that is seen."""
    program = load(relu)
    cut = do("group,score,mask{channels=0.5x},propagate", program)
    outs = [np.concatenate([one.host.run(b)[0] for b in program.data]) for one in (program, cut, do("compensate", cut))]
    plain, fitted = (np.square(one - outs[0]).mean() for one in outs[1:])
    assert fitted < 0.8 * plain


def test_graphs_where_nothing_is_read_under_a_second_name_stay_as_they_are():
    def inside(net, a, c):
        a = F.relu(net.d(a), inplace=True)
        a += torch.cat([c, c], 1).mul_(2)
        return a.clamp_(max=3).flatten(2).relu_().unflatten(2, (5, 6))

    exported = trace(module(inside), (torch.zeros(2, 3, 5, 6, dtype=torch.float64),))
    plain = network(exported.module(check_guards=False))
    assert TorchHost.from_exported(exported).model.code == plain.code
    assert "relu_" in plain.code


def test_data_that_a_network_writes_into_stays_as_it_was():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            x[:, :1].mul_(2)
            return self.a(x)

    host = TorchHost.export(Writes().double().eval(), (torch.zeros(2, 3, 5, 6, dtype=torch.float64),))
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 6))
    before = x.copy()
    first, again = host.run([x])[0], host.run([x])[0]
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(first, again)
    given = torch.from_numpy(x)
    host.model(given)  # the network itself writes where the user's does
    np.testing.assert_allclose(given[:, 0], 2 * before[:, 0])
