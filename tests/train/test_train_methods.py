"""Catalyst, VAR and BiP: the identities that their mathematics promises."""

from __future__ import annotations

import copy
import inspect
import math

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.errors import ModelError, RecipeError
from graphprune.ir.facts import Keep, Scores
from graphprune.train.catalyst import arrival, flow
from graphprune.train.masked import highest, top
from graphprune.train.var import EPS, R


def pair(width=12, seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3)).double()
    return module, gp.load(module, torch.zeros(2, 5, dtype=torch.float64))


# ---- Catalyst ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.3, 0.8, 1.25, 3.0])
def test_the_flow_is_that_of_the_regularisers_gradient(c):
    """Against small explicit steps of the gradient of R itself, over weights and D, before either end."""
    module, program = pair()
    catalyst = gp.train.Catalyst(program, module, total_steps=8, lean=None)
    catalyst.auxiliary.copy_(c * catalyst.channels.norms().detach())
    time = 0.7 * math.atanh(min(c, 1 / c))
    expected = flow(catalyst.channels.norms().detach(), catalyst.auxiliary, time)
    weights = list(module.parameters())
    auxiliary = catalyst.auxiliary.clone().requires_grad_()
    steps = 500
    for _ in range(steps):  # the midpoint rule
        saved = [p.detach().clone() for p in (*weights, auxiliary)]
        for length in (time / steps / 2, time / steps):
            value = (auxiliary * catalyst.channels.norms()).sum()
            gradients = torch.autograd.grad(value, [*weights, auxiliary], allow_unused=True)
            with torch.no_grad():
                for parameter, old, gradient in zip((*weights, auxiliary), saved, gradients, strict=True):
                    if gradient is not None:
                        parameter.copy_(old - length * gradient)
    torch.testing.assert_close(catalyst.channels.norms().detach(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(auxiliary.detach(), expected[1], rtol=1e-6, atol=0)


def test_the_flow_conserves_what_it_should_and_stops_at_zero():
    norms = torch.tensor([1.0, 2.0, 3.0, 0.5, 0.0], dtype=torch.float64)
    auxiliary = torch.tensor([0.4, 6.0, 2.9, 0.0, 0.0], dtype=torch.float64)
    for time in (0.0, 0.1, 0.3, 0.6, 5.0):
        f, d = flow(norms, auxiliary, time)
        torch.testing.assert_close(d**2 - f**2, auxiliary**2 - norms**2, rtol=1e-12, atol=1e-12)
        arrived = arrival(norms, auxiliary) <= time
        assert torch.equal((f == 0) | (d == 0), arrived | (norms == 0) | (auxiliary == 0))
    assert float(arrival(norms, auxiliary)[1]) == pytest.approx(math.atanh(1 / 3))
    one = torch.ones(1, dtype=torch.float64)  # the saddle: both decay
    torch.testing.assert_close(flow(one, one, 1.0)[0], one * math.exp(-1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_the_optimizer_does_not_bend_the_flow(kind):
    """Where the task asks for nothing, D^2 - ||F||^2 is kept from the decision to the end, with momentum and with
    adaptive moments that are full of what the opening gave them."""
    module, program = pair()
    options = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = getattr(torch.optim, kind)(module.parameters(), lr=1e-2, **options)
    catalyst = gp.train.Catalyst(program, module, optimizer, total_steps=40)
    for step in range(10):  # of which the tenth decides
        optimizer.zero_grad()
        (task(module, step) + catalyst()).backward()
        optimizer.step()
        catalyst.step()
    optimizer.param_groups[0]["lr"] = 0.0
    conserved = catalyst.auxiliary**2 - catalyst.channels.norms().detach() ** 2
    for step in range(10):
        optimizer.zero_grad()
        (task(module, step) + catalyst()).backward()
        optimizer.step()
        catalyst.step()
    assert catalyst.closed()
    torch.testing.assert_close(catalyst.auxiliary**2 - catalyst.channels.norms().detach() ** 2, conserved)


def test_magnitude_has_no_say():
    """Sizes over four decades: the same training from each start decides by what was gained, not by what was there."""
    module, program = pair()
    with torch.no_grad():
        scale = torch.logspace(-2, 2, 12, dtype=torch.float64)
        module[0].weight.mul_(scale[:, None])
        module[0].bias.mul_(scale)
    catalyst = gp.train.Catalyst(program, module, total_steps=8, lean=None)
    torch.testing.assert_close(catalyst.ratios(), torch.ones_like(catalyst.auxiliary))
    gains = torch.linspace(1.0, 1.1, 12, dtype=torch.float64)[torch.randperm(12)]
    for parameter, factor in catalyst.channels.mask(gains).items():
        with torch.no_grad():
            module.get_parameter(parameter).mul_(factor)
    catalyst.step()
    catalyst.step()
    assert torch.equal(catalyst.kept(), gains > gains.median())


def test_lean_gives_a_start_to_what_has_a_score():
    module, program = pair()
    scores = gp.run("group,score", program).fact(Scores)
    worth = torch.from_numpy(scores.scores["0"])
    catalyst = gp.train.Catalyst(program, module, total_steps=8, lean=scores)
    torch.testing.assert_close(catalyst.ratios(), (worth.mean() / worth) ** 0.1, check_dtype=False)
    assert torch.equal(catalyst.kept(), worth > worth.median())
    with pytest.raises(RecipeError, match="`lean` has no scores of `0`"):
        gp.train.Catalyst(program, module, total_steps=8, lean=Scores("l2", {}))


@pytest.mark.parametrize("growth, by", [(1.01, "lean"), (1.5, "growth")])
def test_growth_decides_where_channels_grow_apart_and_the_lean_where_they_do_not(growth, by):
    """Half of the channels are worth a tenth of the others and grow: by a hundredth they go, by a half they stay."""
    module, program = pair()
    poor = torch.arange(12) % 2 == 0
    scores = Scores("l2", {"0": np.where(poor.numpy(), 0.1, 1.0)})
    catalyst = gp.train.Catalyst(program, module, total_steps=8, lean=scores)
    with torch.no_grad():
        for parameter, factors in catalyst.channels.mask(1 + (growth - 1) * poor.double()).items():
            module.get_parameter(parameter).mul_(factors)
    catalyst.step()
    catalyst.step()
    assert torch.equal(catalyst.kept(), ~poor if by == "lean" else poor)


def test_the_gates_gradient_leans_where_asked():
    """|dL/dm| of each channel, by finite differences of its gate, adds up over the opening and decides."""
    module, program = pair(width=6)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    catalyst = gp.train.Catalyst(program, module, optimizer, total_steps=8, keep=0.5, over="readers")
    expected = torch.zeros(6, dtype=torch.float64)
    for step in range(2):
        for k in range(6):
            values = []
            for factor in (1 + 1e-5, 1 - 1e-5):
                gated = copy.deepcopy(module)
                with torch.no_grad():
                    gated[2].weight[:, k] *= factor
                values.append(float(task(gated, step).detach()))
            expected[k] += abs(values[0] - values[1]) / 2e-5
        optimizer.zero_grad()
        (task(module, step) + catalyst()).backward()
        optimizer.step()
        catalyst.step()
    torch.testing.assert_close(catalyst.taylor, expected, rtol=1e-4, atol=1e-8)
    assert torch.equal(catalyst.kept(), expected > expected.median())
    with pytest.raises(RecipeError, match="`lean` cannot be `magnitude`"):
        gp.train.Catalyst(program, module, total_steps=8, lean="magnitude")
    with pytest.raises(ModelError, match="Catalyst works through the optimizer"):
        gp.train.Catalyst(program, module, total_steps=8)


def regression(kind, share, total=400):
    """A small regression, trained to the end."""
    module, program = pair(width=16)
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(64, 5, generator=rng, dtype=torch.float64)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].abs(), x[:, 3] - x[:, 4]], 1)
    optimizer = kind(module.parameters())
    catalyst = gp.train.Catalyst(program, module, optimizer, keep=share, total_steps=total)
    ratios = []
    for _ in range(total):
        optimizer.zero_grad()
        (F.mse_loss(module(x), y) + catalyst()).backward()
        optimizer.step()
        catalyst.step()
        ratios.append(catalyst.ratios())
    return module, catalyst, ratios, x


KINDS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-4),
    "adam": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_wanted_number_stays_by_a_margin_and_dropping_is_lossless(kind, share):
    module, catalyst, ratios, x = regression(KINDS[kind], share)
    opening, closing = 100, 200
    assert ((ratios[opening - 2] > 1 / 3) & (ratios[opening - 2] < 3)).any()
    for each in ratios[opening:]:  # no ratio within the margin, however hard the task pulls
        assert ((each <= 1 / 3 + 1e-12) | (each >= 3 - 1e-12)).all()
    kept = ratios[closing] < 1
    assert int(kept.sum()) == round(16 * share)
    assert torch.equal(kept, catalyst.kept())
    assert (ratios[closing][kept] == 0).all()
    assert catalyst.closed()
    cut = gp.run("propagate", catalyst.learned())
    assert cut.model.get_parameter("0.weight").shape[0] == round(16 * share)
    error = (cut.model(x) - module(x)).abs().max() / module(x).abs().max()
    assert error <= 1e-12


