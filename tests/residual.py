"""Networks of residual branches."""

from __future__ import annotations

import nets
import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS = 12, 3


class Block(nn.Module):
    """Attention and MLP, each behind a norm of its own."""

    def __init__(self, scale: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH)) if scale else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))
        y = self.down(F.gelu(self.up(self.norm2(x))))
        return x + (y if self.scale is None else self.scale * y)


class Transformer(nn.Module):
    """Blocks of attention and MLP, the last with a layer scale."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.stem, self.head, self.norm = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 4), nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(Block(scale=k == depth - 1) for k in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.head(self.norm(x))
        return out


class Cached(nn.Module):
    """Keys and values leave the network, for a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.kv, self.q, self.out = (nn.Linear(a, b) for a, b in ((5, 6), (6, 12), (6, 6), (6, 6)))
        self.up, self.down, self.head = nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.stem(x)
        k, v = self.kv(x).chunk(2, -1)
        x = x + self.out(F.scaled_dot_product_attention(self.q(x), k, v))
        return self.head(x + self.down(F.relu(self.up(x)))), k, v


class Twice(nn.Module):
    """A branch whose last layer another one uses as well, and one that ends in what no parameter multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.last, self.head = (nn.Linear(6, 6) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.last(self.a(x).tanh())
        x = x + self.b(x).exp()
        out: torch.Tensor = self.head(self.last(x))
        return out


def transformer(depth: int = 3) -> tuple[nn.Module, torch.Tensor]:
    return nets.randomise(Transformer(depth).double().eval()), torch.randn(2, 4, 5, dtype=torch.float64)
