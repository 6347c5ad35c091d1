"""Layers alike (`mask{alike=layers}`): which layers are the same of repeated blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.ir.facts import Keep


class Chain(nn.Module):
    """Layers that are blocks themselves, the last of another size; with ``norms``, in one list with them."""

    def __init__(self, norms: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Conv1d(4, 16, 1), nn.Conv1d(8, 2, 1)
        sizes = [(16, 16), (16, 16), (16, 16), (16, 8)]
        layers = [layer for i, o in sizes for layer in (nn.Conv1d(i, o, 3), nn.BatchNorm1d(o))]
        self.ups = nn.ModuleList(layers if norms else layers[::2])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        for layer in self.ups:
            x = layer(x).relu()
        made: Tensor = self.head(x)
        return made


def counts(net: nn.Module, step: str = "group", budget: str = "0.5x") -> dict[str, int]:
    program = gp.load(net.double().eval(), torch.randn(2, 4, 16, dtype=torch.float64))
    done = gp.run(f"{step},score,mask{{params={budget} allocate=global alike=layers floor=0}}", program)
    gp.verify(gp.run("propagate", done))
    return {name: len(kept) for name, kept in done.fact(Keep).keep.items()}


def test_layers_of_a_list_are_alike_where_they_are_of_one_size() -> None:
    found = counts(Chain())
    assert found["ups.0"] == found["ups.1"] == found["ups.2"] < 16
    assert found["first"] not in (16, found["ups.0"])


def test_what_stands_in_a_list_beside_layers_of_another_kind_is_a_place() -> None:
    found = counts(Chain(norms=True))
    assert len({found[f"ups.{k}"] for k in (0, 2, 4)}) > 1


def test_the_likes_of_a_frozen_layer_of_a_list_stay_whole() -> None:
    found = counts(Chain(), "group{freeze=group:ups.1}", "0.9x")
    assert not {"ups.0", "ups.1", "ups.2"} & {name for name, count in found.items() if count < 16}