def test_it_closes_in_networks_whose_groups_share_parameters():
    module = copy.deepcopy(nets.module("Residual"))
    program = gp.load(module, nets.ZOO["Residual"].inputs())
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    catalyst = gp.train.Catalyst(program, module, optimizer, total_steps=16)
    inputs = nets.ZOO["Residual"].inputs()
    for _ in range(8):
        optimizer.zero_grad()
        module(*inputs).square().sum().backward()
        optimizer.step()
        assert not catalyst.closed()
        catalyst.step()
    assert catalyst.closed()
    cut = gp.run("propagate", catalyst.learned())
    module.eval()
    assert nets.relative_error(nets.outputs(module, inputs), nets.outputs(cut.model, inputs)) <= 1e-12


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


@pytest.mark.parametrize("grouped", [True, False])
def test_relative_var_is_free_of_scale(grouped):
    """Its formula; and weights ten times as large have the same R, where the paper's has a hundredth."""
    module, program = pair()
    var, plain = (gp.train.VAR(program, module, grouped=grouped, relative=own) for own in (True, False))
    weights = [w.detach().abs() for w in (module[0].weight, module[2].weight)]
    each = [var.channels.norms().detach()] if grouped else weights
    expected = sum(w.numel() * w.square().mean() / w.var(correction=0) for w in each)
    assert float(var.value().detach()) == pytest.approx(float(expected), rel=1e-4)
    finite_differences(var, list(module.parameters()))
    before = float(var.value().detach()), float(plain.value().detach())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(10)
    assert float(var.value().detach()) == pytest.approx(before[0], rel=1e-4)
    assert float(plain.value().detach()) == pytest.approx(before[1] / 100, rel=1e-4)


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


