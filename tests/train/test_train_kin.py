"""The other methods that train towards pruning: each does what its formula says."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_train_methods import finite_differences, pair, task
from torch import nn

import graphprune as gp
from graphprune.cost.latency.model import LatencyModel, points
from graphprune.cost.latency.table import Table
from graphprune.cost.static import macs
from graphprune.errors import BudgetError, ModelError, RecipeError
from graphprune.ir.facts import Groups, Keep, Latency
from graphprune.train.method import LISTEN


def sgd(module, rate=0.1):
    return torch.optim.SGD(module.parameters(), lr=rate)


def convolutions(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def images():
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# ---- terms of the loss -------------------------------------------------------------------------------


def test_group_lasso_is_its_formula():
    module, program = pair()
    lasso = gp.train.GroupLasso(program, module)
    rows = torch.cat([module[0].weight, module[0].bias[:, None]], 1)
    torch.testing.assert_close(lasso.value(), (6**0.5 * rows.norm(dim=1)).sum())
    finite_differences(lasso, list(module.parameters()))


def test_slimming_is_the_sum_of_the_scales():
    module = convolutions()
    with torch.no_grad():
        module[1].weight.copy_(torch.linspace(-1, 1, 6))
    slimming = gp.train.Slimming(gp.load(module, images()), module)
    torch.testing.assert_close(slimming.value(), module[1].weight.abs().sum())
    torch.testing.assert_close(slimming.importance()[:6], module[1].weight.abs())
    assert (slimming.importance()[6:] == 1).all()
    mlp, program = pair()
    with pytest.raises(ModelError, match="no BatchNorm scales any channel"):
        gp.train.Slimming(program, mlp)


@pytest.mark.parametrize("kind", ["DReSS", "GrowingRegularization"])
def test_only_what_will_go_is_regularised(kind):
    module, program = pair()
    with pytest.raises(RecipeError, match="does not know what"):
        getattr(gp.train, kind)(program, module)
    known = gp.run("group,score,mask{channels=0.5x}", program)
    penalty = getattr(gp.train, kind)(known, module, strength=0.5)
    penalty.steps.fill_(1)
    penalty().backward()
    stays = known.fact(Keep).keep["0"]
    moved = module[0].weight.grad.abs().sum(1) > 0
    assert not moved[torch.from_numpy(stays)].any()
    assert int(moved.sum()) == 6
    np.testing.assert_array_equal(penalty.keep().keep["0"], stays)
    again = gp.run("mask{channels=0.5x}", penalty.learned()).fact(Keep).keep["0"]
    np.testing.assert_array_equal(again, stays)


def test_growing_regularisation_grows_to_its_ceiling():
    module, program = pair()
    known = gp.run("group,score,mask{channels=0.5x}", program)
    penalty = gp.train.GrowingRegularization(known, module, strength=0.1, every=2, ceiling=0.25)
    seen = []
    for _ in range(8):
        seen.append(penalty.weight())
        penalty.step()
    np.testing.assert_allclose(seen, [0, 0, 0.1, 0.1, 0.2, 0.2, 0.25, 0.25])
    goes = (penalty.goes * penalty.channels.norms().square()).sum()
    torch.testing.assert_close(penalty(), 0.25 * goes / 2)


def test_a_strength_is_found_by_the_tasks_gradient():
    """What the task asks of the same entries, on the mean of the first steps, in which R rests."""
    module, program = pair()
    lasso = gp.train.GroupLasso(program, module, sgd(module, 0.0))
    norms = []
    for step in range(LISTEN + 2):
        assert (float(lasso().detach()) == 0) == (step < LISTEN)
        lasso.optimizer.zero_grad()
        task(module, step).backward()
        if step < LISTEN:  # of what the lasso moves: the first layer
            norms.append(float((module[0].weight.grad.square().sum() + module[0].bias.grad.square().sum()).sqrt()))
        (lasso() + 0).backward()
        lasso.optimizer.step()
        lasso.step()
    asked = torch.autograd.grad(lasso(), [module[0].weight, module[0].bias])
    size = float(sum(own.square().sum() for own in asked).sqrt())
    assert size == pytest.approx(gp.train.GroupLasso.BESIDE * np.mean(norms), rel=1e-5)
    with pytest.raises(ModelError, match="GroupLasso finds its strength through the optimizer"):
        gp.train.GroupLasso(program, module)()
    with pytest.raises(RecipeError, match="VAR: `strength` cannot be `high`"):
        gp.train.VAR(program, module, strength="high")


def test_a_strength_found_goes_with_the_scale_of_the_loss():
    found = []
    for scale in (1.0, 100.0):
        module, program = pair(width=16)
        penalty = gp.train.Polarization(program, module, sgd(module, 0.0), t=0.5)
        for step in range(LISTEN):  # of gates: their gradient comes of the mask's
            penalty.optimizer.zero_grad()
            (scale * task(module, step) + penalty()).backward()
            penalty.optimizer.step()
            penalty.step()
        found.append(penalty.weight())
    assert found[0] > 0
    assert found[1] == pytest.approx(100 * found[0], rel=1e-5)


def test_on_the_fly_sorts_norms_to_both_sides():
    module, _ = pair(width=12)
    program = gp.load(module, torch.zeros(2, 5, dtype=torch.float64), data=torch.randn(32, 5, dtype=torch.float64))
    penalty = gp.train.OnTheFly(program, module, strength=1.0, keep=0.25, over="writers")
    norms = torch.cat([module[0].weight, module[0].bias[:, None]], 1).norm(dim=1)
    lowest = norms.sort().values[:9].sum()
    expected = (lowest - (norms.sum() - lowest)) / norms.square().mean().sqrt()
    torch.testing.assert_close(penalty.value(), expected)
    finite_differences(penalty, list(module.parameters()))
    optimizer = sgd(module, 0.02)
    for _ in range(400):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    norms = penalty.channels.norms().detach()
    stays = penalty.kept()
    assert int(stays.sum()) == 3
    assert norms[~stays].max() < 0.05 * norms[stays].min()
    assert norms[stays].max() < 1.1 * norms[stays].min()  # pushed away from zero, to one length
    cut = gp.run("propagate,compensate{by=mean}", penalty.learned())
    assert cut.model.get_parameter("0.weight").shape == (3, 5)


# ---- masks -------------------------------------------------------------------------------------------

GATED: dict[str, dict[str, object]] = {
    "LAPP": {"temperature": 0.3},
    "Polarization": {},
    "Transport": {"total_steps": 10},
}


@pytest.mark.parametrize("kind", sorted(GATED))
def test_the_gates_gradient_is_what_finite_differences_say(kind):
    """Of the task's loss, through mask * weight, as the optimizer sees it."""
    module = convolutions().eval()
    optimizer = sgd(module, rate=0.0)
    penalty = getattr(gp.train, kind)(gp.load(module, images()), module, optimizer, **GATED[kind])
    (own,) = penalty.parameters()
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(own.grad.clone()))

    def loss():
        penalty.impose()
        return module(images()).square().mean()

    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    for k in range(len(own)):
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                own[k] += step
            values.append(float(loss().detach()))
            with torch.no_grad():
                own[k] -= step
        assert float(seen[0][k]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=2e-3, abs=1e-7)


