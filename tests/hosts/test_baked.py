"""Weights that a parametrization computes are baked at load, said so, and cut as any other."""

from __future__ import annotations

import nets
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import graphprune as gp
from graphprune.errors import ModelError
from graphprune.ir.facts import Groups

X = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))


class Symmetric(nn.Module):
    def forward(self, weight):
        return (weight + weight.flip(-1)) / 2


def symmetric(layer):
    return parametrize.register_parametrization(layer, "weight", Symmetric())


WAYS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "own": symmetric,
    "old weight_norm": weight_norm,
    "old spectral_norm": spectral_norm,
    "both": lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)),
}


def made(way):
    torch.manual_seed(0)
    layers = [nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(8, 6, 3, padding=1), nn.ConvTranspose1d(6, 5, 4, 2, 1)]
    net = nn.Sequential(*(part for layer in layers for part in (way(layer), nn.ELU())), nn.Conv1d(5, 2, 3))
    return nets.randomise(net).eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_computed_weight_is_a_parameter_of_the_layers_name(way):
    net = made(way)
    program = gp.load(net, X)
    assert torch.equal(program.model(X), net(X))
    assert sorted(program.model.state_dict()) == sorted(
        f"{k}.{part}" for k in (0, 2, 4, 6) for part in ("bias", "weight")
    )
    assert {group.name: group.size for group in gp.run("group", program).fact(Groups)} == {"0": 8, "2": 6, "4": 5}
    (note,) = program.notes
    assert note.startswith("0.weight, 2.weight, 4.weight: computed anew at every call by a parametrization")
    pruned = gp.run("group,score,mask{channels=0.5x},propagate", program)
    assert gp.verify(pruned)[0].error <= 1e-12 and pruned.notes[0] == note
    with pytest.raises(ModelError, match=r"it computes `0\.weight` by a parametrization") as error:
        gp.apply(pruned, net, X, in_place=True)
    assert "remove_parametrizations(model.0, 'weight')" in error.value.hint


def test_without_the_parametrization_the_class_is_cut_by_the_same_plan():
    net = made(parametrizations.weight_norm)
    pruned = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(net, X))
    for k in (0, 2, 4):
        parametrize.remove_parametrizations(net[k], "weight")
    gp.apply(pruned, net, X, in_place=True, allow_other_weights=True)
    assert net[2].weight.shape == (3, 4, 3)


def test_what_is_only_named_like_a_hook_stays():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix_g, self.mix_v = nn.Parameter(torch.rand(5, 1)), nn.Parameter(torch.rand(5, 4))
            self.leave = nn.Linear(5, 2)

        def forward(self, x):
            return self.leave(x @ (self.mix_v * self.mix_g).mT)

    program = gp.load(Named(), X.mT)
    assert not program.notes and {"mix_g", "mix_v"} <= set(program.model.state_dict())
