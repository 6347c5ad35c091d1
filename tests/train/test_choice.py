"""The continuous choice of experts: what makes nothing goes first, layers share, weights stay as they are."""

from __future__ import annotations

import copy
from typing import Any

import nets
import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import DataError, ModelError, RecipeError
from graphprune.ir.facts import Scores
from graphprune.train.choice import diep

STACKED, LISTED = ("Soft", "TopTwo"), ("SumOfListed", "RowsOfListed")
X = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def made_nothing(name: str, expert: int) -> nn.Module:
    """The network, one expert of which makes nothing."""
    module: Any = copy.deepcopy(nets.module(name))
    with torch.no_grad():
        if name in STACKED:
            module.down[expert] = 0
            module.shift[expert] = 0
        else:
            module.experts[expert][2].weight.zero_()
            module.experts[expert][2].bias.zero_()
    return module


def chosen(module: nn.Module, **options) -> gp.Program:
    return diep(gp.load(module, (X[:7],), data=[X[:32], X[32:]], seed=1), **options)


@pytest.mark.parametrize("name", [*STACKED, *LISTED])
def test_an_expert_that_makes_nothing_is_worth_little(name):
    scores = chosen(made_nothing(name, 2), steps=60).fact(Scores).scores["gate"]
    assert scores[2] < 0.25 and scores[2] < np.median(scores)
    assert scores.max() > 0.7  # what matters stays whole
    assert scores.sum() == pytest.approx(0.5 * len(scores))  # of one layer as many as are to stay


def test_it_is_cut_by_its_scores_and_proven_and_weights_stay_as_they_are():
    module = made_nothing("TopTwo", 1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    known = chosen(module, steps=20)
    pruned = gp.run("mask{channels=0.8x},propagate", known)
    assert all(check.error <= check.tolerance for check in gp.verify(pruned))
    assert pruned.graph.parameters["gate.weight"].shape == (4, 6)
    assert np.array_equal(pruned.host.parameter("gate.weight"), np.delete(before["gate.weight"].numpy(), 1, 0))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert any("continuous choice" in note for note in known.notes)


def test_of_two_that_are_alike_less_is_kept():
    module: Any = copy.deepcopy(nets.module("Soft"))
    with torch.no_grad():
        for tensor in (module.gate.weight, module.up, module.down, module.shift):
            tensor[3] = tensor[0]
    free, apart = (chosen(module, steps=40, apart=weight).fact(Scores).scores["gate"] for weight in (0.0, 1.0))
    assert apart[[0, 3]].sum() < 0.9 * free[[0, 3]].sum()


class Two(nn.Module):
    """Two mixtures, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (copy.deepcopy(nets.module("Soft")) for _ in range(2))

    def forward(self, x):
        x = self.first(x)
        return self.second(x)


def test_a_layer_that_matters_less_keeps_fewer():
    module = Two()
    with torch.no_grad():
        for tensor in (module.first.down, module.first.shift):
            tensor.mul_(0.01)
    known = chosen(module, steps=80)
    pruned = gp.run("mask{channels=0.6x allocate=global},propagate", known)
    left = [pruned.graph.parameters[f"{layer}.gate.weight"].shape[0] for layer in ("first", "second")]
    assert left[0] < left[1] and sum(left) == 6


def test_the_same_seed_and_data_choose_alike():
    one, other = (chosen(nets.module("TopTwo"), steps=5).fact(Scores).scores["gate"] for _ in range(2))
    assert np.array_equal(one, other)


def test_what_it_cannot_do_is_said():
    with pytest.raises(RecipeError, match="keep=0 is not a share"):
        chosen(nets.module("Soft"), keep=0)
    with pytest.raises(DataError, match="diep: there is no data"):
        diep(gp.load(nets.module("Soft"), (X[:7],)))
    with pytest.raises(ModelError, match="nothing can be pruned"):
        chosen(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double())