def test_the_gates_cost_is_the_compilers():
    """With gates of zero and one, the differentiable MACs are those of the network that is then cut."""
    module = convolutions().eval()
    program = gp.load(module, images())
    penalty = gp.train.Polarization(program, module, sgd(module))
    with torch.no_grad():
        penalty.auxiliary.copy_(torch.tensor([1, 0, 1, 1, 0, 1, 0, 1, 1, 0]))
    penalty.impose()
    share = penalty.macs(penalty.gates())
    cut = gp.run("propagate", penalty.learned())
    assert float(share.detach()) == pytest.approx(macs(cut.graph, cut.host)() / macs(program.graph, program.host)())
    torch.testing.assert_close(cut.model(images()), module(images()), rtol=1e-10, atol=1e-12)


def test_the_cost_of_lapp_reaches_its_target():
    module, program = pair(width=16)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    penalty = gp.train.LAPP(program, module, optimizer, target=0.5)
    for step in range(200):
        optimizer.zero_grad()
        (0.1 * task(module, step) + penalty()).backward()
        optimizer.step()
        penalty.step()
    assert float(penalty.macs(penalty.gates()).detach()) == pytest.approx(0.5, abs=0.12)


def test_lapps_gates_harden_as_the_temperature_falls():
    module, program = pair(width=16)
    penalty = gp.train.LAPP(program, module, sgd(module, 0.0), temperature=0.2, cold=0.002, total_steps=10)
    soft = (penalty.gates() * (1 - penalty.gates())).sum()
    heats = []
    for _ in range(12):
        heats.append(penalty.heat())
        penalty.step()
    np.testing.assert_allclose(heats[::5], [0.2, 0.02, 0.002])
    assert (penalty.gates() * (1 - penalty.gates())).sum() < soft / 4
    factors = penalty.gates().detach() * penalty.dense()["2.weight"]
    torch.testing.assert_close(module[2].weight.detach(), factors)


