"""What was asked for is got: after an allocation one more step of any group would exceed the budget."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import nets
import numpy as np
import pytest
import tiny
from torch import nn, randn

import graphprune as gp
from graphprune.allocation import METHODS, Allocation, methods
from graphprune.allocation.fill import fill
from graphprune.calibration.batches import batches
from graphprune.cost.static import Cost
from graphprune.cost.units import cost as cost_in
from graphprune.errors import BudgetError
from graphprune.ir.facts import Groups, Keep, Losses, Scores
from graphprune.ir.program import Program
from graphprune.passes.mask import NOTED
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import run

COUNTED = ("channels", "params", "macs", "memory")
GRAINS = (1, 8, 16)
NETS = ("Residual", "Depthwise", "Grouped", "Dense", "Heads", "Attention", "Shared", "SqueezeExcite")


def assert_spent(scored: Program, unit: str, share: float, more: str = "") -> None:
    """Within the budget, and nothing that still fits is left out, by the cost of the whole network; where the floors
    alone exceed it, that is said."""
    groups = scored.fact(Groups)
    cost, grain = cost_in(unit, scored.graph, scored.host, groups), 1
    if "grain=" in more:
        grain = int(more.split("grain=")[1].split()[0])
    menus = Allocation(scored, groups, Scores("", {}), Cost("", (), {}), 0.0, "", 0.1, grain)
    price = lambda counts: cost({group.dim: counts[group.name] for group in groups})  # noqa: E731
    limit = share * cost() * (1 + 1e-12)
    try:
        done = run(Recipe.parse(f"mask{{{unit}={share}x {more}}}"), scored)
    except BudgetError:
        assert price({group.name: menus.menu(group)[0] for group in groups}) > limit
        return
    counts = {name: len(kept) for name, kept in done.fact(Keep).keep.items()}
    assert price(counts) <= limit
    for group in groups:
        higher = [count for count in menus.menu(group) if count > counts[group.name]]
        assert not higher or price({**counts, group.name: higher[0]}) > limit, (group.name, counts)
    said = [note for note in done.notes if note.startswith(f"{unit}={share}x: ")]
    named = more.partition("allocate=")[2].partition(" ")[0] or "uniform"
    assert bool(said) == (price(counts) / cost() < share - min(NOTED, share * methods()[named].near))


@pytest.mark.parametrize("unit", COUNTED)
@pytest.mark.parametrize("name", NETS)
def test_no_step_that_fits_is_left(name: str, unit: str) -> None:
    scored = gp.run("group,score", nets.program(name))
    for grain in GRAINS:
        assert_spent(scored, unit, 0.7, f"allocate={'uniform' if unit == 'channels' else 'global'} grain={grain}")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, net in nets.ZOO.items() if net.prunable))
def test_no_step_that_fits_is_left_by_any_method(name: str) -> None:
    program = nets.program(name)
    if not len(groups := gp.run("group", program).fact(Groups)) or name == "Unknown":
        pytest.skip("nothing to prune")
    x = np.random.default_rng(3).standard_normal((8, *program.host.example()[0].shape[1:]))
    scored = gp.run("group,score", program)
    if len(program.host.example()) == 1 and program.host.example()[0].dtype == np.float64:
        scored = replace(scored, data=batches(x, program.graph.inputs))
    apart = "stepwise", "depthwise"  # takes branches alone; goes by depth, and may refuse before all floors are met
    for method in [one for one in METHODS if one not in apart and (scored.data or one not in ("rd", "eagleeye"))]:
        for unit in COUNTED:
            for grain in GRAINS:
                for share in (0.9, 0.5):
                    assert_spent(scored, unit, share, f"allocate={method} grain={grain}")
    assert len(groups)


@pytest.mark.parametrize("host", tiny.HOSTS)
@pytest.mark.parametrize("unit", COUNTED)
def test_both_hosts_are_filled(host: str, unit: str) -> None:
    scored = gp.run("group,score", tiny.program("fork", host))
    for share in (0.9, 0.6):
        assert_spent(scored, unit, share)


def test_flat_losses_are_no_reason_to_keep_less() -> None:
    """Between counts that lose the same, nothing speaks for the lower one but that it came first."""
    net = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 2))
    scored = replace(gp.run("group,score", gp.load(net, randn(2, 4))), data=([np.zeros((2, 4), np.float32)],))
    flat = {count: float(count < 10) for count in range(1, 41)}
    for unit in ("channels", "params", "macs"):
        assert_spent(scored.learn(Losses({"0": flat})), unit, 0.8, "allocate=rd")


def test_the_report_says_why_less_is_kept() -> None:
    net = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2))
    done = gp.run("group,score,mask{channels=0.9x grain=16}", gp.load(net, randn(2, 4)))
    assert {name: len(kept) for name, kept in done.fact(Keep).keep.items()} == {"0": 20, "2": 16}
    assert done.notes == (
        "channels=0.9x: 0.72x is kept, for one more step of any group exceeds it: the cheapest, `2` at 30 channels, "
        "comes to 1x",
    )
    assert gp.run("group,score,mask{channels=0.9x}", gp.load(net, randn(2, 4))).notes == ()


# ---- the step itself -----------------------------------------------------------------------------------


def macs(counts):
    widths = [3.0, *counts.values(), 2.0]
    return sum(a * b for a, b in pairwise(widths))


def prices(counts, group, options):
    return np.array([macs({**counts, group: float(k)}) for k in options.tolist()])


def test_what_is_worth_most_per_cost_comes_first() -> None:
    """`a` costs 3 + b a channel and `b` a + 2: 4 and 3 at the start, where a channel of `a` is worth two of `b`."""
    losses = {"a": {k: 2.0 * (8 - k) for k in range(1, 9)}, "b": {k: 1.0 * (8 - k) for k in range(1, 9)}}
    assert macs({"a": 1, "b": 1}) == 6
    assert fill(losses, prices, 10, {"a": 1, "b": 1}) == {"a": 2, "b": 1}
    assert fill(losses, prices, 9.9, {"a": 1, "b": 1}) == {"a": 1, "b": 2}  # a step of `a` comes to 10
    assert fill(losses, prices, 6, {"a": 1, "b": 1}) == {"a": 1, "b": 1}


def test_a_budget_is_met_to_the_last_step() -> None:
    """0.29 of 100 channels are 29, although 0.29 * 100 is less than that."""
    losses = {"a": {k: 100.0 - k for k in range(1, 101)}}
    single = lambda counts, group, options: options.astype(float)  # noqa: E731
    assert 0.29 * 100 < 29 and fill(losses, single, 0.29 * 100, {"a": 28}) == {"a": 29}


@pytest.mark.parametrize("seed", range(20))
def test_costs_that_fall_as_others_rise_are_looked_at_again(seed: int) -> None:
    """As of a table, where a wider layer may be faster: any staircase."""
    rng = np.random.default_rng(seed)
    losses = {f"g{k}": {count: float(9 - count) for count in range(1, 9)} for k in range(3)}
    table = rng.uniform(1, 10, (9, 9, 9))
    price = lambda counts: float(table[tuple(counts.values())])  # noqa: E731
    asked = lambda counts, group, options: np.array([price({**counts, group: k}) for k in options.tolist()])  # noqa: E731
    start = dict.fromkeys(losses, 1)
    budget = max(price(start), 6.0)
    found = fill(losses, asked, budget, start)
    assert price(found) <= budget
    assert all(price({**found, n: k + 1}) > budget for n, k in found.items() if k < 8)
