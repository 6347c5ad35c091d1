"""Networks with one residual stream below norms."""

from __future__ import annotations

import nets
import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, TOKENS, PLACES = 8, 2, 11, 5


class Written(nn.Module):
    """An RMS norm written out as Gemma has it: one is added to the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(x.dtype)
        return (1 + self.weight) * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Spelt(nn.Module):
    """A LayerNorm written out, in one of three ways; with one eps as with another."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.eps == 0.3:
            mean = x.mean(-1, keepdim=True)
            squares = (x - mean).pow(2).mean(-1, keepdim=True)
            return self.weight * ((x - mean) / torch.sqrt(squares + self.eps)) + self.bias
        if self.eps == 0.2:
            var, mean = torch.var_mean(x, -1, unbiased=False, keepdim=True)
            return (x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias
        rest = x - x.mean(-1, keepdim=True)
        return rest / (x.var(-1, keepdim=True, correction=0) + self.eps) ** 0.5 * self.weight + self.bias


class Block(nn.Module):
    """Attention and MLP, each behind a norm, the second with a layer scale."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(WIDTH, eps=0.3), norm(WIDTH, eps=0.1)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)
        self.scale = nn.Parameter(torch.empty(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))
        return x + self.scale * self.down(F.gelu(self.up(self.norm2(x))))


class Words(nn.Module):
    """Tokens and places are embedded; the head may have the embedding for its weight."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm, tied: bool = False, depth: int = 2) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, WIDTH), nn.Parameter(torch.empty(1, PLACES, WIDTH))
        self.blocks = nn.ModuleList(Block(norm) for _ in range(depth))
        self.norm, self.head = norm(WIDTH, eps=0.2), nn.Linear(WIDTH, TOKENS, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places[:, : ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.head(self.norm(x))
        return out


class Patches(nn.Module):
    """A vision transformer: patches, a token for the class, which alone is read; or the mean of all, that leaves."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm, pooled: bool = False) -> None:
        super().__init__()
        self.stem, self.start = nn.Conv2d(3, WIDTH, 2, 2), nn.Parameter(torch.empty(1, 1, WIDTH))
        self.places, self.block = nn.Parameter(torch.empty(1, 5, WIDTH)), Block(norm)
        self.norm, self.head, self.pooled = norm(WIDTH, eps=0.2), nn.Linear(WIDTH, 3), pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.start.expand(len(x), -1, -1), x], 1) + self.places
        x = self.norm(self.block(x))
        out: torch.Tensor = x.mean(1) if self.pooled else self.head(x[:, 0])
        return out


def words(norm: type[nn.Module] = nn.LayerNorm, tied: bool = False, depth: int = 2) -> tuple[nn.Module, torch.Tensor]:
    ids = torch.randint(0, TOKENS, (3, PLACES), generator=torch.Generator().manual_seed(0))
    return nets.randomise(Words(norm, tied, depth).double().eval()), ids


def patches(norm: type[nn.Module] = nn.LayerNorm, pooled: bool = False) -> tuple[nn.Module, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=generator)
    return nets.randomise(Patches(norm, pooled).double().eval()), x
