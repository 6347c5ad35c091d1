"""Networks in which several layers read the same channels, one for every way in between.

Those of which UPSCALE's code computes something else, or stops: the list in its issue tracker and ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from nets import randomise
from torch import nn

from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.program import Program

WIDTH = 12


class Star(nn.Module):
    """A stem, something in between, and three readers of what comes out, each with channels of its own."""

    def __init__(self, between: nn.Module | None = None, width: int = WIDTH, groups: int = 1) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.between = between or nn.Identity()
        self.a = nn.Conv2d(width, 5, 1)
        self.b = nn.Conv2d(width, 6, 3, padding=1, groups=groups)
        self.c = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 1))
        self.head = nn.Linear(15, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.between(torch.relu(self.norm(self.stem(x))))
        return self.head(torch.cat([self.a(x), self.b(x), self.c(x)], 1).mean((2, 3)))


class Between(nn.Module):
    """Anything that a function says, with layers that it may use."""

    def __init__(self, function: Callable[..., torch.Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


class Flat(nn.Module):
    """Linear layers that read flattened images, h * w features a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 5), nn.Linear(8 * 36, 4)
        self.conv, self.head = nn.Conv2d(8, 3, 1), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        flat = x.flatten(1)
        return self.head(torch.cat([self.a(flat), torch.tanh(self.b(flat)), self.conv(x).mean((2, 3))], 1))


class Residual(nn.Module):
    """Blocks that add up, each reading the sum."""

    def __init__(self, blocks: int = 3, width: int = 10, head: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, 6 + k, 1), nn.BatchNorm2d(6 + k), nn.ReLU(), nn.Conv2d(6 + k, width, 3, padding=1),
                nn.BatchNorm2d(width),
            )
            for k in range(blocks)
        )  # fmt: skip
        self.head = nn.Linear(width, 3) if head else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return x if self.head is None else self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """DenseNet: every layer reads all before it; ``nested``: concatenations of concatenations."""

    def __init__(self, nested: bool = True, layers: int = 4, growth: int = 6) -> None:
        super().__init__()
        self.nested, self.stem = nested, nn.Conv2d(3, 8, 3, padding=1)
        widths = [8 + growth * k for k in range(layers + 1)]
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, widths[:-1]))
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths[:-1])
        self.norm, self.head = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        features = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(torch.relu(norm(x))))
            x = torch.cat([x, features[-1]] if self.nested else features, 1)
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))


class BothOrders(nn.Module):
    """cat(a, b) read by two, cat(b, a) by two others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 9, 3)
        self.readers = nn.ModuleList(nn.Conv2d(17, 4 + k, 1) for k in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = torch.relu(self.a(x)), torch.tanh(self.b(x))
        first, second = torch.cat([a, b], 1), torch.cat([b, a], -3)
        return torch.cat([r(y) for r, y in zip(self.readers, (first, second, first, second), strict=True)], 1)


class Tuple(nn.Module):
    """Several outputs, one of them a residual sum, one shared layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.own = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 5, 1),
        )
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.shared(x))
        z = self.shared(y)
        return self.own(x), self.last(y + z + x)


def _shuffle(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.view(-1, 3, WIDTH // 3, 8, 8).transpose(1, 2).flatten(1, 2)


def _chunk(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, 1)
    return a * torch.sigmoid(b)


def _attention(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (layer(tokens) for layer in (self.q, self.k, self.v))
    return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)


def _sppf(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = F.max_pool2d(x, 3, 1, 1)
    return torch.cat([x, y, F.max_pool2d(y, 3, 1, 1), x], 1)


def _crossed(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    a, b, d = self.a(x), self.b(x), self.d(x)
    return torch.cat([torch.relu(a + d), torch.relu(b + d)], 1)


def _linear(size: int = WIDTH) -> nn.Module:
    return nn.Linear(size, size)


def _conv(width: int = WIDTH) -> nn.Module:
    return nn.Conv2d(WIDTH, width, 1)


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    # name: how to make it, and how many readers choose for themselves
    "plain": (Star, 3),
    "negative concat": (
        lambda: Star(Between(lambda s, x: torch.cat([x, s.conv(x)], -3), conv=_conv(7)), WIDTH + 7),
        4,
    ),
    "flatten": (Flat, 3),
    "depthwise multiplier": (lambda: Star(nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1, groups=WIDTH), 2 * WIDTH), 0),
    "group norm": (lambda: Star(nn.GroupNorm(3, WIDTH)), 0),
    "channel softmax": (lambda: Star(nn.Softmax(1)), 0),
    "minus mean": (lambda: Star(Between(lambda s, x: x - x.mean(1, keepdim=True))), 0),
    "flip": (lambda: Star(Between(lambda s, x: x.flip(1))), 0),
    "grouped reader": (lambda: Star(groups=2), 0),
    "channel shuffle": (lambda: Star(Between(_shuffle)), 0),
    "chunk": (lambda: Star(Between(_chunk), WIDTH // 2), 3),
    "channel slices": (lambda: Star(Between(lambda s, x: x[:, 2:9] + s.conv(x[:, :4]), conv=nn.Conv2d(4, 7, 1)), 7), 4),
    "crossed sums": (lambda: Star(Between(_crossed, a=_conv(6), b=_conv(6), d=_conv(6)), 12), 6),
    "sppf": (lambda: Star(Between(_sppf), 4 * WIDTH), 3),
    "crelu": (lambda: Star(Between(lambda s, x: torch.relu(torch.cat([x, -x], 1))), 2 * WIDTH), 3),
    "spatial attention": (
        lambda: Star(Between(lambda s, x: x * torch.sigmoid(s.conv(x)), conv=nn.Conv2d(WIDTH, 1, 3, padding=1))),
        4,
    ),
    "squeeze excite": (
        lambda: Star(
            Between(lambda s, x: x * torch.sigmoid(s.up(torch.relu(s.down(x.mean((2, 3), keepdim=True))))),
                    down=_conv(4), up=nn.Conv2d(4, WIDTH, 1))
        ),
        4,
    ),
    "layer norm": (
        lambda: Star(Between(lambda s, x: s.norm(x.movedim(1, -1)).movedim(-1, 1), norm=nn.LayerNorm(WIDTH))),
        0,
    ),
    "attention": (lambda: Star(Between(_attention, q=_linear(), k=_linear(), v=_linear())), 6),
    "pixel shuffle": (lambda: Star(Between(lambda s, x: F.pixel_shuffle(x, 2)), WIDTH // 4), 3),
    "layer scale": (lambda: Star(Between(lambda s, x: x * s.scale, scale=nn.Parameter(torch.randn(WIDTH, 1, 1)))), 3),
    "residual": (Residual, 4),
    "residual output": (lambda: Residual(head=False), 0),
    "dense": (Dense, 5),
    "dense lists": (lambda: Dense(False), 5),
    "both orders": (BothOrders, 4),
    "tuple and shared": (Tuple, 4),
}  # fmt: skip


def module(name: str) -> nn.Module:
    return randomise(NETS[name][0]().eval()).double()


def inputs() -> tuple[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64),)


def program(name: str) -> Program:
    host = TorchHost.export(copy.deepcopy(module(name)), inputs())
    return Program(host=host, source=host)