def test_transport_meets_the_budget_at_every_step():
    """Exactly, soft as the plan still is; and scores that gain take from those that do not."""
    module, program = pair(width=16)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    penalty = gp.train.Transport(program, module, optimizer, total_steps=30, target=0.4)
    first = penalty.gates().detach()
    for step in range(31):
        assert float(penalty.macs(penalty.gates()).detach()) == pytest.approx(0.4, abs=1e-5)
        optimizer.zero_grad()
        (task(module, step) + penalty()).backward()
        optimizer.step()
        penalty.step()
    last = penalty.gates().detach()
    assert ((first > 0.05) & (first < 0.95)).sum() >= 8
    assert ((last < 0.05) | (last > 0.95)).sum() >= 15
    assert int(penalty.kept().sum()) == 6  # of 16, within 0.4
    assert set(penalty.ranking.detach().topk(6).indices.tolist()) == set(penalty.kept().nonzero().flatten().tolist())
    slope = torch.autograd.grad(penalty.gates().square().sum(), penalty.ranking)[0]
    assert float(slope.sum()) == pytest.approx(0, abs=1e-3)  # the same to all scores changes nothing


def test_what_goes_is_there_ever_more_rarely():
    module, program = pair(width=40)
    with pytest.raises(RecipeError, match="StochasticMasks is about what will go, and the program does not know what"):
        gp.train.StochasticMasks(program, module, sgd(module), total_steps=10)
    known = gp.run("group,score,mask{channels=0.25x}", program)
    penalty = gp.train.StochasticMasks(known, module, sgd(module, 0.0), total_steps=200)
    stays = torch.zeros(40, dtype=torch.bool).index_fill(0, torch.from_numpy(known.fact(Keep).keep["0"]), True)
    shares = []
    for _ in range(200):
        alive = (module[2].weight != 0).any(0)
        assert alive[stays].all()
        shares.append(float(alive[~stays].double().mean()))
        penalty.step()
    assert shares[0] == 1
    assert shares[100:] == [0] * 100
    np.testing.assert_allclose(np.mean(shares[40:60]), 0.5, atol=0.08)  # half way along the cosine
    assert np.mean(shares[:20]) > 0.93
    np.testing.assert_array_equal(penalty.keep().keep["0"], known.fact(Keep).keep["0"])


def polarized(t):
    module, program = pair(width=16)
    optimizer = sgd(module, rate=0.05)
    penalty = gp.train.Polarization(program, module, optimizer, strength=0.1, t=t)
    with torch.no_grad():
        penalty.auxiliary.copy_(torch.linspace(0.05, 0.95, 16))
    return penalty, optimizer


def test_polarization_leaves_none_in_between():
    penalty, optimizer = polarized(0.0)
    for _ in range(300):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
        penalty.step()
    gates = penalty.gates().detach()
    assert ((gates < 0.02) | (gates > 0.98)).all()
    assert int((gates < 0.02).sum()) == 8