@pytest.mark.parametrize(("structured", "scope"), [(True, "global"), (False, "tensor"), (False, "global")])
@pytest.mark.parametrize("tied", [True, False])
def test_cardinality_is_exact_after_every_step(structured, scope, tied):
    module, program = pair(width=13)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    bip = gp.train.BiP(
        program,
        module,
        optimizer,
        keep=0.4,
        structured=structured,
        scope=scope,
        tied=tied,
        lr=0.05 if tied else 5.0,
        warm_up=1.0,
    )
    masks = []
    for step in range(12):
        if structured:
            alive = (module[2].weight != 0).any(0)
            assert int(alive.sum()) == int(bip.chosen().sum()) == round(0.4 * 13)
        else:
            weights = (module[0].weight, module[2].weight)
            left, sizes = [int((w != 0).sum()) for w in weights], [w.numel() for w in weights]
            if scope == "tensor":
                assert left == [round(0.4 * size) for size in sizes]
            else:
                assert sum(left) == round(0.4 * sum(sizes))
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
    bip = gp.train.BiP(program, module, optimizer, keep=0.5, structured=False, scope="tensor", lr=0.3, curvature=0.02)
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


def test_a_step_of_tied_bip_moves_the_weights_twice():
    """Scores that are the weights: the optimizer's step and the mask's, written out by hand, from momentum zero."""
    module, program = pair(width=6)
    theta = {name: p.detach().clone() for name, p in module.named_parameters() if p.ndim > 1}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    bip = gp.train.BiP(
        program, module, optimizer, keep=0.5, structured=False, tied=True, momentum=0.0, lr=0.3, curvature=0.02
    )
    for step in range(3):
        mask = highest({name: w.abs() for name, w in theta.items()}, 0.5)
        task(module, step).backward()
        for name, w in theta.items():
            g = module.get_parameter(name).grad
            upper = 0.3 * (w - 0.02 * mask[name] * g) * g * w.sign()
            theta[name] = w - upper - 0.1 * mask[name] * g
        optimizer.step()
        optimizer.zero_grad()
        bip.step()
        for name in theta:
            torch.testing.assert_close(bip.dense()[name], theta[name], rtol=1e-12, atol=1e-15)


