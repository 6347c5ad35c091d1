"""GReg-2, the bypass of LAPP, and small steps with training between, on networks where what they should do is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_train_methods import pair, task
from torch import nn

import graphprune as gp
from graphprune.errors import ModelError, RecipeError


def sgd(module, rate=0.1):
    return torch.optim.SGD(module.parameters(), lr=rate)


# ---- GReg-2 ------------------------------------------------------------------------------------------


def curved():
    """Six channels whose norms fall while the curvature of the loss, the variance of what they read, rises."""
    module = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)).double()
    norms, spread = torch.linspace(2.0, 1.0, 6), torch.logspace(-2, 1, 6)
    with torch.no_grad():
        module[0].weight.copy_(torch.diag(norms))
        module[1].weight.copy_(torch.eye(6))
    module[1].weight.requires_grad_(False)
    x = torch.randn(512, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * spread.sqrt()
    return module, x, module(x).detach(), gp.load(module, (x[:2],)), spread


def test_greg2_keeps_what_the_loss_holds_on_to_though_its_norms_were_the_smallest():
    module, x, wanted, program, spread = curved()
    made = sgd(module, 0.05)
    penalty = gp.train.GReg2(
        program, module, made, keep=0.5, total_steps=400, picking=0.5, pressure=1.0, over="writers"
    )
    start = penalty.keep().keep["0"]
    np.testing.assert_array_equal(start, [0, 1, 2])  # by magnitude, as it would be without
    for step in range(400):
        made.zero_grad()
        ((module(x) - wanted).square().sum(1).mean() / 2 + penalty()).backward()
        made.step()
        penalty.step()
        if step == 198:  # pressed by nearly one, curvature h leaves h / (h + 1)
            left = module[0].weight.diagonal().detach() / torch.linspace(2.0, 1.0, 6)
            assert (left[1:] > left[:-1]).all()
            assert float(left[-1]) == pytest.approx(float(spread[-1] / (spread[-1] + 1)), abs=0.1)
    np.testing.assert_array_equal(penalty.keep().keep["0"], [3, 4, 5])
    norms = penalty.channels.norms().detach()
    assert (norms[3:] > 0.95 * torch.linspace(2.0, 1.0, 6)[3:]).all()  # without strength, back at what it was
    cut = gp.run("propagate", penalty.learned())
    assert cut.model.get_parameter("0.weight").shape[0] == 3


def test_greg2s_strength_is_that_of_all_and_then_of_what_goes():
    module, program = pair()
    penalty = gp.train.GReg2(program, module, keep=0.5, total_steps=10, picking=0.4, pressure=0.2, ceiling=0.8)
    seen = []
    for _ in range(12):
        seen.append(penalty.strengths().unique().tolist())
        goes = penalty.goes.clone()
        penalty.step()
    expected = [
        [0.0],
        [0.05],
        [0.1],
        [0.15],
        *([0.0, 0.2 + 0.1 * k] for k in range(6)),
        *([0.0, 0.8] for _ in range(2)),
    ]
    for found, wanted in zip(seen, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    torch.testing.assert_close(penalty(), 0.8 * (goes * penalty.channels.norms().square()).sum() / 2)
    assert int(goes.sum()) == 6
    with pytest.raises(RecipeError, match="GReg2: picking=1 is not a share"):
        gp.train.GReg2(program, module, total_steps=10, picking=1)


# ---- LAPP's bypass -----------------------------------------------------------------------------------


def test_a_bypass_lets_through_what_gates_shut_out_and_closes():
    module, program = pair(width=16)
    made = sgd(module, 0.0)
    penalty = gp.train.LAPP(program, module, made, total_steps=10, bypass=0.4, strength=1.0)
    with torch.no_grad():
        penalty.thresholds.fill_(50.0)  # all shut
    for step in range(12):
        penalty.impose()
        share = 0.4 * max(1 - step / 5, 0)
        torch.testing.assert_close(module[2].weight.detach(), penalty.dense()["2.weight"] * share, rtol=1e-5, atol=1e-7)
        penalty.step()
    torch.testing.assert_close(penalty.gates(), penalty.own_gates())
    assert float(penalty().detach()) > 0
    with pytest.raises(RecipeError, match=r"LAPP: bypass=0\.4"):
        gp.train.LAPP(program, module, made, bypass=0.4)


def test_a_bypass_is_trained_and_no_part_of_the_cost():
    found = []
    for bypass in (0.0, 0.4):
        module, program = pair(width=16)
        made = sgd(module, 0.1)
        penalty = gp.train.LAPP(program, module, made, total_steps=10, bypass=bypass, strength=1.0)
        found.append(float(penalty().detach()))
        task(module, 0).backward()
        made.step()
    assert found[0] == pytest.approx(found[1])
    assert penalty.shares.grad.abs().max() > 0


# ---- small steps -------------------------------------------------------------------------------------


class Blocks(nn.Module):
    """Two residual branches, of which the second hardly turns the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.a1, self.a2 = nn.Linear(12, 40), nn.Linear(40, 12)
        self.b1, self.b2 = nn.Linear(12, 40), nn.Linear(40, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.a2(torch.relu(self.a1(x)))
        x = x + self.b2(torch.relu(self.b1(x)))
        return self.head(x)


def blocks():
    torch.manual_seed(0)
    module = Blocks().double()
    with torch.no_grad():
        module.a2.weight.mul_(3)
        module.b2.weight.mul_(0.05)
        module.b2.bias.zero_()
    x = torch.randn(32, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return gp.load(module, (x[:2],), data=[x.numpy()])


def widths(program):
    return [program.model.get_parameter(f"{name}.weight").shape[0] for name in ("stem", "a1", "b1")]


def test_what_hardly_turns_the_stream_loses_more_and_the_whole_is_what_was_asked_for():
    seen = []

    def train(program):
        seen.append(widths(program))
        for parameter in program.model.parameters():
            parameter.data.add_(0.0)

    done = gp.train.small_steps(blocks(), train, keep=0.5, steps=4, amplitude=0.5)
    assert len(seen) == 4
    assert seen[-1] == widths(done)
    stem, a, b = seen[0]  # an eighth of the channels; the branches half as much less and more
    assert (stem, a, b) == (round(12 * 7 / 8), round(40 * (1 - 1 / 16)), round(40 * (1 - 3 / 16)))
    stem, a, b = seen[-1]
    assert stem == 6
    assert abs(a + b - 40) <= 3
    assert b < a - 8
    alike = widths(gp.train.small_steps(blocks(), lambda program: None, keep=0.5, steps=4, amplitude=0))
    assert alike == [6, 20, 20]


def test_training_between_is_what_the_next_step_starts_from():
    weights = []

    def train(program):
        weights.append(program.model.get_parameter("head.bias").detach().clone())
        with torch.no_grad():
            program.model.get_parameter("head.bias").add_(1)

    done = gp.train.small_steps(blocks(), train, keep=0.6, steps=3)
    torch.testing.assert_close(weights[2] - weights[0], torch.full((3,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(done.model.get_parameter("head.bias") - weights[0], torch.full((3,), 3.0).double())


def test_small_steps_says_what_it_cannot_do():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    program = gp.load(module, (torch.randn(2, 4),), data=[np.zeros((4, 4), np.float32)])
    with pytest.raises(ModelError, match="no branch can go"):
        gp.train.small_steps(program, lambda given: None)
    with pytest.raises(RecipeError, match="small_steps: amplitude=2 is not a share"):
        gp.train.small_steps(program, lambda given: None, amplitude=2)
