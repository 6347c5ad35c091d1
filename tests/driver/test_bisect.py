"""Bisection names the pass and the least set of groups: faults are planted, and found."""

from __future__ import annotations

import nets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import graphprune as gp
from graphprune.driver.bisect import bisect, least_failing, table
from graphprune.errors import DataError, RecipeError
from graphprune.hosts.torch.host import TorchHost

RECIPE = "group,score,mask{channels=0.5x},propagate,fold"


def deep(*scales):
    """A stack of linear layers, each group's second half written with weights of that scale."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8) for _ in range(len(scales) + 1)]
    for layer, scale in zip(layers, scales, strict=False):
        layer.weight.data[4:] *= scale
        layer.bias.data[4:] *= scale
    return gp.load(nn.Sequential(*layers).eval(), (torch.randn(4, 8),))


def test_the_group_whose_cut_changes_the_outputs_is_named():
    found = bisect(deep(1e-6, 1e-6, 0.9, 1e-6, 1e-6), RECIPE)
    assert found.found is not None and found.found.text == "propagate"
    assert [stage.text for stage in found.stages] == ["group", "score", "mask{channels=0.5x}", "propagate"]
    assert [(part.group, part.kept, part.size) for part in found.groups] == [("2", 4, 8)]
    assert found.groups[0].alone == pytest.approx(found.found.difference, rel=1e-2)
    assert found.trials < 10
    assert "`propagate` is the first over 0.001" in table(found) and "4 of 8" in table(found)


def test_nothing_is_found_where_nothing_is_over_the_tolerance():
    found = bisect(deep(1e-6, 1e-6), RECIPE)
    assert found.found is None and found.groups == () and len(found.stages) == 5
    assert 0 < found.stages[3].difference < 1e-3
    assert "no pass" in table(found)


@pytest.mark.parametrize("wrong", ["2.weight", "3.weight"])
def test_a_wrong_cut_is_found_against_the_masked_model(monkeypatch, wrong):
    take = TorchHost.take

    def planted(self, name, axis, keep):
        take(self, name, axis, np.roll(keep, 1) if name == wrong and axis == 0 else keep)

    program = deep(0.9, 0.9, 0.9, 0.9)
    assert bisect(program, RECIPE, against="masked").found is None
    monkeypatch.setattr(TorchHost, "take", planted)
    found = bisect(program, RECIPE, against="masked")
    assert found.found is not None and found.found.text == "propagate"
    assert [part.group for part in found.groups] == [wrong[0]]


def test_a_wrong_pass_that_cuts_nothing_is_named_without_groups(monkeypatch):
    from graphprune.passes.fold import Fold

    run = Fold.run

    def planted(self, program):
        host = program.host.copy()
        host.set_parameter("0.weight", 2 * host.parameter("0.weight"))
        return run(self, program.rewrite(host))

    monkeypatch.setattr(Fold, "run", planted)
    found = bisect(deep(1e-6, 1e-6), RECIPE)
    assert found.found is not None and found.found.text == "fold" and found.groups == ()


def test_a_cut_whose_shapes_disagree_is_a_finding(monkeypatch):
    take = TorchHost.take

    def planted(self, name, axis, keep):
        take(self, name, axis, keep[:-1] if name == "1.weight" and axis == 0 else keep)

    monkeypatch.setattr(TorchHost, "take", planted)
    found = bisect(deep(0.9, 0.9, 0.9), RECIPE, against="masked")
    assert found.found is not None and found.found.difference == float("inf") and "shape" in found.found.error
    assert [part.group for part in found.groups] == ["1"]


def test_data_is_what_is_compared_on():
    example = nets.ZOO["MLP"].inputs()
    data = np.random.default_rng(0).normal(size=(8, *example[0].shape[1:]))
    program = gp.load(nets.module("MLP"), example, data=data)
    assert bisect(program, RECIPE).stages[3].difference != bisect(nets.program("MLP"), RECIPE).stages[3].difference


def test_errors():
    program = nets.program("MLP")
    with pytest.raises(RecipeError, match="cannot compare with `cut`"):
        bisect(program, RECIPE, against="cut")
    with pytest.raises(DataError, match="tolerance nan"):
        bisect(program, RECIPE, tolerance=float("nan"))
    with pytest.raises(RecipeError, match="needs Groups"):
        bisect(program, "score")


@settings(max_examples=200)
@given(st.integers(1, 24), st.data())
def test_the_least_set_fails_and_none_of_it_can_be_left_out(size, data):
    bad = data.draw(st.lists(st.sets(st.integers(0, size - 1), min_size=1, max_size=4), min_size=1, max_size=3))

    def fails(items):
        return any(one <= set(items) for one in bad)

    least = least_failing(range(size), fails)
    assert set(least) in bad
    assert fails(least) and not any(fails([*least[:k], *least[k + 1 :]]) for k in range(len(least)))


def test_one_culprit_of_many_takes_a_logarithm_of_trials():
    tried = []
    assert least_failing(range(1024), lambda items: tried.append(1) or 777 in items) == [777]
    assert len(tried) <= 20
