"""Catalyst, VAR and BiP: the identities that their mathematics promises."""

from __future__ import annotations

import copy
import math

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.ir.facts import Keep
from graphprune.train.bip import top
from graphprune.train.var import EPS, R


def pair(width=12, seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3)).double()
    return module, gp.load(module, torch.zeros(2, 5, dtype=torch.float64))


# ---- Catalyst ----------------------------------------------------------------------------------------


def flow(start, time, rate=2e-4, strength=1.0):
    """The penalty alone, by small steps of plain SGD: the flow, to first order."""
    module, program = pair()
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    catalyst = gp.train.Catalyst(program, module, optimizer, strength=strength, start=start)
    for _ in range(round(time / rate)):
        optimizer.zero_grad()
        catalyst().backward()
        optimizer.step()
        catalyst.step()
    return catalyst


@pytest.mark.parametrize("start", [0.6, 0.95, 1.05, 1.7])
def test_the_flow_conserves_what_it_should(start):
    catalyst = flow(start, time=0.4)
    norms, auxiliary = catalyst.channels.norms().detach(), catalyst.auxiliary.detach()
    began = catalyst.start
    torch.testing.assert_close(auxiliary**2 - norms**2, (start**2 - 1) * began**2, rtol=1e-3, atol=0)
    # and the closed form itself
    torch.testing.assert_close(norms, began * (math.cosh(0.4) - start * math.sinh(0.4)), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "start", [pytest.param(0.5, marks=pytest.mark.slow), 0.8, pytest.param(1.25, marks=pytest.mark.slow), 2.0]
)
def test_the_decision_takes_its_time(start):
    """Both fates are reached when tanh(lambda t) = min(c, 1/c)."""
    time = math.atanh(min(start, 1 / start))
    early, late = flow(start, 0.97 * time), flow(start, 1.03 * time)
    vanishing = (lambda c: c.auxiliary) if start < 1 else (lambda c: c.channels.norms())
    assert (vanishing(early) > 0).all()
    assert (vanishing(late) == 0).all()
    assert not early.closed(1e-6)
    assert late.closed(1e-6)
    assert bool(late.kept().all()) is (start < 1)
    if start < 1:  # what stays has shrunk by sqrt(1 - c^2), whatever its size
        torch.testing.assert_close(
            late.channels.norms().detach(), late.start * math.sqrt(1 - start**2), rtol=1e-3, atol=0
        )


def test_one_is_the_saddle():
    catalyst = flow(1.0, 1.0)
    began = catalyst.start * math.exp(-1.0)
    torch.testing.assert_close(catalyst.auxiliary.detach(), began, rtol=1e-3, atol=0)
    torch.testing.assert_close(catalyst.channels.norms().detach(), began, rtol=1e-3, atol=0)


def test_magnitude_has_no_say():
    """Under the penalty alone the fate of a channel depends on c, and its time not on its size."""
    module, program = pair()
    with torch.no_grad():
        scale = torch.logspace(-2, 2, 12, dtype=torch.float64)
        module[0].weight.mul_(scale[:, None])
        module[0].bias.mul_(scale)
    catalyst = gp.train.Catalyst(program, module, torch.optim.SGD(module.parameters(), lr=1e-3), start=1.2)
    torch.testing.assert_close(catalyst.ratios(), torch.full_like(catalyst.auxiliary, 1.2).detach())


def test_the_gradient_of_catalyst_is_what_finite_differences_say():
    module, program = pair()
    catalyst = gp.train.Catalyst(program, module, torch.optim.SGD(module.parameters(), lr=1e-3))
    finite_differences(catalyst, [*module.parameters(), catalyst.auxiliary])