@pytest.mark.parametrize("t", [0.0, 1.0, 1.6])
def test_polarizations_own_choice_is_a_half_and_a_quarter_of_t(t):
    """Brute force over how many of 40 gates are at zero, the others at one (theorem 1 of the paper)."""
    penalty, _ = polarized(t)
    values = []
    for zeros in range(40):
        with torch.no_grad():
            penalty.auxiliary = nn.Parameter(torch.tensor([0.0] * zeros + [1.0] * (40 - zeros)))
        values.append(float(penalty.value().detach()))
    assert int(np.argmin(values)) / 40 == pytest.approx(0.5 + t / 4, abs=0.026)


def test_a_share_to_keep_sets_polarizations_t():
    module, program = pair(width=16)
    for keep, t in ((0.5, 0.0), (0.25, 1.0), (0.1, 1.6)):
        penalty = gp.train.Polarization(program, module, sgd(module), keep=keep)
        assert penalty.t == pytest.approx(t)
        penalty.remove()
    with pytest.raises(RecipeError, match="keep=1 is not a share"):
        gp.train.Polarization(program, module, sgd(module), keep=1)


def test_draws_come_to_agree_within_the_budget():
    module, program = pair(width=16)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    penalty = gp.train.Consensus(program, module, optimizer, target=0.5, strength=1.0)
    first = set()
    for step in range(300):
        alive = (module[2].weight != 0).any(0)
        assert torch.equal(alive, penalty.gates().detach() > 0)  # one or zero, nothing between
        if step < 10:
            first.add(tuple(alive.tolist()))
        optimizer.zero_grad()
        (0.1 * task(module, step) + penalty()).backward()
        optimizer.step()
        penalty.step()
    assert len(first) > 3
    open_ = penalty.importance()
    assert ((open_ < 0.2) | (open_ > 0.8)).sum() >= 14
    assert float(penalty.macs(penalty.kept().float())) == pytest.approx(0.5, abs=0.1)


def test_movement_rests_while_it_warms_up():
    module, program = pair(width=10)
    penalty = gp.train.Movement(program, module, sgd(module), keep=0.3, total_steps=6, warm_up=2)
    counts = []
    for _ in range(8):
        counts.append(int(penalty.chosen().sum()))
        penalty.step()
    assert counts == [10, 10, 10] + [round(10 * share) for share in gp.train.cubic(4, 0.3)] + [3]
    with pytest.raises(RecipeError, match="warm_up=6 of total_steps=6"):
        gp.train.Movement(program, module, sgd(module), total_steps=6, warm_up=6)


def test_movement_gathers_what_its_formula_says_and_counts_exactly():
    module, program = pair(width=10)
    optimizer = sgd(module)
    penalty = gp.train.Movement(program, module, optimizer, keep=0.3, total_steps=4)
    expected, counts = torch.zeros(10, dtype=torch.float64), []
    for step in range(6):
        weight = penalty.dense()["2.weight"].clone()
        optimizer.zero_grad()
        task(module, step).backward()
        expected -= (weight * module[2].weight.grad).sum(0)
        optimizer.step()
        penalty.step()
        counts.append(int((module[2].weight != 0).any(0).sum()))
    torch.testing.assert_close(penalty.movement.double(), expected, rtol=1e-5, atol=1e-7)
    assert counts == [round(10 * share) for share in gp.train.cubic(4, 0.3)] + [3, 3]


def test_smcp_trains_what_it_masks_and_rewires_within_the_budget():
    module, program = pair(width=12)
    optimizer = sgd(module)
    penalty = gp.train.SMCP(program, module, optimizer, budget="macs=0.5x", every=3)
    cost = macs(program.graph, program.host)
    known = gp.run("group", program)
    dims = {group.name: group.dim for group in known.fact(Groups)}
    cost = macs(known.graph, known.host)
    before, alive = penalty.dense()["2.weight"].clone(), []
    for step in range(9):
        alive.append(penalty.alive.clone())
        left = {dims[name]: float(own.sum()) for name, own in penalty.channels.split(penalty.alive).items()}
        assert cost(left) <= 0.5 * cost()
        assert torch.equal((module[2].weight != 0).any(0), penalty.alive > 0)
        optimizer.zero_grad()
        task(module, step).backward()
        optimizer.step()
        penalty.step()
        assert torch.equal(alive[-1], penalty.alive) or (step + 1) % 3 == 0
    masked = alive[0] == 0
    assert (penalty.dense()["2.weight"][:, masked] != before[:, masked]).all()
    assert any(not torch.equal(alive[0], later) for later in alive)


