"""A small denoising U-Net, built as diffusion models build theirs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


def timestep_embedding(time: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of ``time`` (n,) at ``width / 2`` frequencies."""
    half = torch.arange(width // 2, dtype=torch.float32, device=time.device)
    angles = time[:, None].float() * torch.exp(-math.log(10000.0) * half / (width // 2))[None]
    return torch.cat([angles.cos(), angles.sin()], -1)


class Residual(nn.Module):
    """Two convolutions behind GroupNorm, moved by the timestep."""

    def __init__(self, inner: int, outer: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, inner), nn.Conv2d(inner, outer, 3, padding=1)
        self.time = nn.Linear(time, outer)
        self.norm2, self.conv2 = nn.GroupNorm(4, outer), nn.Conv2d(outer, outer, 3, padding=1)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class Attention(nn.Module):
    """Self attention, then attention to a context, then a gated MLP; heads of ``width``."""

    def __init__(self, channels: int, context: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * width
        self.norm = nn.GroupNorm(4, channels)
        self.qkv, self.out1 = nn.Linear(channels, 3 * inner, bias=False), nn.Linear(inner, channels)
        self.norm2, self.q = nn.LayerNorm(channels), nn.Linear(channels, inner, bias=False)
        self.kv, self.out2 = nn.Linear(context, 2 * inner, bias=False), nn.Linear(inner, channels)
        self.norm3, self.up = nn.LayerNorm(channels), nn.Linear(channels, 4 * channels)
        self.down = nn.Linear(2 * channels, channels)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        y = self.norm(x).flatten(2).transpose(1, 2)
        y = y + self.out1(self.attend(*self.qkv(y).chunk(3, -1)))
        y = y + self.out2(self.attend(self.q(self.norm2(y)), *self.kv(context).chunk(2, -1)))
        value, gate = self.up(self.norm3(y)).chunk(2, -1)
        y = y + self.down(value * F.gelu(gate))
        return x + y.transpose(1, 2).reshape(n, c, h, w)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class UNet(nn.Module):
    """``x`` (n, 4, 16, 16), ``time`` (n,), ``context`` (n, length, 20) -> noise as ``x``."""

    def __init__(self, channels: int = 16, context: int = 20) -> None:
        super().__init__()
        time = 2 * channels
        self.width = channels
        self.time = nn.Sequential(nn.Linear(channels, time), nn.SiLU(), nn.Linear(time, time))
        self.stem = nn.Conv2d(4, channels, 3, padding=1)
        self.down1 = Residual(channels, channels, time)
        self.shrink = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.down2, self.attention = Residual(channels, 32, time), Attention(32, context, 4, 8)
        self.middle = Residual(32, 32, time)
        self.up2 = Residual(64, 32, time)
        self.grow = nn.Conv2d(32, 32, 3, padding=1)
        self.up1 = Residual(32 + channels, channels, time)
        self.norm, self.head = nn.GroupNorm(4, channels), nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        t = self.time(timestep_embedding(time, self.width).to(x.dtype))
        first = self.down1(self.stem(x), t)
        second = self.attention(self.down2(self.shrink(first), t), context)
        y = self.middle(second, t)
        y = self.up2(torch.cat([y, second], 1), t)
        y = self.grow(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        y = self.up1(torch.cat([y, first], 1), t)
        return self.head(F.silu(self.norm(y)))
