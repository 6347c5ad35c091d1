"""Mixtures whose experts are modules of a list, as people write them: experts are one dim all the same. Entered into
``nets.ZOO``: the law and the oracle run on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nets import INPUT, OUTPUT, net, vectors
from torch import nn

EXPERTS, WIDTH, INNER = 4, 6, 3


class Listed(nn.Module):
    """A router and a list of experts, for (tokens, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3)
        self.gate = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, INNER), nn.ReLU(), nn.Linear(INNER, WIDTH)) for _ in range(EXPERTS)
        )

    def mixed(self, h):
        raise NotImplementedError

    def forward(self, x):
        h = torch.tanh(self.enter(x))
        return self.leave(h + self.mixed(h))


WIDTHS = {f"experts.{k}.0": INNER for k in range(EXPERTS)}
FROZEN = {"enter.weight[1]": INPUT, "leave": OUTPUT}


def listed(tokens=7):
    groups = {"enter": WIDTH, "gate": EXPERTS, **WIDTHS}
    return net(vectors(tokens, 3), groups, FROZEN, router={"gate": "gate.weight"})


@listed()
class SumOfListed(Listed):
    """Python's sum, which begins with nought."""

    def mixed(self, h):
        share = self.gate(h).softmax(-1)
        return sum(share[..., k, None] * expert(h) for k, expert in enumerate(self.experts))


@listed()
class PlacedListed(Listed):
    """Shares of the best two in their places, taken by slices."""

    def mixed(self, h):
        logits = self.gate(h)
        best, ids = logits.topk(2, -1)
        share, out = torch.zeros_like(logits).scatter(1, ids, best.softmax(-1)), torch.zeros_like(h)
        for k, expert in enumerate(self.experts):
            out = out + share[:, k : k + 1] * expert(h)
        return out


@listed()
class StackOfListed(Listed):
    """All that they make in one tensor, and a weighted sum of it."""

    def mixed(self, h):
        made = torch.stack([expert(h) for expert in self.experts], 1)
        return (made * self.gate(h).softmax(-1)[..., None]).sum(1)


@listed()
class CatOfListed(Listed):
    def mixed(self, h):
        made = torch.cat([expert(h)[:, None] for expert in self.experts], 1)
        return torch.einsum("te,tei->ti", self.gate(h).softmax(-1), made)


@listed()
class UnboundListed(Listed):
    def mixed(self, h):
        shares = self.gate(h).softmax(-1).unbind(-1)
        return sum(share[:, None] * expert(h) for share, expert in zip(shares, self.experts, strict=True))


@listed()
class ChunksOfListed(Listed):
    def mixed(self, h):
        out = h
        for share, expert in zip(self.gate(h).softmax(-1).chunk(EXPERTS, -1), self.experts, strict=True):
            out = share * expert(h) + out
        return out


@listed()
class ComparedListed(Listed):
    """Every expert for all tokens, with a share of zero where it is not chosen."""

    def mixed(self, h):
        share, ids = self.gate(h).softmax(-1).topk(2, -1)
        share, out = share / share.sum(-1, keepdim=True), torch.zeros_like(h)
        for k, expert in enumerate(self.experts):
            out = out + (share * (ids == k)).sum(-1, keepdim=True) * expert(h)
        return out


@listed()
class FilledListed(Listed):
    def mixed(self, h):
        share, ids = self.gate(h).softmax(-1).topk(2, -1)
        out = torch.zeros_like(h)
        for k, expert in enumerate(self.experts):
            out += expert(h) * torch.where(ids == k, share, 0).sum(-1).unsqueeze(-1)
        return out


@listed()
class RowsOfListed(Listed):
    """Mixtral's loop: every expert for the rows of its tokens."""

    def mixed(self, h):
        share, ids = self.gate(h).softmax(-1).topk(2, -1)
        out, where = torch.zeros_like(h), F.one_hot(ids, EXPERTS).permute(2, 1, 0)
        for k, expert in enumerate(self.experts):
            place, token = torch.where(where[k])
            out.index_add_(0, token, expert(h[token]) * share[token, place, None])
        return out


@listed()
class PutListed(Listed):
    """The same, with rows that are read and put back."""

    def mixed(self, h):
        share, ids = self.gate(h).softmax(-1).topk(2, -1)
        out = torch.zeros_like(h)
        for k, expert in enumerate(self.experts):
            token, place = torch.where(ids == k)
            out[token] += expert(h[token]) * share[token, place, None]
        return out


@listed()
class MultipliedListed(Listed):
    """A row of shares times a matrix of what they make."""

    def mixed(self, h):
        made = torch.stack([expert(h) for expert in self.experts], -1)
        return (made @ self.gate(h).softmax(-1)[..., None]).squeeze(-1)


@listed(tokens=64)  # so that each has some
class SwitchListed(Listed):
    """One expert a token: where it is another's, nothing; times the largest share."""

    def mixed(self, h):
        share = self.gate(h).softmax(-1)
        largest, chosen = share.max(-1)
        out = torch.zeros_like(h)
        for k, expert in enumerate(self.experts):
            out = out + torch.where((chosen == k)[:, None], expert(h), torch.zeros_like(h))
        return out * largest[:, None]


def refused(words, tokens=7):
    return net(vectors(tokens, 3), {"enter": WIDTH, **WIDTHS}, {"gate": words, "leave": OUTPUT})


@refused("sigmoid (pointwise)")
class Normed(Listed):
    """What one makes is more than added."""

    def mixed(self, h):
        share = self.gate(h).softmax(-1)
        return sum((share[:, k, None] * expert(h)).sigmoid() for k, expert in enumerate(self.experts))


@refused("stack (stack) makes more of one of it than a sum")
class Stacked(Listed):
    """What is stacked is weighed already."""

    def mixed(self, h):
        share = self.gate(h).softmax(-1)
        return torch.stack([share[:, k, None] * expert(h) for k, expert in enumerate(self.experts)]).sum(0)


@refused("where_1 (pointwise) makes more of one of it than a sum", tokens=64)
class Replaced(Listed):
    """What one makes takes the place of what is there."""

    def mixed(self, h):
        out, chosen = torch.zeros_like(h), self.gate(h).argmax(-1)
        for k, expert in enumerate(self.experts):
            out = torch.where((chosen == k)[:, None], expert(h), out)
        return out


@refused("tells its positions apart")
class Largest(Listed):
    """The largest of what is no share may be the zero of one that is masked."""

    def mixed(self, h):
        logits = self.gate(h)
        best, ids = logits.topk(2, -1)
        placed = torch.zeros_like(logits).scatter(1, ids, best)
        share = logits.softmax(-1)
        mixed = sum(share[:, k, None] * expert(h) for k, expert in enumerate(self.experts))
        return mixed * placed.amax(-1, keepdim=True)


@refused("what is not zero where it is masked")
class Logits(Listed):
    """Shares are logits once more."""

    def mixed(self, h):
        logits = self.gate(h)
        share = logits.softmax(-1)
        first = sum(share[:, k, None] * expert(h) for k, expert in enumerate(self.experts))
        return first + sum(logits[:, k, None] * expert(h) for k, expert in enumerate(self.experts))


@refused("tells its positions apart")
class Unchosen(Listed):
    """Nothing weighs experts against one another: no logit is minus infinity."""

    def mixed(self, h):
        share = self.gate(h).sigmoid()
        return sum(share[:, k, None] * expert(h) for k, expert in enumerate(self.experts))