def test_smcp_warms_up_ramps_down_and_rests():
    module, program = pair(width=20)
    optimizer = sgd(module)
    penalty = gp.train.SMCP(
        program, module, optimizer, budget="macs=0.25x", every=1, total_steps=30, allocate="knapsack"
    )
    alive = []
    for step in range(30):
        alive.append(penalty.alive.clone())
        optimizer.zero_grad()
        task(module, step).backward()
        optimizer.step()
        penalty.step()
    counts = [int(one.sum()) for one in alive]
    assert counts[:4] == [20] * 4
    assert counts[9] == 10  # half of the way down, on a scale of powers
    assert counts[15:] == [5] * 15
    assert sorted(counts, reverse=True) == counts
    assert all(torch.equal(one, alive[21]) for one in alive[21:])
    with pytest.raises(RecipeError, match="budget=macs=100 cannot fall step by step"):
        gp.train.SMCP(program, module, optimizer, budget="macs=100", total_steps=30)


def test_smcps_knapsack_is_of_widths_under_a_table_of_latencies():
    """A staircase of eights: widths on its edges, always within the budget, and the best such."""
    module, program = pair(width=40)
    program = gp.run("group", program)
    groups, table = program.fact(Groups), Table({"made": "up"})
    for family, (inner, outer) in points(program.graph, program.host, groups, {"0": range(1, 41)}, 1):
        ms = 10 + np.ceil(inner / 8) * np.ceil(outer / 8)
        table.add({(family, (inner, outer)): Latency(ms, 0.0, 5, 1, "made up")})
    model = LatencyModel.of(program.graph, program.host, groups, table, None, "made up")
    optimizer = sgd(module)
    with pytest.raises(RecipeError, match="needs a LatencyModel"):
        gp.train.SMCP(program, module, sgd(module), budget="latency=0.8x")
    penalty = gp.train.SMCP(program, module, optimizer, budget="latency=0.8x", every=2, table=table)
    for step in range(6):
        counts = {name: int(own.sum()) for name, own in penalty.channels.split(penalty.alive).items()}
        assert model.total_ms(counts) <= 0.8 * model.whole_ms
        assert counts["0"] % 8 == 0
        assert model.total_ms({"0": counts["0"] + 1}) > 0.8 * model.whole_ms
        optimizer.zero_grad()
        task(module, step).backward()
        optimizer.step()
        penalty.step()


# ---- perturbation, schedules, distillation -----------------------------------------------------------


def test_adasap_moves_the_unimportant_most_and_moves_back():
    module, program = pair()
    penalty = gp.train.AdaSAP(program, module, low=0.01, high=0.1)
    task(module, 0).backward()
    before = copy.deepcopy(module.state_dict())
    norms = penalty.channels.norms().detach()
    with penalty.perturbed():
        moved = torch.cat([module[0].weight - before["0.weight"], (module[0].bias - before["0.bias"])[:, None]], 1)
        lengths = moved.detach().norm(dim=1)
        assert all(parameter.grad is None for parameter in module.parameters())
    live = lengths > 0  # a dead unit has no gradient to follow
    place = (norms - norms.min()) / (norms.max() - norms.min())
    torch.testing.assert_close(lengths[live], (0.1 - 0.09 * place)[live])
    assert live.sum() > 6
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_schedules():
    assert list(gp.train.one_shot(0.3)) == [0.3]
    np.testing.assert_allclose(list(gp.train.linear(4, 0.2)), [0.8, 0.6, 0.4, 0.2])
    np.testing.assert_allclose(list(gp.train.cubic(2, 0.2)), [0.2 + 0.8 / 8, 0.2])
    with pytest.raises(RecipeError, match="is no schedule"):
        list(gp.train.linear(0, 0.5))


