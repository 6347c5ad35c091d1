"""Where groups lie, on networks of which it is known."""

from __future__ import annotations

import pytest
import streams
import torch
from torch import nn

import graphprune as gp
from graphprune.ir.facts import Groups
from graphprune.ir.program import Program
from graphprune.passes.branches import Branches


class Decomposed(nn.Module):
    """Attention as matrix products, of one query and key per head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(4, 6), nn.RMSNorm(6, eps=0.1), nn.Linear(6, 2)
        self.q, self.k, self.v = nn.Linear(6, 2 * 3), nn.Linear(6, 2 * 3), nn.Linear(6, 2 * 5)
        self.out = nn.Linear(10, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.norm(x)
        q, k = (one(y).unflatten(-1, (2, 3)).transpose(1, 2) for one in (self.q, self.k))
        v = self.v(y).unflatten(-1, (2, 5)).transpose(1, 2)
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        out: torch.Tensor = self.head(x + self.out(y.transpose(1, 2).flatten(2)))
        return out


class Rotary(Decomposed):
    """The same with angles: turned by a sum of two products, as Llama does."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(6, 2 * 4), nn.Linear(6, 2 * 4)
        angles = torch.randn(7, 2).repeat(1, 2)
        self.cos, self.sin = nn.Buffer(angles.cos()), nn.Buffer(angles.sin())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.norm(x)
        q, k = (self.turned(one(y).unflatten(-1, (2, 4)).transpose(1, 2)) for one in (self.q, self.k))
        v = self.v(y).unflatten(-1, (2, 5)).transpose(1, 2)
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        out: torch.Tensor = self.head(x + self.out(y.transpose(1, 2).flatten(2)))
        return out

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.cos + torch.cat((-x[..., 2:], x[..., :2]), -1) * self.sin


def names(options: str, program: Program) -> set[str]:
    return {f"{group.name} {group.size}" for group in gp.run(f"group{options}", program).fact(Groups)}


def test_of_a_transformer_and_of_attention_written_out() -> None:
    module, x = streams.words(nn.RMSNorm, depth=1)
    program = gp.load(module, (x,))
    everywhere = names("", program)
    found = {place: names(f"{{places={place}}}", program) for place in ("stream", "heads", "widths", "inner")}
    assert {place: sorted(one.partition(" ")[2] for one in own) for place, own in found.items()} == {
        "stream": ["8"], "heads": ["2"], "widths": ["4"], "inner": ["10"],
    }  # fmt: skip
    assert set().union(*found.values()) == everywhere
    assert names("{places=heads|inner}", program) == found["heads"] | found["inner"]
    program = gp.load(Decomposed().double(), (torch.randn(2, 7, 4, dtype=torch.float64),))
    for place, sizes in {"stream": ["6"], "heads": ["2"], "widths": ["3", "5"]}.items():
        found_there = names(f"{{places={place}}}", program)
        assert sorted(one.partition(" ")[2] for one in found_there) == sizes


def test_sums_of_rotary_embeddings_are_no_stream() -> None:
    program = gp.load(Rotary().double(), (torch.randn(2, 7, 4, dtype=torch.float64),))
    for place, sizes in {"stream": ["6"], "heads": ["2"], "widths": ["2", "5"]}.items():  # pairs of angles
        assert sorted(one.partition(" ")[2] for one in names(f"{{places={place}}}", program)) == sizes


def test_the_others_are_frozen_with_where_they_lie_and_no_other_place_is_known() -> None:
    module, x = streams.words(nn.RMSNorm, depth=1)
    groups = gp.run("group{places=inner}", gp.load(module, (x,))).fact(Groups)
    assert {frozen.reason for frozen in groups.frozen} >= {
        f"{place}: not among `places`" for place in ("stream", "heads", "widths")
    }
    with pytest.raises(gp.GraphpruneError, match="`places` cannot be `mlp`"):
        gp.run("group{places=mlp}", gp.load(module, (x,)))


def test_branches_of_attention_and_the_others() -> None:
    module, x = streams.words(nn.RMSNorm, depth=2)
    program = gp.run("group", gp.load(module, (x,)))
    found = {of: {one.name for one in Branches(of).run(program).fact(Groups).gates} for of in ("attention", "other")}
    assert [len(own) for own in found.values()] == [2, 2]
    assert found["attention"] | found["other"] == {one.name for one in Branches().run(program).fact(Groups).gates}
