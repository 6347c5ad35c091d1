"""What may be put down to rounding, and what may not; random ops draw the same in both models."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.errors import VerificationError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.pipeline.compare import LIMIT, compare, relative, spread

RECIPE = "group,score,mask{channels=0.5x},propagate"


class Saturated(nn.Module):
    """Outputs of about 1e-4: a sigmoid far from zero, of large sums that nearly cancel."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 960), nn.Linear(960, 4), nn.Linear(960, 4)
        with torch.no_grad():
            self.b.weight.mul_(1e4)
            self.c.weight.copy_(self.b.weight + 0.01 * torch.randn(4, 960))
            self.c.bias.copy_(self.b.bias + 9.0)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return torch.sigmoid(self.b(h) - self.c(h))


def onnx_program(module, inputs):
    file = io.BytesIO()
    torch.onnx.export(module.eval(), inputs, dynamo=True, verbose=False).save(file)
    return gp.load(onnx.load_from_string(file.getvalue()))


@pytest.fixture(scope="module")
def saturated():
    torch.manual_seed(0)
    return gp.run(RECIPE, onnx_program(Saturated(), (torch.randn(2, 16),)))


def test_a_saturated_output_is_judged_by_what_the_models_own_arithmetic_leaves_open(saturated):
    check = gp.verify(saturated)[0]
    assert check.error > 1e-5 and check.spread, "the network does not show what it is made for"
    assert check.error <= check.tolerance <= max(1e-5, 4 * check.spread) <= LIMIT


def test_a_wrong_cut_of_it_is_still_found(saturated, monkeypatch):
    zero = OnnxHost.zero
    monkeypatch.setattr(OnnxHost, "zero", lambda self, name, axis, drop: zero(self, name, axis, drop[1:]))
    with pytest.raises(VerificationError, match="rounding the weights moves that output by"):
        gp.verify(saturated)


def test_nothing_is_run_again_where_the_usual_tolerance_is_held():
    x = np.ones(3, np.float32)
    check = compare("same", [[x]], [[x]], 1e-5, None, [])
    assert check.holds and check.spread is None


def test_the_spread_is_that_of_one_rounding_of_every_weight():
    torch.manual_seed(0)
    host = gp.load(nn.Linear(8, 8), torch.randn(4, 8)).host
    ((found,),) = spread(host, [host.example()])
    assert 1e-8 < found < 2e-6


def test_relative_error():
    a = np.array([1.0, -4.0])
    assert relative(a, np.array([1.0, -3.0])) == 0.25
    assert relative(a, a[:1]) == relative(a, np.array([1.0, np.nan])) == float("inf")


# ---- random ops --------------------------------------------------------------------------------------


class Sampled(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.mean, self.scale = nn.Linear(8, 32), nn.Linear(32, 12), nn.Linear(32, 12)
        self.decode, self.out = nn.Linear(12, 24), nn.Linear(24, 8)

    def forward(self, x):
        h = F.relu(self.encode(x))
        z = self.mean(h) + torch.randn_like(self.mean(h)) * torch.exp(0.5 * self.scale(h))
        return self.out(F.relu(self.decode(z)))


@pytest.mark.parametrize(
    "load", [lambda m, x: gp.load(m, x), lambda m, x: onnx_program(m, (x,))], ids=["torch", "onnx"]
)
def test_what_draws_random_numbers_is_proven_with_the_same_draws(load):
    program = load(Sampled(), torch.randn(3, 8))
    done = gp.run(RECIPE, program)
    frozen = gp.run("group", program).fact(gp.ir.Groups).frozen
    assert any("random numbers are drawn" in one.reason and one.size == 12 for one in frozen)
    assert gp.verify(done)[0].error <= (1e-12 if load is gp.load else 1e-5)


def test_a_run_leaves_the_users_generator_where_it_is():
    program = gp.load(Sampled(), torch.randn(3, 8))
    torch.manual_seed(5)
    program.host.run(program.host.example())
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_a_network_that_draws_is_compiled(tmp_path):
    report = gp.compile(Sampled(), torch.randn(3, 8), channels="0.5x", measure=False, out=tmp_path / "out").report
    assert any("it draws random numbers" in check["what"] for check in report["verification"]["checks"])


@pytest.mark.parametrize(
    "active",
    [lambda h: F.dropout(h, 0.5, True), lambda h: F.alpha_dropout(h, 0.5, True), lambda h: F.rrelu(h, training=True)],
    ids=["dropout", "alpha", "rrelu"],
)
def test_dropout_that_is_in_training_draws(active):
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.c(F.relu(self.b(active(self.a(x)))))

    program = gp.load(Dropped().eval(), torch.randn(4, 6))
    assert program.graph.draws
    assert gp.verify(gp.run(RECIPE, program))[0].error <= 1e-12
    assert not gp.load(nn.Sequential(nn.Linear(6, 4), nn.Dropout()).eval(), torch.randn(4, 6)).graph.draws
