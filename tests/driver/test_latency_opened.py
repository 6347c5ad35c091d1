"""Latency budgets where dims were opened: ranks, or layers that stay whole, hidden sizes and branches by one table."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import torch
from known import Known, alone, smooth, without_a_clock
from residual import transformer
from torch import nn

import graphprune as gp
from graphprune.cost.latency.model import LatencyModel
from graphprune.driver.latency_search import recorded, to_latency
from graphprune.errors import BudgetError
from graphprune.ir.facts import Groups, Keep, Losses
from graphprune.ir.program import Program
from graphprune.passes.mask import Mask
from graphprune.pipeline.bypass import Bypass
from graphprune.pipeline.edits import Cut
from graphprune.pipeline.factoring import Factor, ranks, undecided
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.replay import replay

ON = Known(factor=1.0, extra=0.0, ms=smooth)
ALL = "rms,rotate{per=block},factor{by=data},group,branches,score{by=obs}"


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_a_clock(tmp_path / "cache", monkeypatch)


class Kernels(nn.Module):
    """Convolutions with a stride, with taps along one axis alone, and with a dilation; and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.Conv2d(12, 10, (1, 5), padding=(0, 2))
        self.c, self.head = nn.Conv2d(10, 14, 3, dilation=2, padding=2), nn.Linear(14, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        out: torch.Tensor = self.head(torch.relu(self.c(x)).mean((2, 3)))
        return out


def kernels() -> Program:
    module = nets.randomise(Kernels().double().eval())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    return gp.load(module, (x,), data=[np.random.default_rng(0).standard_normal((16, 3, 16, 16))])


def blocks() -> Program:
    module, x = transformer(2)
    return gp.load(module, (x,), data=[np.random.default_rng(0).standard_normal((32, 4, 5))])


def modelled(program: Program) -> LatencyModel:
    table, _ = recorded(program, ON, Mask(latency="0.5x", allocate="rd", floor=0))
    groups, found = program.fact(Groups), undecided(program)
    return LatencyModel.of(program.graph, program.host, groups, table, None, "known", found, program.source)


CASES = [
    ("factor{orders=kernel},group", kernels),
    ("factor{orders=point},group", kernels),
    ("factor{orders=separable},group", kernels),
    ("factor{share=all},group,branches", blocks),
    ("rms,rotate{per=block},factor{by=data},group,branches", blocks),
]


@pytest.mark.parametrize(("recipe", "net"), CASES, ids=[recipe for recipe, _ in CASES])
def test_a_price_is_that_of_what_is_exported(clock: None, recipe: str, net: Callable[[], Program]) -> None:
    """Whatever is kept: cut, factored or whole, rotated, and without branches."""
    given = net()
    opened = gp.run(recipe, given)
    model, groups, rng = modelled(opened), opened.fact(Groups), np.random.default_rng(1)
    assert model.whole_ms == pytest.approx(alone(given, smooth))
    both = set[bool]()
    for _ in range(4):
        counts = {g.name: int(rng.integers(0 if g.branches else 1, g.size + 1)) for g in groups}
        keep = {g.name: np.sort(rng.permutation(g.size)[: counts[g.name]]) for g in groups}
        whole = model.whole_layers(counts)
        cut = gp.run("propagate", opened.learn(Keep(keep, whole=whole)))
        assert model.total_ms(counts) == pytest.approx(alone(cut, smooth), rel=1e-9)
        assert {*ranks(cut)} <= {rank.outers[0] for rank in undecided(opened)} - whole
        both |= {rank.outers[0] in whole for rank in undecided(opened)}
    assert both == {True, False}, "some layers stay whole, others become two"


@pytest.mark.parametrize("share", ["0.8x", "0.5x"])
def test_ranks_or_whole_layers_are_chosen_as_well_as_can_be(clock: None, share: str) -> None:
    """Against all choices there are, by losses that are known."""
    opened = gp.run("factor{layers=a|b|c},group{only=*rank},score", kernels())
    groups, rng, mask = opened.fact(Groups), np.random.default_rng(2), Mask(latency=share, allocate="rd", floor=0)
    assert len(groups) == 3
    losses = {g.name: dict(enumerate(np.sort(rng.random(g.size))[::-1].tolist(), 1)) | {g.size: 0.0} for g in groups}
    model = modelled(opened)
    cut = gp.run(f"{mask.text()},propagate", opened.learn(Losses(losses)).learn(model))
    keep = cut.plan.of(Cut)[0].keep
    counts = {g.name: len(keep.get(g.name, range(g.size))) for g in groups}
    menus = mask.menus(opened)
    choices = (dict(zip(menus, each, strict=True)) for each in product(*menus.values()))
    budget = model.budget_ms(share)
    within = [one for one in choices if model.total_ms(one) <= budget]
    lost = [sum(losses[name][count] for name, count in one.items()) for one in (counts, *within)]
    assert lost[0] == pytest.approx(min(lost[1:]))
    assert alone(cut, smooth) == pytest.approx(model.total_ms(counts)) and alone(cut, smooth) <= budget


def test_all_in_one_budget_of_latency(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is predicted is measured, what goes is proven, and the plan says all of it."""
    monkeypatch.setattr("graphprune.driver.latency_search.ROUNDS", 1)
    given = blocks()
    found = to_latency(given, Recipe.parse(f"{ALL},mask{{latency=0.5x allocate=rd}},propagate,compensate"), ON)
    done, facts = found.program, found.facts
    assert facts["predicted_ms"] == pytest.approx(facts["measured_ms"]) == pytest.approx(alone(done, smooth))
    assert facts["measured_ms"] <= 1.03 * 0.5 * alone(given, smooth) and facts["goal_ms"] == 0.5 * facts["whole_ms"]
    assert any(note.startswith("`allocate=rd`: on ") and "layers become two" in note for note in done.notes)
    assert len(done.plan.of(Factor)[0].layers) > 0 or done.plan.of(Bypass)
    gp.verify(done)
    again = replay(done.plan, given.host)
    for name in done.graph.parameters:
        assert np.array_equal(again.host.parameter(name), done.host.parameter(name))


def test_what_groups_lose_beside_each_other_is_measured_once(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later choices, for a table that was wrong, go by it, and the note says so."""
    module = import_module("graphprune.allocation.rd")  # the package has a function of that name
    calls, of = list[float](), module.agreed

    def counted(problem: Any, *rest: Any) -> Any:
        calls.append(problem.budget)
        return of(problem, *rest)

    monkeypatch.setattr(module, "agreed", counted)
    opening, off = "factor{by=data},group,branches,score{by=obs}", Known(factor=1.0, extra=0.03, ms=smooth)
    recipe = Recipe.parse(f"{opening},mask{{latency=0.7x allocate=rd}},propagate,compensate")
    found = to_latency(blocks(), recipe, off)
    assert len(calls) == 1 < len(found.facts["rounds"]) and found.facts["taken"] > 0
    assert found.facts["measured_ms"] <= 1.03 * found.facts["goal_ms"]
    (note,) = [note for note in found.program.notes if note.startswith("`allocate=rd`: on ")]
    assert note.endswith("at the first of several choices") and "taken: " in note
    gp.verify(found.program)


@pytest.mark.parametrize("whole", [True, False])
def test_a_plan_says_what_is_whole_whatever_a_weight_is_worth(whole: bool) -> None:
    """By parameters a layer of almost all of its rank would be one again, and of one rank two."""
    given = kernels()
    opened = gp.run("factor,group{only=*rank}", given)
    layers = frozenset(rank.outers[0] for rank in undecided(opened))
    keep = {g.name: np.arange(1 if whole else g.size - 1) for g in opened.fact(Groups)}
    cut = gp.run("propagate", opened.learn(Keep(keep, whole=layers if whole else frozenset())))
    assert {*ranks(cut)} == (set() if whole else layers)
    again = replay(cut.plan, given.host)
    assert again.graph.text() == cut.graph.text()


def test_what_is_slower_for_being_opened_is_told_as_that(clock: None) -> None:
    """Each layer takes as long as any other, and a rotation is layers more."""
    on = Known(factor=1.0, extra=0.0, ms=lambda family, *_: float(family.kind == "product"))
    given = blocks()
    whole = alone(given, on.ms)
    with pytest.raises(BudgetError) as told:
        to_latency(given, Recipe.parse("rms,rotate{per=block},group,score,mask{latency=0.9x},propagate"), on)
    assert f" ms remain of {whole:.3g} ms (1." in told.value.message
    assert told.value.message.endswith("adds more than all that may go saves") and "`auto`" in str(told.value.hint)


def test_what_was_measured_corrects_what_is_said_of_an_opened_network(clock: None) -> None:
    """With all of its channels it takes more than the original: every product has a time of its own beside its size."""
    on = Known(factor=1.0, extra=0.01, ms=lambda family, *at: smooth(family, *at) + 2e-3 * (family.kind == "product"))
    recipe = Recipe.parse("rms,rotate{per=block},group,score,mask{latency=0.8x floor=0.0},propagate")
    _, second, *_ = to_latency(blocks(), recipe, on).facts["rounds"]
    assert second["predicted_ms"] == pytest.approx(second["measured_ms"], rel=0.02)