def finite_differences(penalty, parameters, step=1e-6):
    penalty.zero_grad()
    for parameter in parameters:
        parameter.grad = None
    penalty.value().backward()
    for parameter in parameters:
        flat = parameter.detach().view(-1)
        for k in range(0, flat.numel(), max(1, flat.numel() // 5)):
            old = float(flat[k])
            flat[k] = old + step
            high = float(penalty.value().detach())
            flat[k] = old - step
            low = float(penalty.value().detach())
            flat[k] = old
            have = 0.0 if parameter.grad is None else float(parameter.grad.view(-1)[k])
            assert have == pytest.approx((high - low) / (2 * step), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_wanted_number_is_what_stays_and_dropping_is_lossless(share):
    """Train a small regression to the end: closed, the exact count, and outputs that do not move."""
    module, program = pair(width=16)
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(64, 5, generator=rng, dtype=torch.float64)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].abs(), x[:, 3] - x[:, 4]], 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9)
    catalyst = gp.train.Catalyst(program, module, optimizer, strength=0.15, keep=share, opening=100)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=600)
    for _ in range(600):
        optimizer.zero_grad()
        (F.mse_loss(module(x), y) + catalyst()).backward()
        optimizer.step()
        catalyst.step()
        schedule.step()
    assert catalyst.closed()
    assert int(catalyst.kept().sum()) == round(16 * share)
    cut = gp.run("propagate", catalyst.learned())
    assert cut.model.get_parameter("0.weight").shape[0] == round(16 * share)
    error = (cut.model(x) - module(x)).abs().max() / module(x).abs().max()
    assert error < 1e-4


def test_no_group_loses_its_last_channel():
    module, program = pair()
    catalyst = gp.train.Catalyst(program, module, torch.optim.SGD(module.parameters(), lr=0.1), start=3.0)
    assert not catalyst.kept().any()
    assert [len(own) for own in catalyst.keep().keep.values()] == [1]


# ---- VAR ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [True, False])
def test_the_gradient_of_var_is_what_finite_differences_say(grouped):
    module, program = pair()
    finite_differences(gp.train.VAR(program, module, grouped=grouped), list(module.parameters()))


def test_the_gradient_of_var_is_the_formula():
    """-(Var + eps)^-2 (2/n) (w~ - mean w~) w / w~, and R itself from its definition."""
    module, program = pair()
    var = gp.train.VAR(program, module, grouped=False)
    var.value().backward()
    total = 0.0
    for weight in (module[0].weight, module[2].weight):
        w = weight.detach()
        smooth = (w.float().square() + R).sqrt().double()
        variance = smooth.square().mean() - smooth.mean() ** 2
        total += 1 / (variance + EPS)
        expected = -((variance + EPS) ** -2) * 2 / w.numel() * (smooth - smooth.mean()) * w / smooth
        torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-6)
    assert float(var.value().detach()) == pytest.approx(float(total), rel=1e-5)


def test_var_spreads_the_norms():
    module, program = pair()
    var = gp.train.VAR(program, module, strength=1e-3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = var.channels.norms().detach().var()
    for _ in range(50):
        optimizer.zero_grad()
        var().backward()
        optimizer.step()
    assert var.channels.norms().detach().var() > 2 * before


# ---- BiP ---------------------------------------------------------------------------------------------


def task(module, seed):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 5, generator=rng, dtype=torch.float64)
    return F.mse_loss(module(x), torch.randn(16, 3, generator=rng, dtype=torch.float64))


@pytest.mark.parametrize("structured", [True, False])
def test_cardinality_is_exact_after_every_step(structured):
    module, program = pair(width=13)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    bip = gp.train.BiP(program, module, optimizer, keep=0.4, structured=structured, lr=5.0)
    masks = []
    for step in range(12):
        if structured:
            alive = (module[2].weight != 0).any(0)
            assert int(alive.sum()) == int(bip.chosen().sum()) == round(0.4 * 13)
        else:
            for weight in (module[0].weight, module[2].weight):
                assert int((weight != 0).sum()) == round(0.4 * weight.numel())
        masks.append(module[2].weight.detach() != 0)
        optimizer.zero_grad()
        (task(module, step) + bip()).backward()
        optimizer.step()
        bip.step()
    assert any(not torch.equal(masks[0], mask) for mask in masks), "the mask never moved"


