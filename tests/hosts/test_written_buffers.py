"""Buffers that a forward writes into: cut with what writes them, and left as they were by all that is run here."""

from __future__ import annotations

import copy

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.errors import ModelError
from graphprune.facts import Groups
from graphprune.pipeline.replay import replay

HALF = "group,score,mask{channels=0.5x},propagate"
IDS = torch.tensor([[3, 1, 4], [1, 5, 9]])


class Cache(nn.Module):
    """Attention of new tokens to those that were written before."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.e, self.h, self.way = nn.Embedding(10, 6), nn.Linear(6, 5), way
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))
        self.register_buffer("kc", torch.zeros(2, 2, 7, 3))
        self.register_buffer("vc", torch.zeros(2, 2, 7, 3))

    def forward(self, ids, at):
        x = self.e(ids)
        q, k, v = (layer(x).unflatten(2, (-1, 3)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, self.written("kc", k, at), self.written("vc", v, at))
        return self.h(x + self.o(y.transpose(1, 2).flatten(2)))

    def written(self, name, new, at):
        held = getattr(self, name)
        if self.way == "index_copy_":
            held.index_copy_(2, at, new)
        elif self.way == "slice":
            held[:, :, 2 : 2 + new.shape[2]] = new
        elif self.way == "positions":
            held[:, :, at] = new
        elif self.way == "another tensor":
            setattr(self, name, held.index_copy(2, at, new))
        else:
            held.copy_(torch.cat([held[:, :, new.shape[2] :], new], 2))
        return getattr(self, name)


def calls(model, many=3):
    """What one call after the other gives."""
    with torch.no_grad():
        return [model((IDS + n) % 10, (torch.tensor([1, 2, 4]) + n) % 7) for n in range(many)]


@pytest.mark.parametrize("way", ["index_copy_", "slice", "positions", "another tensor", "shifted"])
def test_a_cache_is_cut_with_what_writes_it_and_call_after_call_computes_the_same(way, tmp_path):
    module = nets.randomise(Cache(way)).double().eval()
    held = {name: value.clone() for name, value in module.named_buffers()}
    program = gp.load(module, (IDS, torch.tensor([1, 2, 4])))
    groups = {group.name: group.size for group in gp.run("group", program).fact(Groups)}
    assert groups == {"e": 6, "q.0": 2, "k.1": 3, "v.1": 3}
    assert "forward writes into `kc`, `vc`: every run here begins with what that holds now" in program.notes
    done = gp.run(HALF, program)
    assert all(check.holds for check in gp.verify(done))
    assert all(torch.equal(value, held[name]) for name, value in module.named_buffers())
    assert done.host.parameter("kc").shape[1] == 1 and done.host.parameter("kc").shape[3] < 3
    masked = replay(done.plan, program.source, masked=True).host.model
    small, original = done.host.model, copy.deepcopy(module)
    for a, b, c in zip(calls(masked), calls(small), calls(original), strict=True):
        assert (a - b).abs().max() <= 1e-12 * a.abs().max()
        assert (a - c).abs().max() > 1e-3
    with pytest.raises(ModelError, match="ONNX has no place for `kc`, which forward writes into"):
        done.host.save_onnx(tmp_path / "net.onnx")


def test_a_module_that_is_cut_in_place_keeps_what_it_holds():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("seen", torch.zeros(6))

        def forward(self, x):
            h = torch.relu(self.a(x))
            self.seen.mul_(0.9).add_(h.mean(0) * 0.1)
            return self.b(h - self.seen)

    module, x = nets.randomise(Mean()).double().eval(), torch.randn(5, 4, dtype=torch.float64)
    held = module.seen.clone()
    done = gp.run(HALF, gp.load(module, x))
    gp.apply(done, module, in_place=True)
    kept = done.plan.parameters["a.weight"]["0"]["keep"]
    assert torch.equal(module.seen, held[kept])
    for _ in range(3):
        with torch.no_grad():
            assert torch.equal(module(x), done.model(x))


class Bags(nn.Module):
    def __init__(self, mode, offsets=False):
        super().__init__()
        self.bag, self.a, self.b = nn.EmbeddingBag(9, 8, mode=mode), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, ids, offsets=None, weights=None):
        return self.b(torch.relu(self.a(torch.tanh(self.bag(ids, offsets, weights)))))


BAGS = {
    "mean": ("mean", (IDS % 9,)),
    "max": ("max", (IDS % 9,)),
    "offsets": ("mean", (torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 2]))),
    "weights": ("sum", (IDS % 9, None, torch.rand(2, 3, dtype=torch.float64))),
}


@pytest.mark.parametrize("name", BAGS)
def test_bags_of_an_embedding_are_cut(name):
    mode, inputs = BAGS[name]
    module = nets.randomise(Bags(mode)).double().eval()
    done = gp.run(HALF, gp.load(module, inputs))
    assert done.host.parameter("bag.weight").shape == (9, 4)
    assert all(check.holds for check in gp.verify(done))
    kept = [done.plan.parameters[f"{layer}.weight"][axis]["keep"] for layer, axis in (("bag", "1"), ("a", "0"))]
    with torch.no_grad():  # zeroed by hand
        module.a.weight[:, [k for k in range(8) if k not in kept[0]]] = 0
        module.b.weight[:, [k for k in range(6) if k not in kept[1]]] = 0
        want = module(*inputs)
        assert (done.model(*inputs) - want).abs().max() <= 1e-12
    gp.apply(done, module, in_place=True, allow_other_weights=True)
    assert module.bag.embedding_dim == 4


def test_packed_sequences_are_refused_with_the_way_out():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(4, 5, batch_first=True)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]

    with pytest.raises(ModelError, match=r"torch.export could not trace it at .*, in forward: .*rnn") as caught:
        gp.load(Packed(), (torch.randn(3, 6, 4), torch.tensor([6, 2, 4])))
    assert "read it by length" in str(caught.value.hint)


class Fresh(nn.Module):
    """Writes into what it has made, of a constant and of a stored tensor."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 6)
        self.two = nn.Linear(6, 3)
        self.register_buffer("shift", torch.arange(6.0))

    def forward(self, x):
        scale = torch.sqrt(torch.tensor(4.0))
        shift = self.shift * 2
        shift += 1
        return self.two(self.one(x) / scale + shift)


def test_what_was_made_from_a_stored_tensor_is_not_the_tensor():
    program = gp.load(Fresh().eval(), torch.randn(2, 4))
    assert not program.host.writes and not program.notes
