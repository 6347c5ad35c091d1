"""Recovery with few parameters: what is trained, what is not, and what is left when the updates are merged."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.errors import ModelError, RecipeError


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 3)
    )


def images(count=16):
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(2))


def pruned(masked=True):
    """Half of the weights at zero."""
    module = network()
    with torch.no_grad():
        for parameter in module.parameters() if masked else ():
            if parameter.ndim > 1:
                parameter.mul_(parameter.abs() > parameter.abs().median())
    return module


def train(module, recover, steps=20, lr=0.02):
    optimizer = torch.optim.Adam(recover.parameters(), lr=lr)
    labels = torch.arange(16) % 3
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(module(images()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    ("parts", "moved"),
    [
        ("norm", {"1.weight", "1.bias"}),
        ("bias", {"3.bias", "5.bias"}),
        ("norm, bias", {"1.weight", "1.bias", "3.bias", "5.bias"}),
        ("lora", {"0.weight", "3.weight", "5.weight"}),
    ],
)
def test_only_the_parts_asked_for_are_trained(parts, moved):
    module = pruned()
    before = copy.deepcopy(module.state_dict())
    recover = gp.train.Recover(module, parts=parts)
    assert {id(p) for p in module.parameters() if p.requires_grad} == {id(p) for p in recover.parameters()}
    train(module, recover)
    recover.merge()
    after = module.state_dict()
    assert list(after) == list(before)
    names = {name for name, _ in module.named_parameters()}
    assert {name for name in names if not torch.equal(after[name], before[name])} == moved
    assert all(p.requires_grad for p in module.parameters())


def test_merged_updates_leave_zeros_and_outputs_as_they_are():
    module = pruned()
    zeros = {name: p == 0 for name, p in module.named_parameters() if p.ndim > 1}
    recover = gp.train.Recover(module, rank=3)
    losses = train(module, recover)
    assert losses[-1] < 0.7 * losses[0]
    module.eval()
    before = module(images())
    own = list(module.parameters())
    recover.merge()
    for name, zero in zeros.items():
        assert torch.equal(module.get_parameter(name) == 0, zero), name
        assert zero.sum() >= zero.numel() // 2
    torch.testing.assert_close(module(images()), before, rtol=1e-5, atol=1e-6)
    assert {id(p) for p in module.parameters()} <= {id(p) for p in own}  # the same parameters, not new ones


def test_an_update_is_of_its_rank_and_begins_at_nothing():
    module = pruned(masked=False)
    before, weight = module.eval()(images()), module[5].weight.detach().clone()
    recover = gp.train.Recover(module, parts="lora", rank=2)
    assert torch.equal(module(images()), before)
    assert sum(p.numel() for p in recover.parameters()) == 2 * (8 + 18) + 2 * (6 + 72) + 2 * (3 + 96)
    train(module, recover)
    recover.merge()
    values = torch.linalg.svdvals(module[5].weight.detach() - weight)
    assert (values[:2] > 1e-3).all()
    assert values[2] < 1e-5


def test_what_was_trained_is_saved_and_resumed():
    first, second = pruned(), pruned()
    one, two = gp.train.Recover(first), gp.train.Recover(second)
    train(first, one)
    two.load_state_dict(one.state_dict())
    for name, buffer in first.named_buffers():
        second.get_buffer(name).copy_(buffer)
    one.merge()
    two.merge()
    assert torch.equal(first.eval()(images()), second.eval()(images()))


def test_a_compiled_graph_module_recovers_too():
    program = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(network(), images(2)))
    model = program.model
    recover = gp.train.Recover(model)
    losses = train(model, recover, steps=30)
    assert losses[-1] < 0.8 * losses[0]
    before = model(images())
    recover.merge()
    torch.testing.assert_close(model(images()), before, rtol=1e-5, atol=1e-6)


def test_a_tied_weight_has_one_update():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x))

    torch.manual_seed(0)
    module = Tied()
    recover = gp.train.Recover(module, parts="lora", rank=2)
    assert sum(p.numel() for p in recover.parameters()) == 2 * (11 + 6)
    optimizer = torch.optim.Adam(recover.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(module(torch.arange(11)), torch.arange(11)).backward()
        optimizer.step()
    before = module(torch.arange(11))
    recover.merge()
    assert module.head.weight is module.embed.weight
    torch.testing.assert_close(module(torch.arange(11)), before, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_is_refused():
    with pytest.raises(RecipeError, match=r"`parts` cannot have `biases`\n.*bias"):
        gp.train.Recover(network(), parts="norm,biases")
    for rank in (0, 2.5, "8"):
        with pytest.raises(RecipeError, match=f"Recover: `rank` cannot be {rank!r}"):
            gp.train.Recover(network(), rank=rank)
    with pytest.raises(ModelError, match="Sequential has none of `norm` to train"):
        gp.train.Recover(nn.Sequential(nn.Linear(3, 3)), parts="norm")
    module = network()
    recover = gp.train.Recover(module)
    with pytest.raises(ModelError, match="`0` of Sequential is parametrized already"):
        gp.train.Recover(module)
    recover.merge()
    gp.train.Recover(module)


def test_what_was_wrapped_before_is_refused(alone):
    wrapped = nn.parallel.DistributedDataParallel(network())
    with pytest.raises(ModelError, match=r"DistributedDataParallel averages .*\n.*`.module`"):
        gp.train.Recover(wrapped)
    assert all(parameter.requires_grad for parameter in wrapped.parameters())


def test_merging_under_autocast_keeps_precision():
    module = network()
    recover = gp.train.Recover(module, parts="lora")
    for update in recover.updates:
        nn.init.normal_(update.b)
    wanted = module[0].weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        recover.merge()
    assert torch.equal(module[0].weight, wanted)
