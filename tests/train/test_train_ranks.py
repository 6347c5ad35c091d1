"""Methods that choose ranks in training: what they cut is what the module computed, and one run gives nested sizes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.cost.static import params
from graphprune.errors import BudgetError, ModelError, RecipeError
from graphprune.ir.facts import Keep
from graphprune.pipeline.compare import relative
from graphprune.pipeline.factoring import Factor
from graphprune.train.trp import least


class Net(nn.Module):
    """A kernel with stride, one without, a linear layer with fewer outputs, one with more, a weight stored with its
    inputs first, and one that is read through a transposition."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 8, 3, stride=2, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.c, self.d = nn.Linear(24, 16), nn.Linear(16, 20)
        self.e = nn.Parameter(torch.randn(20, 12) / 4)
        self.g = nn.Parameter(torch.randn(12, 12) / 3)
        self.f = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x)))).flatten(1)
        x = torch.relu(torch.mm(torch.relu(self.d(torch.relu(self.c(x)))), self.e))
        return self.f(torch.relu(torch.mm(x, self.g.t())))


def start(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    module = Net().to(dtype)
    x = torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    return module, x, torch.arange(64) % 3, gp.load(module, (x[:2],))


OPTIMIZERS = {
    "sgd": lambda module: torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda module: torch.optim.AdamW(module.parameters(), lr=3e-3),
}


def train(module, penalty, optimizer, x, y, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        (F.cross_entropy(module(x), y) + penalty()).backward()
        optimizer.step()
        penalty.step()


def share(cut, program):
    return params(cut.graph, cut.host)() / params(program.graph, program.host)()


METHODS = {
    "TRP": {"total_steps": 50, "energy": 0.1, "strength": 1e-3},
    "ACIP": {"total_steps": 50, "target": 0.6},
}


@pytest.mark.parametrize(("optimizer", "orders"), [("sgd", "kernel"), ("adam", "separable"), ("adam", "point")])
@pytest.mark.parametrize("kind", sorted(METHODS))
def test_the_cut_computes_what_the_module_did(kind, optimizer, orders):
    module, x, y, program = start()
    made = OPTIMIZERS[optimizer](module)
    penalty = getattr(gp.train, kind)(program, module, made, orders=orders, **METHODS[kind])
    with torch.no_grad():
        before = module(x)
    train(module, penalty, made, x, y, 50)
    learned = penalty.learned()
    cut = gp.run("propagate", learned)
    with torch.no_grad():
        trained = module(x).numpy()
    assert relative(trained, cut.host.run([x])[0]) < 1e-9
    assert relative(before.numpy(), trained) > 0.1
    assert share(cut, program) < 0.9
    factored = cut.plan.of(Factor)[0].layers
    for op, own in zip(penalty.channels.layers.values(), learned.fact(Keep).keep.values(), strict=True):
        if op.op in factored:  # of the others two would be no smaller than one
            assert torch.linalg.matrix_rank(op.matrix(op.parameter.detach()), rtol=1e-9) == len(own)
    assert 0 < len(factored) <= 7
    gp.verify(cut)


def test_where_no_rank_went_the_network_is_whole():
    """Also to the report, whose groups are those that were named by their ranks."""
    module, x, y, program = start()
    made = OPTIMIZERS["sgd"](module)
    penalty = gp.train.TRP(program, module, made, total_steps=2, energy=0.0)
    train(module, penalty, made, x, y, 2)
    artifact = gp.compile(penalty.learned(), measure=False)
    assert share(artifact.program, program) == 1
    assert artifact.report["groups"] == []
    with torch.no_grad():
        assert relative(module(x).numpy(), artifact.program.host.run([x])[0]) < 1e-12


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_so_it_does_in_single_precision(kind):
    module, x, y, program = start(torch.float32)
    made = OPTIMIZERS["adam"](module)
    penalty = getattr(gp.train, kind)(program, module, made, **METHODS[kind])
    train(module, penalty, made, x, y, 50)
    with torch.no_grad():
        assert relative(module(x).numpy(), gp.run("propagate", penalty.learned()).host.run([x])[0]) < 1e-6


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_a_resumed_run_is_the_same(kind):
    found = []
    for stop in (50, 35):
        module, x, y, program = start()
        made = OPTIMIZERS["adam"](module)
        penalty = getattr(gp.train, kind)(program, module, made, **METHODS[kind])
        train(module, penalty, made, x, y, stop)
        if stop < 50:
            states = copy.deepcopy([part.state_dict() for part in (module, made, penalty)])
            module, x, y, program = start()
            made = OPTIMIZERS["adam"](module)
            penalty = getattr(gp.train, kind)(program, module, made, **METHODS[kind])
            for part, state in zip((module, made, penalty), states, strict=True):
                part.load_state_dict(state)
            train(module, penalty, made, x, y, 50 - stop)
        found.append((module.state_dict(), penalty.scores(), penalty.keep()))
    for name, tensor in found[0][0].items():
        assert torch.equal(tensor, found[1][0][name]), name
    for name in found[0][1].scores:
        np.testing.assert_array_equal(found[0][1].scores[name], found[1][1].scores[name])
        np.testing.assert_array_equal(found[0][2].keep[name], found[1][2].keep[name])


# ---- TRP ---------------------------------------------------------------------------------------------


def test_the_rank_is_the_least_that_leaves_the_energy():
    values = torch.tensor([3.0, 2.0, 1.0, 1.0])  # squares 9, 4, 1, 1 of 15
    assert [least(values, energy) for energy in (0.0, 0.06, 0.07, 0.13, 0.14, 0.39, 0.41)] == [4, 4, 3, 3, 2, 2, 1]
    assert least(torch.tensor([2.0, 1.0, 0.0]), 0.0) == 2


def test_trp_truncates_every_so_often_and_at_the_end():
    module, x, y, program = start()
    made = OPTIMIZERS["sgd"](module)
    penalty = gp.train.TRP(program, module, made, total_steps=13, every=5, energy=0.2)
    ranks = []
    for _ in range(13):
        train(module, penalty, made, x, y, 1)
        ranks.append(int(torch.linalg.matrix_rank(module.c.weight, rtol=1e-9)))
    assert [k for k, rank in enumerate(ranks, 1) if rank < 16] == [5, 10, 13]


def test_the_nuclear_norm_counts_after_a_truncation_alone_and_its_gradient_is_of_what_is_left():
    module, x, y, program = start()
    made = OPTIMIZERS["sgd"](module)
    penalty = gp.train.TRP(program, module, made, total_steps=10, every=5, energy=0.2, strength=0.5, layers="c")
    assert float(penalty()) == 0
    train(module, penalty, made, x, y, 5)
    u, values, v = torch.linalg.svd(module.c.weight.detach(), full_matrices=False)
    rank = int(penalty.left[0])
    assert rank < 16
    torch.testing.assert_close(penalty().detach(), 0.5 * values.sum())
    made.zero_grad()
    penalty().backward()
    torch.testing.assert_close(module.c.weight.grad, 0.5 * u[:, :rank] @ v[:rank])
    penalty.step()
    assert float(penalty()) == 0


# ---- ACIP --------------------------------------------------------------------------------------------


def test_one_run_gives_nested_sizes_within_their_budgets():
    module, x, y, program = start()
    made = OPTIMIZERS["adam"](module)
    penalty = gp.train.ACIP(program, module, made, total_steps=40, target=0.4)
    train(module, penalty, made, x, y, 40)
    own = gp.compile(penalty.learned(), measure=False)
    assert own.report["notes"][0] == "ranks were scored in training, by ACIP"
    assert 0.35 < share(own.program, program) <= 0.4
    smaller = None
    for budget in (0.4, 0.6, 0.8):
        cut = gp.run(f"mask{{params={budget}x allocate=global floor=0}},propagate", penalty.learned())
        assert budget - 0.15 < share(cut, program) <= budget
        masked = gp.run(f"mask{{params={budget}x allocate=global floor=0}}", penalty.learned()).fact(Keep).keep
        if smaller is not None:
            assert all(set(ranks) <= set(masked[name]) for name, ranks in smaller.items())
            assert any(len(ranks) < len(masked[name]) for name, ranks in smaller.items())
        smaller = masked


def test_after_the_target_is_met_larger_sizes_run_too_and_the_last_step_leaves_the_target():
    module, x, y, program = start()
    made = OPTIMIZERS["adam"](module)
    penalty = gp.train.ACIP(program, module, made, total_steps=60, target=0.4, nested=0.5)
    train(module, penalty, made, x, y, 36)
    assert penalty.closed()
    target = penalty.chosen()
    fell, sizes = penalty.fell.clone(), []
    for _ in range(24):
        runs = penalty.chosen(penalty.size())
        assert bool((runs >= target).all())
        assert torch.linalg.matrix_rank(module.e.detach(), rtol=1e-9) == int(
            penalty.channels.split(runs)["e_rank"].sum()
        )
        sizes.append(int(runs.sum()))
        train(module, penalty, made, x, y, 1)
    assert torch.equal(penalty.fell, fell)
    assert 6 <= sum(size > int(target.sum()) for size in sizes) <= 18
    assert len(set(sizes)) > 5
    assert penalty.size() == torch.inf


def test_the_gates_gradient_is_what_finite_differences_say():
    module, x, y, program = start()
    made = torch.optim.SGD(module.parameters(), lr=0.0)
    penalty = gp.train.ACIP(program, module, made, total_steps=1000, target=0.5)
    train(module, penalty, made, x, y, 1)
    gates = penalty.channels.split((penalty.spread / 0.01).sqrt())
    for (name, found), weight in zip(gates.items(), penalty.channels.layers, strict=True):
        layer = penalty.channels.layers[weight]
        basis = penalty.get_buffer(f"basis{list(penalty.channels.layers).index(weight)}")
        whole = layer.parameter.detach().clone()
        for k in (0, len(found) - 1):
            losses = []
            for gate in (1e-5, -1e-5):
                matrix = layer.matrix(whole)
                one = basis[:, k : k + 1]
                term = one @ (one.T @ matrix) if len(matrix) == len(basis) <= matrix.shape[1] else matrix @ one @ one.T
                with torch.no_grad():
                    layer.parameter.copy_(layer.weight(matrix + gate * term))
                losses.append(float(F.cross_entropy(module(x), y).detach()))
            with torch.no_grad():
                layer.parameter.copy_(whole)
            assert float(found[k]) == pytest.approx(abs(losses[0] - losses[1]) / 2e-5, rel=1e-4, abs=1e-8), name


def test_what_the_task_does_not_ask_for_goes_first_though_its_values_are_the_largest():
    module = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)).double()
    with torch.no_grad():
        module[0].weight.copy_(torch.diag(torch.arange(1.0, 9.0)))
        module[1].weight.copy_(torch.eye(8) + 0.1 * torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[:, 3:] *= 1e-3
    program = gp.load(module, (x[:2],))
    made = torch.optim.SGD(module.parameters(), lr=1e-4)
    penalty = gp.train.ACIP(program, module, made, total_steps=100, target=0.8, layers="0")
    wanted = module(x).detach() * 0.9
    for k in range(100):
        made.zero_grad()
        rows = torch.randperm(64, generator=torch.Generator().manual_seed(k))[:16]
        (module(x[rows]) - wanted[rows]).square().mean().backward()
        made.step()
        penalty.step()
    kept = penalty.keep().keep["0.rank"]
    values = torch.arange(8.0, 0.0, -1)  # the singular values, falling: the last three are those of the inputs
    assert len(kept) == 2
    assert (values[torch.from_numpy(kept)] <= 3).all()


def test_a_size_that_no_ranks_have_is_refused():
    module, _, _, program = start()
    with pytest.raises(BudgetError, match=r"ACIP: target=0.01 of the parameters, and one rank a layer is 0\.\d+"):
        gp.train.ACIP(program, module, OPTIMIZERS["sgd"](module), total_steps=10, target=0.01)
    with pytest.raises(RecipeError, match="TRP: energy=1"):
        gp.train.TRP(program, module, total_steps=10, energy=1)
    with pytest.raises(ModelError, match="ACIP works through the optimizer"):
        gp.train.ACIP(program, module, total_steps=10)
    module.requires_grad_(False)
    with pytest.raises(ModelError, match="Net trains none of the weights that `factor` makes two of"):
        gp.train.TRP(program, module, total_steps=10)


# ---- constructors ------------------------------------------------------------------------------------


def test_a_constructor_that_raises_leaves_the_optimizer_as_it_was():
    module, _, _, program = start()
    made = OPTIMIZERS["sgd"](module)
    params_before = [len(group["params"]) for group in made.param_groups]

    class Late(gp.train.Polarization):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            raise RecipeError("too late")

    for kind, options in ((gp.train.ACIP, {"target": 0.01, "total_steps": 9}), (gp.train.BiP, {"scope": "x"})):
        with pytest.raises((BudgetError, RecipeError)):
            kind(program, module, made, **options)
    with pytest.raises(RecipeError, match="too late"):
        Late(program, module, made)
    assert not made._optimizer_step_pre_hooks
    assert not made._optimizer_step_post_hooks
    assert [len(group["params"]) for group in made.param_groups] == params_before
