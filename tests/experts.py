"""Mixtures of experts, as people write them: a router's rows and the experts' stacked weights are one dim. Entered into
``nets.ZOO``: the law and the oracle run on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nets import INPUT, OUTPUT, net, vectors
from torch import nn

EXPERTS, WIDTH, INNER = 5, 6, 4


class Mixture(nn.Module):
    """A router and stacked weights of (experts, inner, width) and (experts, width, inner), for (tokens, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3)
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH))
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER))
        self.shift = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def of_all(self, h):
        """What every expert makes of every token: (tokens, experts, width)."""
        inner = torch.relu(torch.einsum("ti,eoi->teo", h, self.up))
        return torch.einsum("teo,eio->tei", inner, self.down) + self.shift

    def of_chosen(self, h, ids):
        """What the experts of these numbers, (tokens, so many), make of their tokens."""
        inner = torch.relu(self.up[ids] @ h[:, None, :, None])
        return (self.down[ids] @ inner)[..., 0] + F.embedding(ids, self.shift)

    def mixed(self, h):
        raise NotImplementedError

    def forward(self, x):
        h = torch.tanh(self.enter(x))
        return self.leave(h + self.mixed(h))


def mixture(**more):
    groups = {"enter": WIDTH, "gate": EXPERTS, "up": INNER}
    frozen = {"enter.weight[1]": INPUT, "leave": OUTPUT}
    return net(vectors(7, 3), groups, frozen, router={"gate": "gate.weight"}, **more)


@mixture()
class Soft(Mixture):
    """All experts, weighed by a softmax."""

    def mixed(self, h):
        return (self.gate(h).softmax(-1)[..., None] * self.of_all(h)).sum(1)


@mixture()
class Contracted(Mixture):
    """The same as one product."""

    def mixed(self, h):
        return torch.einsum("te,tei->ti", self.gate(h).softmax(-1), self.of_all(h))


@mixture()
class TopTwo(Mixture):
    """Softmax, then the two best, whose shares are made one again; weights by number."""

    def mixed(self, h):
        share, ids = self.gate(h).softmax(-1).topk(2, -1)
        share = share / share.sum(-1, keepdim=True)
        return (share[..., None] * self.of_chosen(h, ids)).sum(1)


@mixture()
class Switch(Mixture):
    """The best one, times its share."""

    def mixed(self, h):
        share, ids = self.gate(h).softmax(-1).max(-1, keepdim=True)
        return share * self.of_chosen(h, ids.clone())[:, 0]


@mixture()
class Numbered(Mixture):
    """The number of the best one, and the share looked up by it."""

    def mixed(self, h):
        logits = self.gate(h)
        ids = logits.argmax(-1)
        return logits.softmax(-1).gather(1, ids[:, None]) * self.of_chosen(h, ids[:, None])[:, 0]


@mixture()
class Placed(Mixture):
    """The shares of the best three, softmax over those alone, in their places among zeros."""

    def mixed(self, h):
        logits = self.gate(h)
        best, ids = logits.topk(3, -1)
        share = torch.zeros_like(logits).scatter(1, ids, best.softmax(-1))
        return torch.einsum("te,tei->ti", share, self.of_all(h))


@mixture()
class OneHot(Mixture):
    """Places as ones among zeros."""

    def mixed(self, h):
        share, ids = self.gate(h).topk(2, -1)
        where = F.one_hot(ids, EXPERTS).to(h.dtype)
        return torch.einsum("tke,tk,tei->ti", where, share.sigmoid(), self.of_all(h))


@mixture()
class Below(Mixture):
    """Softmax of the logits that are at least as large as the second; of the others minus infinity."""

    def mixed(self, h):
        logits = self.gate(h)
        least = logits.topk(2, -1).values[:, -1:]
        share = logits.masked_fill(logits < least, float("-inf")).softmax(-1)
        return (share[..., None] * self.of_all(h)).sum(1)


@net(
    vectors(7, 3),
    {"enter": WIDTH, "gate.0": 2, "gate.1": 3, "up": INNER},
    {"enter.weight[1]": INPUT, "leave": OUTPUT},
    router={"choice": "gate.weight"},
)
class Limited(Mixture):
    """DeepSeek's: a bias that counts for the choice alone, and the best of two groups of experts first."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 6, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(6, INNER, WIDTH)), nn.Parameter(torch.randn(6, WIDTH, INNER))
        self.shift, self.bias = nn.Parameter(torch.randn(6, WIDTH)), nn.Parameter(torch.randn(6))
        self.choice = nn.Identity()

    def mixed(self, h):
        scores = self.gate(h).sigmoid()
        choice = self.choice(scores + self.bias)
        groups = choice.view(-1, 2, 3).topk(2, -1)[0].sum(-1)
        best = groups.topk(1, -1, sorted=False)[1]
        mask = torch.zeros_like(groups).scatter_(1, best, 1)[..., None].expand(-1, 2, 3).reshape(-1, 6)
        ids = choice.masked_fill(~mask.bool(), float("-inf")).topk(2, -1, sorted=False)[1]
        share = scores.gather(1, ids)
        return (share[..., None] * self.of_chosen(h, ids)).sum(1)


def refused(words):
    groups = {"enter": WIDTH, "up": INNER}
    return net(vectors(7, 3), groups, {"gate": words, "leave": OUTPUT})


@refused("numbers of its positions reach the graph output")
class Told(TopTwo):
    """The numbers are a result."""

    def forward(self, x):
        h = torch.tanh(self.enter(x))
        return self.leave(h + self.mixed(h)), self.gate(h).argmax(-1).double()


@refused("computes with numbers of its positions")
class Paired(Mixture):
    """Two experts a number: no number stands for one alone."""

    def mixed(self, h):
        share, ids = self.gate(h).topk(1, -1)
        return (share[..., None].sigmoid() * self.of_chosen(h, torch.cat([ids, (ids + 1) % EXPERTS], 1))).sum(1)


@refused("tells its positions apart")
class Running(Mixture):
    """A share of all before it."""

    def mixed(self, h):
        return (self.gate(h).softmax(-1).cumsum(-1)[..., None] * self.of_all(h)).sum(1)
