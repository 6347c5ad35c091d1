"""Cutting in place never leaves behind, without a word, what the traced forward does not read."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.errors import ModelError

RECIPE = "group,score{by=l1},mask{channels=0.5x},propagate"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 20, 3), nn.Linear(20, 4)

    def features(self, x):
        return F.relu(self.stem(x))

    def forward(self, x):
        return self.head(F.relu(self.body(self.features(x))).mean((2, 3)))


class Auxiliary(Net):
    def __init__(self):
        super().__init__()
        self.aux = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        out = super().forward(x)
        return (out, self.aux(self.features(x))) if self.training else out


class Flattened(Net):
    def __init__(self):
        super().__init__()
        self.deep = nn.Linear(16 * 7, 5)

    def shortcut(self, x):
        return self.deep(self.features(x).mean(3).flatten(1))


class Method(Net):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(20, 9, bias=False)


class Optional(Net):
    def __init__(self):
        super().__init__()
        self.condition = nn.Linear(7, 16)

    def forward(self, x, label=None):
        h = self.features(x)
        h = h if label is None else h + self.condition(label)[:, :, None, None]
        return self.head(F.relu(self.body(h)).mean((2, 3)))


class Buffer(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("queue", torch.randn(20, 33))


class Average(Net):
    def __init__(self):
        super().__init__()
        self.averages = {"ema": [copy.deepcopy(self.stem)]}  # no part of the module's own state


class Sums(Net):
    """Deep supervision on what is concatenated, and on pixels that channels became."""

    def __init__(self):
        super().__init__()
        self.both, self.shuffled = nn.Conv2d(36, 5, 1), nn.Conv2d(4, 5, 1)


UNREAD = {
    Sums: "both.weight",
    Auxiliary: "aux.weight",
    Flattened: "deep.weight",
    Method: "project.weight",
    Optional: "condition.weight",
    Buffer: "queue",
    Average: "averages['ema'][0].weight",
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_nobody_reads_is_refused_by_name_and_the_module_stays_as_it_was(kind):
    module, x = kind(), torch.randn(2, 3, 7, 7)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ModelError, match="cannot be cut in place") as error:
        gp.apply(gp.run(RECIPE, gp.load(module, x)), module, in_place=True)
    assert f"`{UNREAD[kind]}`" in error.value.message
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_what_the_user_answers_for_is_left_as_it_is():
    module, x = Buffer(), torch.randn(2, 3, 7, 7)
    program = gp.run(RECIPE, gp.load(module, x))
    with pytest.raises(ModelError, match="`queu` is no tensor") as error:
        gp.apply(program, module, in_place=True, allow_unread=["queu"])
    assert "queue" in error.value.hint
    gp.apply(program, module, in_place=True, allow_unread=["que*"])
    assert module.queue.shape == (20, 33) and module.stem.weight.shape[0] == 8


def test_widths_of_their_own_are_nobody_elses():
    module, x = Net(), torch.randn(2, 3, 7, 7)
    module.other = nn.Linear(5, 3)
    gp.apply(gp.run(RECIPE, gp.load(module, x)), module, in_place=True)
    assert module.other.weight.shape == (3, 5)


def test_a_forward_of_training_that_no_longer_runs_is_refused():
    class Written(Net):
        def forward(self, x):
            h = self.features(x)
            return self.head(F.relu(self.body(h.view(-1, 16, 7, 7) if self.training else h)).mean((2, 3)))

    module, x = Written(), torch.randn(1, 3, 7, 7)
    with pytest.raises(ModelError, match="in training mode its forward now raises RuntimeError"):
        gp.apply(gp.run(RECIPE, gp.load(module, x)), module, in_place=True)
    assert module.stem.weight.shape[0] == 16


def test_hooks_that_wait_for_gradients_go_along():
    module, x = Net(), torch.randn(2, 3, 7, 7)
    seen: list[torch.Size] = []
    module.stem.weight.register_hook(lambda gradient: seen.append(gradient.shape))
    module.head.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.shape))
    gp.apply(gp.run(RECIPE, gp.load(module, x)), module, in_place=True)
    module(x).sum().backward()
    assert sorted(seen) == sorted([module.stem.weight.shape, module.head.weight.shape])