def test_a_step_of_bip_is_the_formula():
    """Against a step written out by hand, from the same start and on the same batch."""
    module, program = pair(width=6)
    theta = {name: p.detach().clone() for name, p in module.named_parameters() if p.ndim > 1}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.01)
    bip = gp.train.BiP(program, module, optimizer, keep=0.5, structured=False, lr=0.3, curvature=0.02)
    score = {name: w.abs() for name, w in theta.items()}
    velocity = dict.fromkeys(theta, 0.0)
    for step in range(3):
        mask = {name: top(s, 0.5) for name, s in score.items()}
        by_hand = copy.deepcopy(module)
        for name, w in theta.items():
            torch.testing.assert_close(by_hand.get_parameter(name).detach(), mask[name] * w, rtol=1e-12, atol=0)
        by_hand.zero_grad()
        task(by_hand, step).backward()
        for name, w in theta.items():
            g = by_hand.get_parameter(name).grad
            velocity[name] = 0.9 * velocity[name] + (w - 0.02 * mask[name] * g) * g
            score[name] = score[name] - 0.3 * velocity[name]
            theta[name] = w - 0.1 * (mask[name] * g + 0.01 * w)
        optimizer.zero_grad()
        task(module, step).backward()
        optimizer.step()
        bip.step()
        for name in theta:
            torch.testing.assert_close(bip.dense()[name], theta[name], rtol=1e-12, atol=0)
            torch.testing.assert_close(bip.real_scores()[name], score[name], rtol=1e-12, atol=1e-15)


def test_the_implicit_gradient_is_that_of_the_lower_levels_solution():
    """For a quadratic loss of a diagonal with small curvature, d/dm loss(m * theta(m)) by finite
    differences over the solved lower level against (theta - m g / gamma) g, first order in 1/gamma."""
    target, gamma = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), 1e3

    def loss(z):
        return ((z - target) ** 2).sum() / 2

    def theta(m, anchor):  # argmin loss(m theta) + gamma/2 ||theta - anchor||^2
        return (m * target + gamma * anchor) / (m**2 + gamma)

    anchor = torch.tensor([0.7, 0.3, -0.4], dtype=torch.float64)
    m = torch.tensor([0.9, 0.4, 0.7], dtype=torch.float64)
    at = theta(m, anchor)
    gradient = m * at - target
    formula = (at - m * gradient / gamma) * gradient
    for k in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[k] = 1e-5
        high, low = (loss(s * theta(s, anchor)) for s in (m + step, m - step))
        assert float(formula[k]) == pytest.approx(float((high - low) / 2e-5), rel=5e-3)


def test_structured_scores_pool_what_reads_a_channel():
    module, program = pair(width=6)
    bip = gp.train.BiP(program, module, torch.optim.SGD(module.parameters(), lr=0.1), keep=0.5)
    columns = bip.dense()["2.weight"].norm(dim=0)
    torch.testing.assert_close(bip.importance(), columns)
    best = columns.topk(3).indices.sort().values.numpy()
    np.testing.assert_array_equal(bip.keep().keep["0"], best)


def test_a_score_below_zero_speaks_for_nothing():
    module, program = pair(width=6)
    bip = gp.train.BiP(program, module, torch.optim.SGD(module.parameters(), lr=0.1), keep=0.5)
    best = int(bip.importance().argmax())
    bip.real_scores()["2.weight"][:, best] = -9.0
    assert not bip.chosen()[best]


def test_the_masked_module_is_what_the_compiler_makes():
    """On a network of every kind of coupling: training's forward and the artifact agree."""
    module = copy.deepcopy(nets.module("Residual"))
    program = gp.load(module, nets.ZOO["Residual"].inputs())
    bip = gp.train.BiP(program, module, torch.optim.SGD(module.parameters(), lr=0.1), keep=0.5)
    learned = bip.learned()
    assert {name: len(own) for name, own in learned.fact(Keep).keep.items()} == {
        "stem": 3, "block.conv1": 2, "down": 4, "last": 2,
    }  # fmt: skip
    cut = gp.run("propagate", learned)
    inputs = nets.ZOO["Residual"].inputs()
    assert nets.relative_error(nets.outputs(module, inputs), nets.outputs(cut.model, inputs)) <= 1e-12


def test_the_mask_rate_falls_in_two_steps():
    module, program = pair()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    bip = gp.train.BiP(program, module, optimizer, total_steps=100)
    rates = []
    for done in (0, 49, 50, 74, 75, 99):
        bip.steps.fill_(done)
        rates.append(bip.rate())
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_ties_do_not_change_the_count():
    assert int(top(torch.ones(10), 0.3).sum()) == 3
    assert int(top(torch.zeros(3, 3), 0.01).sum()) == 1
