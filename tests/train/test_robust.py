"""The HSIC bottleneck: its formula, and that it makes features depend less on the input than on the label."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.errors import ModelError, RecipeError
from graphprune.train.robust import gaussian, hsic


def samples(count=24):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(count, 6, generator=rng, dtype=torch.float64), torch.arange(count) % 3


def test_it_is_the_trace_of_its_definition():
    x, _ = samples(7)
    a, b = gaussian(x, 0.5), gaussian(x.square(), 0.5)
    assert float(a[1, 2]) == pytest.approx(float(torch.exp(-(x[1] - x[2]).square().sum() / (2 * 0.25 * 6))))
    centre = torch.eye(7, dtype=torch.float64) - 1 / 7
    torch.testing.assert_close(hsic(a, b), torch.trace(a @ centre @ b @ centre) / 36)
    independent = gaussian(torch.ones(7, 2, dtype=torch.float64), 0.5)
    assert float(hsic(a, independent)) == pytest.approx(0, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: hsic(gaussian(x, 0.5), b), x.requires_grad_())


def dependence(strength):
    """Of the features on x, in the end, over that on y."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x, y = samples(48)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    bottleneck = gp.train.HSICBottleneck(module, at=("1",), inputs=strength, labels=strength, width=1.0)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x), y) + bottleneck(x, y)
        loss.backward()
        optimizer.step()
    bottleneck.remove()
    own = gaussian(module[:2](x), 1.0)
    assert not module[1]._forward_hooks
    return float((hsic(gaussian(x, 1.0), own) / hsic(gaussian(F.one_hot(y).double(), 1.0), own)).detach())


def test_features_come_to_depend_on_the_label_rather_than_the_input():
    assert dependence(20.0) < 0.5 * dependence(0.0)


def test_what_is_not_there_is_named_and_nothing_is_hooked():
    module = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    with pytest.raises(ModelError, match="Sequential has no submodule `2`"):
        gp.train.HSICBottleneck(module, at=("1", "2"))
    assert not module[1]._forward_hooks
    x, y = samples()
    with pytest.raises(ModelError, match="the module has not run yet"):
        gp.train.HSICBottleneck(module, at=("1",))(x, y)
    bottleneck = gp.train.HSICBottleneck(module.double(), at=("1",))
    module(x)
    with pytest.raises(RecipeError, match="samples of x: 24, y: 8, `1`: 24"):
        bottleneck(x, y[:8])
    module(x[:1])
    with pytest.raises(RecipeError, match="samples of x: 1, y: 1, `1`: 1"):
        bottleneck(x[:1], y[:1])


def test_numbers_are_labels_as_columns_of_them_are():
    module = nn.Sequential(nn.Linear(6, 4), nn.ReLU()).double()
    bottleneck = gp.train.HSICBottleneck(module, at=("1",))
    x, y = samples()
    losses = []
    for labels in (y.float(), y.float()[:, None]):
        module(x)
        losses.append(bottleneck(x, labels))
    assert torch.equal(*losses)
