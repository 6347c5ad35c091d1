"""Ops that architectures of the zoo brought into the table: what must be prunable, exactly."""

from __future__ import annotations

import io
import warnings

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.errors import ModelError
from graphprune.ir.facts import Groups

from .catalogue import randomise


class Base(nn.Module):
    """Two 1x1 convolutions with something between; 3 -> 12 channels, ``reads`` -> 5."""

    def __init__(self, reads=12):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(reads, 5, 1)

    def forward(self, x):
        return self.b(self.between(torch.relu(self.a(x))))


class Roll(Base):
    def between(self, x):
        return torch.roll(x, (1, 2), (2, 3))


class RollChannels(Base):
    def between(self, x):
        return torch.roll(x, 1, 1)


class ReshapeAs(Base):
    def between(self, x):
        return torch.relu(x).flatten(2).reshape_as(x) + x


class Interleave(Base):
    def __init__(self):
        super().__init__(24)

    def between(self, x):
        return x.repeat_interleave(2, 1)


class Unfold(Base):
    def __init__(self):
        super().__init__(48)

    def between(self, x):
        return F.unfold(x, 2, stride=2).unflatten(-1, (4, 4))


class Fold(Base):
    def __init__(self):
        super().__init__(3)

    def between(self, x):
        return F.fold(x.flatten(2)[..., :16], (8, 8), 2, stride=2)


class Windows(Base):
    def between(self, x):
        return x.unfold(2, 3, 2).mean(-1)


class GridSample(Base):
    def between(self, x):
        rows = torch.linspace(-0.9, 0.9, 8, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(rows, rows, indexing="ij"), -1)[None].expand(2, -1, -1, -1)
        return F.grid_sample(x, grid * 0.8, align_corners=False)


class TakeAlong(Base):
    def between(self, x):
        ids = torch.arange(8).flip(0).expand(2, 12, 8, 8)
        return torch.gather(x, 3, ids) + x


class Standardised(Base):
    """The weights that read are standardised over all that they read."""

    def forward(self, x):
        weight = F.batch_norm(self.b.weight.reshape(1, 5, -1), None, None, training=True).reshape_as(self.b.weight)
        return F.conv2d(torch.relu(self.a(x)), weight, self.b.bias)


class Added(nn.Module):
    """baddbmm: queries with keys, a bias added; heads and head widths."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 12)
        self.o, self.bias = nn.Linear(12, 5), nn.Parameter(torch.randn(1, 1, 7))

    def forward(self, x):
        q, k, v = (m(x).unflatten(-1, (3, 4)).transpose(1, 2).flatten(0, 1) for m in (self.q, self.k, self.v))
        scores = torch.baddbmm(self.bias.expand(6, 1, 7), q, k.transpose(1, 2), beta=1.0, alpha=0.5)
        y = torch.bmm(scores.softmax(-1), v).unflatten(0, (2, 3)).transpose(1, 2).flatten(2)
        return self.o(y)


class Filled(nn.Module):
    """A bias of zeros that is written down with the number of heads."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x):
        q, k, v = (m(x).unflatten(-1, (3, 4)).transpose(1, 2) for m in (self.q, self.k, self.v))
        scores = q @ k.transpose(2, 3) + torch.zeros(1, 3, 7, 7, dtype=x.dtype) + x.new_full((3, 1, 7), 0.5)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """Weights picked by number: so can their inner width be pruned, and the experts."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(4, 12, 6)), nn.Parameter(torch.randn(4, 5, 12))
        self.gate = nn.Linear(6, 4)

    def forward(self, x):
        ids = self.gate(x).argmax(-1)
        y = torch.relu(torch.bmm(self.up[ids], x[..., None]))
        return torch.bmm(self.down[ids], y)[..., 0]


class Norms(nn.Module):
    """Two GroupNorms of as many groups, of which exporters give both the same ones and zeros."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 5, 1)
        self.first, self.second = nn.GroupNorm(4, 12), nn.GroupNorm(4, 8)

    def forward(self, x):
        return self.c(torch.relu(self.second(self.b(torch.relu(self.first(self.a(x)))))))


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
WORDS = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
CASES = {
    # network: input, sizes of the groups in the torch host, and in the ONNX host (None: the exporter fails)
    Roll: (IMAGE, [12], [12]),
    RollChannels: (IMAGE, [], [11]),  # exported as two slices and a concat: a map of positions
    ReshapeAs: (IMAGE, [12], [12]),
    Interleave: (IMAGE, [12], None),
    Unfold: (IMAGE, [12], None),
    Fold: (IMAGE, [3], None),
    Windows: (IMAGE, [12], None),
    GridSample: (IMAGE, [12], [12]),
    TakeAlong: (IMAGE, [12], [12]),
    Standardised: (IMAGE, [], None),
    Added: (WORDS, [3, 4, 4], None),
    Filled: (WORDS, [3, 4, 4], None),
    Experts: (ROWS, [4, 12], [4, 12]),
    Norms: (IMAGE, [4, 4], [4, 4]),
}
RUNS = [
    (kind, host)
    for kind, (_, *hosts) in CASES.items()
    for host, n in zip(("torch", "onnx"), hosts, strict=True)
    if n is not None
]


@pytest.mark.parametrize("kind, host", RUNS, ids=lambda value: getattr(value, "__name__", value))
def test_groups_are_what_they_must_be_and_pruned_is_masked(kind, host):
    x, *sizes = CASES[kind]
    module = randomise(kind(), 0).eval()
    program = gp.load(module, (x,)) if host == "torch" else gp.load(exported(module, x), [x.numpy()])
    if not (wanted := sizes[host == "onnx"]):
        with pytest.raises(ModelError, match="nothing can be pruned"):
            gp.run("group", program)
        return
    groups = gp.run("group", program).fact(Groups)
    assert sorted(group.size for group in groups) == wanted
    pruned = gp.run("group,score,mask{channels=0.5x},propagate", program)
    assert gp.verify(pruned)
    before, after = (p.host.run(p.host.example())[0] for p in (program, pruned))
    assert abs(before - after).max() > 1e-3


def exported(module, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    return onnx.load_from_string(file.getvalue())