def test_all_weights_compete_and_no_tensor_is_left_empty():
    module, program = pair(width=10)
    with torch.no_grad():
        module[0].weight.mul_(1e-6)
    bip = gp.train.BiP(program, module, torch.optim.SGD(module.parameters(), lr=0.1), keep=0.1, structured=False)
    assert (int((module[0].weight != 0).sum()), int((module[2].weight != 0).sum())) == (1, 7)
    best = int(bip.dense()["0.weight"].abs().argmax())
    assert float(module[0].weight.flatten()[best].detach()) != 0
    by_name = {"0.weight": 0.2, "2.weight": 0.5}
    other, program = pair(width=10)
    gp.train.BiP(program, other, torch.optim.SGD(other.parameters(), lr=0.1), keep=by_name, structured=False)
    assert (int((other[0].weight != 0).sum()), int((other[2].weight != 0).sum())) == (10, 15)
    with pytest.raises(RecipeError, match="`scope` cannot be `layer`"):
        gp.train.BiP(program, other, torch.optim.SGD(other.parameters(), lr=0.1), scope="layer")


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
    for options, expected in (
        ({"structured": False}, [0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        ({}, [0, 0, 0, 0, 0, 0, 0]),  # of channels it rests
        ({"warm_up": 0.25}, [0.1, 0, 0, 0, 0, 0, 0]),
        ({"warm_up": 0.75}, [0.1, 0.1, 0.1, 0.01, 0.01, 0, 0]),
    ):
        bip = gp.train.BiP(program, module, optimizer, total_steps=100, lr=0.1, **options)
        rates = []
        for done in (0, 25, 49, 50, 74, 75, 99):
            bip.steps.fill_(done)
            rates.append(bip.rate())
        np.testing.assert_allclose(rates, expected)
        bip.remove()


def test_ties_do_not_change_the_count():
    assert int(top(torch.ones(10), 0.3).sum()) == 3
    assert int(top(torch.zeros(3, 3), 0.01).sum()) == 1


def test_help_says_what_a_method_takes():
    assert list(inspect.signature(gp.train.Catalyst).parameters) == [
        name for name in inspect.signature(gp.train.Catalyst.__init__).parameters if name != "self"
    ]
