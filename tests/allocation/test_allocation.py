"""How many channels of each group survive: the exact methods against brute force."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from itertools import pairwise, product

import nets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import graphprune as gp
from graphprune.allocation import METHODS, Method
from graphprune.allocation.choice import choose, trade, undominated
from graphprune.allocation.rd import distortions, losses
from graphprune.calibration.batches import batches
from graphprune.cost import static as costs
from graphprune.coupling.groups import find_groups
from graphprune.driver import sensitivity as sweep
from graphprune.errors import BudgetError, RecipeError
from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.facts import Groups, Keep, Losses, Scores
from graphprune.ir.program import Program
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import run

numbers = st.integers(0, 40)
menus = st.lists(st.dictionaries(st.integers(1, 9), st.tuples(numbers, numbers), min_size=1), min_size=1, max_size=4)


def split(tables):
    losses = {f"g{k}": {count: float(pair[0]) for count, pair in table.items()} for k, table in enumerate(tables)}
    costs = {f"g{k}": {count: float(pair[1]) for count, pair in table.items()} for k, table in enumerate(tables)}
    return losses, costs


def brute(losses, cost, budget):
    """The least loss within the budget over every combination, or None."""
    every = (dict(zip(losses, counts, strict=True)) for counts in product(*losses.values()))
    fitting = [counts for counts in every if cost(counts) <= budget]
    return min((sum(losses[n][k] for n, k in counts.items()) for counts in fitting), default=None)


@settings(max_examples=200)
@given(menus, st.integers(0, 120))
def test_one_count_per_group_is_chosen_as_brute_force_does(tables, budget):
    losses, costs = split(tables)
    price = lambda counts: sum(costs[n][k] for n, k in counts.items())  # noqa: E731
    want = brute(losses, price, budget)
    if want is None:
        with pytest.raises(BudgetError, match="cannot be met"):
            choose(losses, costs, budget)
        return
    found = choose(losses, costs, budget)
    assert price(found) <= budget
    assert sum(losses[n][k] for n, k in found.items()) == want


def test_a_staircase_is_no_price_per_channel():
    """Seven channels cost what eight cost: seven is never chosen, nor is anything that costs more for less."""
    costs = {k: 8.0 * -(-k // 8) for k in range(1, 17)}
    losses = {k: 1.0 / k for k in range(1, 17)}
    assert undominated(losses, costs) == [8, 16]
    assert choose({"a": losses, "b": losses}, {"a": costs, "b": costs}, 24) in ({"a": 8, "b": 16}, {"a": 16, "b": 8})


def test_a_long_list_of_states_is_thinned_within_the_budget():
    rng = np.random.default_rng(0)
    losses = {f"g{g}": dict(enumerate(np.sort(rng.random(30))[::-1], 1)) for g in range(20)}
    costs = {f"g{g}": dict(enumerate(np.sort(rng.random(30)), 1)) for g in range(20)}
    exact, thin = choose(losses, costs, 6.0, 300_000), choose(losses, costs, 6.0, 2_000)
    cost = lambda counts: sum(costs[n][k] for n, k in counts.items())  # noqa: E731
    loss = lambda counts: sum(losses[n][k] for n, k in counts.items())  # noqa: E731
    assert cost(exact) <= 6 and cost(thin) <= 6
    assert loss(exact) <= loss(thin) <= 1.01 * loss(exact)


@settings(max_examples=100)
@given(st.data())
def test_coupled_costs_are_traded_within_the_budget_and_no_step_up_is_left(data):
    """A chain of layers that cost the product of neighbouring widths."""
    names = [f"g{k}" for k in range(data.draw(st.integers(1, 4)))]
    losses = {}
    for name in names:
        drops = sorted(data.draw(st.lists(st.integers(0, 50), min_size=5, max_size=5)), reverse=True)
        losses[name] = dict(zip((1, 2, 4, 6, 8), map(float, drops), strict=True))

    def cost(counts):
        widths = [3, *(counts[name] for name in names), 2]
        return sum(a * b for a, b in pairwise(widths))

    def prices(counts, group, options):
        return np.array([cost({**counts, group: k}) for k in options.tolist()])

    whole = cost(dict.fromkeys(names, 8))
    budget = data.draw(st.floats(0.05, 1)) * whole
    want = brute(losses, cost, budget)
    if want is None:
        with pytest.raises(BudgetError):
            trade(losses, prices, budget)
        return
    found = trade(losses, prices, budget)
    assert cost(found) <= budget
    for name in names:
        for k, loss in losses[name].items():
            assert cost({**found, name: k}) > budget or loss >= losses[name][found[name]]
    if cost(dict.fromkeys(names, 8)) <= budget:
        assert sum(losses[n][k] for n, k in found.items()) == want


def chain(rng, groups, options):
    """A chain of layers of random widths, MACs being products of neighbours: losses, prices, a budget and the
    least loss that brute force finds in it."""
    names = [f"g{k}" for k in range(groups)]
    menus = {name: np.unique(rng.integers(1, 64, options)) for name in names}
    losses = {
        name: dict(
            zip(
                menu.tolist(),
                np.sort(rng.exponential(size=len(menu)) * rng.uniform(0.1, 10))[::-1].tolist(),
                strict=True,
            )
        )
        for name, menu in menus.items()
    }
    weights = rng.uniform(0.2, 3, groups + 1)

    def macs(widths):
        inner = sum(w * a * b for w, (a, b) in zip(weights[1:-1], pairwise(widths), strict=True))
        return 3 * weights[0] * widths[0] + inner + 10 * weights[-1] * widths[-1]

    def prices(counts, group, options):
        return macs([options.astype(float) if name == group else float(counts[name]) for name in names])

    every = np.meshgrid(*(menus[name].astype(float) for name in names), indexing="ij")
    cost = macs(every)
    lost = sum(np.vectorize(losses[name].get)(grid) for name, grid in zip(names, every, strict=True))
    budget = cost.min() + rng.uniform(0.05, 0.9) * np.ptp(cost)
    return losses, prices, budget, lost[cost <= budget].min()


def traded(losses, prices, budget):
    found = trade(losses, prices, budget)
    first = next(iter(found))
    assert prices(found, first, np.array([found[first]]))[0] <= budget * (1 + 1e-12)
    return sum(losses[name][count] for name, count in found.items())


@pytest.mark.parametrize(("groups", "options", "draws"), [(2, 8, 200), (3, 6, 200), (4, 6, 100)])
def test_small_menus_are_traded_as_brute_force_does(groups, options, draws):
    rng = np.random.default_rng(groups)
    for _ in range(draws):
        *problem, best = chain(rng, groups, options)
        assert traded(*problem) <= best * (1 + 1e-9)


def test_large_menus_are_traded_nearly_as_well(monkeypatch):
    monkeypatch.setattr("graphprune.allocation.choice.EXACT", 0)
    rng = np.random.default_rng(5)
    gaps = []
    for _ in range(30):
        *problem, best = chain(rng, 5, 6)
        gaps.append(traded(*problem) / best - 1)
    assert np.mean(gaps) < 0.02 and max(gaps) < 0.25


def test_trading_comes_close_to_brute_force_on_convex_losses():
    rng = np.random.default_rng(1)
    ratios = []
    for _ in range(40):
        losses = {
            f"g{g}": {k: float(s) * (1 / k - 1 / 8) for k in range(1, 9)} for g, s in enumerate(rng.random(4) * 9)
        }
        cost = lambda c: 3 * c["g0"] + c["g0"] * c["g1"] + c["g1"] * c["g2"] + c["g2"] * c["g3"] + c["g3"]  # noqa: E731
        prices = lambda c, g, ks, cost=cost: np.array([cost({**c, g: k}) for k in ks.tolist()])  # noqa: E731
        budget = rng.uniform(0.2, 0.9) * cost(dict.fromkeys(losses, 8))
        found = trade(losses, prices, budget)
        ratios.append(sum(losses[n][k] for n, k in found.items()) / max(brute(losses, cost, budget), 1e-12))
    assert max(ratios) <= 1 + 1e-9


# ---- on networks ---------------------------------------------------------------------------------------


def prepared(name="Residual", samples=40):
    program = nets.program(name)
    x = np.random.default_rng(3).standard_normal((samples, *program.host.example()[0].shape[1:]))
    return run(Recipe.parse("group,score"), replace(program, data=batches(x, program.graph.inputs)))


def kept(program):
    return {name: len(indices) for name, indices in program.fact(Keep).keep.items()}


UNITS = {"params": costs.params, "size": costs.size, "macs": costs.macs, "memory": costs.memory}


@pytest.mark.parametrize("unit", ["channels", *UNITS])
@pytest.mark.parametrize("allocate", sorted({*METHODS} - {"stepwise"}))  # which takes branches alone
def test_every_allocation_meets_every_budget(allocate, unit):
    program = prepared()
    counts = kept(run(Recipe.parse(f"mask{{{unit}=0.6x allocate={allocate} floor=0.2}}"), program))
    groups = program.fact(Groups)
    assert all(counts[group.name] >= 0.2 * group.size for group in groups)
    if unit == "channels":
        limit = 0.6 * sum(group.size for group in groups)
        assert sum(counts.values()) <= limit
    else:
        cost = UNITS[unit](program.graph, program.host)
        have = cost({group.dim: counts[group.name] for group in groups})
        assert have <= 0.6 * cost()
        if allocate == "eagleeye" and unit == "macs":
            assert have >= 0.97 * 0.6 * cost()


def test_knapsack_keeps_the_most_score_that_brute_force_finds():
    program = prepared("MLP")
    groups, scores = program.fact(Groups), program.fact(Scores)
    for remains in (0.3, 0.5, 0.8):
        counts = kept(run(Recipe.parse(f"mask{{channels={remains}x allocate=knapsack floor=0}}"), program))
        best = lambda g, k: float(np.sort(scores[g])[::-1][:k].sum())  # noqa: E731
        budget = remains * sum(group.size for group in groups)
        menus = [range(1, group.size + 1) for group in groups]
        fitting = (ks for ks in product(*menus) if sum(ks) <= budget)
        want = max(sum(best(g, k) for g, k in zip(groups, ks, strict=True)) for ks in fitting)
        assert sum(best(group, counts[group.name]) for group in groups) == pytest.approx(want)


def test_distortion_is_what_the_outputs_lose_with_the_readers_refitted(monkeypatch):
    """Against pruning that group alone and fitting by numpy, on a network with one reader a group."""
    monkeypatch.setattr(import_module("graphprune.allocation.measured"), "SAMPLES", 64)
    host = TorchHost.export(
        nets.randomise(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()),
        (torch.zeros(2, 4, dtype=torch.float64),),
    )
    program = Program(host=host, source=host)
    x = np.random.default_rng(0).standard_normal((64, 4))
    program = run(Recipe.parse("group,score{by=obs}"), replace(program, data=batches(x, program.graph.inputs)))
    (group,) = program.fact(Groups)
    curve = distortions(program, program.fact(Groups), program.fact(Scores))[group.name]
    assert curve[8] == 0 and all(curve[k] >= curve[k + 1] for k in range(1, 8))
    h = np.maximum(x @ host.parameter("0.weight").T + host.parameter("0.bias"), 0)
    y = h @ host.parameter("2.weight").T
    for k in (2, 4, 6):  # where it was measured
        best = np.argsort(-program.fact(Scores)[group])[:k]
        inputs = np.c_[h[:, best], np.ones(len(h))]
        error = np.square(inputs @ np.linalg.lstsq(inputs, y, rcond=None)[0] - y).mean() / y.var(0).mean()
        assert curve[k] == pytest.approx(error, rel=0.15)  # the damping leaves a little


def test_peak_memory_is_that_of_the_largest_moment():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 3, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.c(self.b(torch.relu(self.a(x))))

    host = TorchHost.export(Wide(), (torch.zeros(2, 2, 5, 5),))
    program = Program(host=host, source=host)
    cost = costs.memory(program.graph, host)
    assert cost() == 4 * 25 * (8 + 8)  # the ReLU's input and output
    found = {group.name: group.dim for group in find_groups(program.graph)}
    assert cost({found["a"]: 3}) == 4 * 25 * (3 + 3)
    assert cost({found["a"]: 1}) == 4 * 25 * (3 + 2)  # now the last layer


# ---- what counts for nothing ---------------------------------------------------------------------------


def test_what_counts_for_nothing_is_cut_without_a_trace():
    """A channel that nothing reads, one that is always zero, and one that only feeds a dead one."""
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval()
    nets.randomise(net)
    with torch.no_grad():
        net[4].weight[:, 1] = 0  # nothing reads channel 1 of the second layer
        net[2].weight[:, 2] = 0
        net[2].weight[1, 2] = 1.0  # so that channel 2 of the first feeds nothing that lives
        net[0].weight[4], net[0].bias[4] = 0, -1  # zero after the ReLU
        net[0].weight[5], net[0].bias[5] = 0, 1  # constant, but not zero
    host = TorchHost.export(net, (torch.randn(2, 4, dtype=torch.float64),))
    program = Program(host=host, source=host)
    done = run(Recipe.parse("group,dead,propagate"), program)
    assert done.plan["steps"][0]["keep"] == {"0": [0, 1, 3, 5], "2": [0, 2, 3, 4]}
    assert done.notes == ("3 channels counted for nothing",)
    x = [np.random.default_rng(0).standard_normal((2, 4))]
    np.testing.assert_allclose(done.host.run(x)[0], program.host.run(x)[0], rtol=0, atol=1e-12)


def test_constant_channels_go_into_the_biases_of_what_reads_them_exactly():
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 3, padding=1)),
    )
    nets.randomise(net.double().eval())
    with torch.no_grad():
        net[0].weight[[1, 4]], net[1].bias[[1, 4]] = 0, torch.tensor([3.0, 2.0], dtype=torch.float64)
        net[3].weight[2], net[3].bias[2] = 0, 1.5  # its reader pads with zeros: not the same everywhere
    host = TorchHost.export(net, (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
    program = Program(host=host, source=host)
    x = np.random.default_rng(0).standard_normal((9, 3, 6, 6))
    program = replace(program, data=batches(x, program.graph.inputs))
    done = run(Recipe.parse("group,dead{constant=true},propagate,compensate{by=mean}"), program)
    assert done.plan["steps"][0]["keep"] == {"0": [0, 2, 3, 5], "3": [0, 1, 2, 3, 4]}
    np.testing.assert_allclose(done.host.run([x])[0], program.host.run([x])[0], rtol=0, atol=1e-12)
    assert run(Recipe.parse("group,dead"), program).fact(Keep).keep["0"].tolist() == list(range(6))


def test_sweep_measures_every_group_and_draws_the_same_bytes(tmp_path):
    program = prepared()
    curves = sweep.sweep(replace(program, facts={}))
    assert set(curves) == {group.name for group in program.fact(Groups)}
    assert all(list(curve.values()) == sorted(curve.values()) for curve in curves.values())
    for name in ("a.svg", "b.svg"):
        sweep.plot(curves, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert len(sweep.table(curves).splitlines()) == 1 + len(curves)


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        return self.three(self.two(self.one(x).relu()).relu())


def test_less_is_left_of_an_axis_that_two_groups_make_and_that_is_told():
    program = Program(*(2 * [TorchHost.export(Grouped().eval(), torch.randn(2, 3, 6, 6))]))
    done = run(Recipe.parse("group,score,mask{channels=0.5x}"), program)
    told = "each of several groups keeps 0.5x"
    (note,) = (note for note in done.notes if told in note)
    assert "0.25x of one.weight[0] (4 x 4)" in note
    assert not any(told in note for note in run(Recipe.parse("group,score,mask{macs=0.5x}"), program).notes)
    assert not run(Recipe.parse("group,score,mask{channels=0.5x}"), nets.program("Residual")).notes


@pytest.mark.parametrize(
    ("width", "told"),
    [
        ("two=4", "`width=two=4`: it is 4 of `two.1`, so that {} of the 16 channels of two.weight[0] (4 x 4) are left"),
        (
            "one=0.5x",
            "it is 2 of `one.0` and 2 of `one.1`, so that 4 of the 16 channels of one.weight[0] (4 x 4) are left",
        ),
        ("*=0.5x", "so that 4 of the 16 channels of one.weight[0] (4 x 4) are left"),
        ("one.0=2", ""),
        ("one.0=2|group:one.1=3", ""),
    ],
)
def test_a_width_of_a_layer_that_several_groups_make_is_told(width, told):
    program = Program(*(2 * [TorchHost.export(Grouped().eval(), torch.randn(2, 3, 6, 6))]))
    for budget, left in (("", 16), (" channels=0.9x", 12)):
        notes = " ".join(run(Recipe.parse(f"group,score,mask{{width={width}{budget}}}"), program).notes)
        assert told.format(left) in notes and ("`width=" in notes) == bool(told)
        assert "for every group is whole" not in notes
        assert ("each of several groups keeps" in notes) == (bool(budget) and width == "two=4")  # of one, then


def test_a_width_that_no_group_of_a_layer_has_says_which_group():
    program = Program(*(2 * [TorchHost.export(Grouped().eval(), torch.randn(2, 3, 6, 6))]))
    with pytest.raises(RecipeError, match=r"`two.1` has 4 channels, not 8; `two` means it too"):
        run(Recipe.parse("group,score,mask{width=two=8}"), program)


def test_more_than_was_asked_for_is_told(monkeypatch):
    """Of graphprune's own none does that: a budget that cannot be met is refused."""
    whole = Method(lambda problem: {group.name: group.size for group in problem.groups})
    monkeypatch.setattr("graphprune.passes.mask.methods", lambda: {"uniform": whole})
    done = run(Recipe.parse("group,score,mask{channels=0.3x}"), nets.program("MLP"))
    assert any("1x of channels are left where 0.3x was asked for" in note for note in done.notes)


def test_candidates_that_come_no_nearer_to_the_budget_are_told():
    program = nets.program("MLP")
    data = batches([x.numpy() for x in nets.ZOO["MLP"].inputs()], program.graph.inputs)
    coarse = run(Recipe.parse("group,score,mask{macs=0.6x allocate=eagleeye grain=4}"), replace(program, data=data))
    assert any("is kept, for one more step of any group exceeds it" in note for note in coarse.notes)


def test_losses_that_lack_a_group_are_named():
    program = gp.run("group,score", nets.program("MLP"))
    with pytest.raises(RecipeError, match="the Losses that are known have none of `fc1`"):
        losses(program.learn(Losses({})), program.fact(Groups), {"fc1": [1]})