def test_what_does_not_hold_is_rolled_back():
    """To the smallest that holds, within the last step; and what held before is not touched."""
    _, program = pair(width=80)
    shares = []

    def attempt(held, share):
        shares.append(share)
        return gp.run(f"group,score,mask{{macs={share:.6f}x of=given floor=0}},propagate", held)

    def width(one):
        return one.model.get_parameter("0.weight").shape[0]

    found = gp.train.roll_back(program, attempt, lambda one: width(one) >= 42, step=0.2, least=0.0125)
    assert 42 <= width(found) <= 42 + 80 * 0.0125 + 1
    np.testing.assert_allclose(shares[:4], [0.8, 0.6, 0.4, 0.5])
    assert width(program) == 80
    assert gp.train.roll_back(program, attempt, lambda one: False) is program

    def bounded(held, share):
        if share < 0.5:
            raise BudgetError("nothing is so small")
        return attempt(held, share)

    assert 40 <= width(gp.train.roll_back(program, bounded, lambda one: True)) <= 41
    with pytest.raises(RecipeError, match=r"roll_back: step=0.1, least=0.2"):
        gp.train.roll_back(program, attempt, bool, step=0.1, least=0.2)


def test_answers_are_the_divergence_of_softened_logits():
    a, b = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    p, q = torch.softmax(b / 3, 1), torch.softmax(a / 3, 1)
    expected = 9 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(gp.train.answers(a, b, 3.0).double(), expected, rtol=1e-5, atol=1e-7)
    assert float(gp.train.answers(a, a)) == pytest.approx(0, abs=1e-6)


def test_inner_distillation_compares_the_channels_that_both_have():
    module = convolutions().eval()
    teacher = copy.deepcopy(module)
    program = gp.run("group,score{by=random},mask{channels=0.5x},propagate", gp.load(module, images()))
    done = gp.apply(program, module, in_place=True)
    inner = gp.train.InnerDistillation(done, module, teacher, at=("2", "3"))
    with pytest.raises(ModelError, match="the student has not run yet"):
        inner(images())
    module(images())
    loss = inner(images())
    keep = program.plan["steps"][-1]["keep"]
    expected = []
    for depth, group in ((3, "0"), (4, "3")):
        mine, theirs = module[:depth](images()), teacher[:depth](images())[:, keep[group]]
        expected.append(F.mse_loss(mine, theirs) / theirs.square().mean())
    torch.testing.assert_close(loss.double(), torch.stack(expected).mean(), rtol=1e-5, atol=1e-8)
    loss.backward()
    assert module[0].weight.grad is not None
    assert teacher[0].weight.grad is None
    with pytest.raises(ModelError, match="has no submodule `9`"):
        gp.train.InnerDistillation(done, module, teacher, at=("9",))
    inner.remove()
    assert not module[2]._forward_hooks
    assert not teacher[2]._forward_hooks


def test_a_teacher_of_itself_has_nothing_to_say():
    module = convolutions().eval()
    inner = gp.train.InnerDistillation(gp.load(module, images()), module, copy.deepcopy(module), at=("2",))
    module(images())
    assert float(inner(images()).detach()) == 0


def test_all_is_what_there_is():
    assert sorted(gp.train.__all__) == sorted(set(gp.train.__all__))
    for name in gp.train.__all__:
        assert getattr(gp.train, name).__doc__, name


TOOLS = {"Gated", "Masked", "Penalty", "Ranked", "answers", "cubic", "linear", "one_shot"}
"""What methods are made of, and what goes into a loop beside them."""


@pytest.mark.parametrize("name", sorted(set(gp.train.__all__) - TOOLS))
def test_every_method_says_its_source_and_what_differs(name):
    """In its docstring, and on the page that compares it with its paper."""
    made = getattr(gp.train, name)
    text = f"{sys.modules[made.__module__].__doc__} {made.__doc__}"
    assert re.search(r"\b(19|20)\d\d\b", text)
    assert re.search(r"\[derived|[Pp]art of the paper|Of the paper|the (paper|authors)'s?", text), text
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    table = page[page.index("| method | as in the paper |") :].split("\n\n")[0]
    assert re.search(rf"^\|[^|]*`{name}`", table, re.M)


def test_the_examples_of_the_page_run_in_order():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    for name in re.findall(r"`(\w+)`", page.split("|---|---|---|")[1].split("\n\n")[0]):
        assert name == "keep" or hasattr(gp.train, name), name
