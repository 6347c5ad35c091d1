"""How many channels of each group survive: the exact methods against brute force."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.allocation.choice import choose, trade, undominated
from graphprune.errors import BudgetError

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


@settings(deadline=None, max_examples=200)
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


@settings(deadline=None, max_examples=100)
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
    assert np.median(ratios) < 1.02 and max(ratios) < 1.25
