"""Deformable convolutions: torchvision's op by its name and signature, and networks of it."""

from __future__ import annotations

from math import prod

import nets
import torch
from torch import nn
from torch.utils.flop_counter import register_flop_formula

_SCHEMA = (
    "(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
    "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, "
    "bool use_mask) -> Tensor"
)


def _sampled(x, rows, columns):
    """x (n, channels, height, width) at (n, ...) places between its pixels, zero outside; bilinear."""
    n, channels, height, width = x.shape
    flat, total = x.reshape(n, channels, -1), 0.0
    for row in (rows.floor(), rows.floor() + 1):
        for column in (columns.floor(), columns.floor() + 1):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            at = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long().reshape(n, 1, -1)
            share = (1 - (rows - row).abs()) * (1 - (columns - column).abs()) * inside
            total = (
                total
                + flat.gather(2, at.expand(-1, channels, -1)).reshape(n, channels, *rows.shape[1:]) * share[:, None]
            )
    return total


def reference(x, weight, offset, mask, bias, sh, sw, ph, pw, dh, dw, groups, places, use_mask):
    """What deform_conv2d computes (Dai et al., 2017; with a mask Zhu et al., 2019)."""
    n, (kh, kw), (oh, ow) = len(x), weight.shape[2:], offset.shape[2:]
    tap = torch.arange(kh * kw)
    by = offset.reshape(n * places, kh * kw, 2, oh, ow)
    rows = by[:, :, 0] + (torch.arange(oh) * sh - ph)[:, None] + (tap // kw * dh)[:, None, None]
    columns = by[:, :, 1] + torch.arange(ow) * sw - pw + (tap % kw * dw)[:, None, None]
    seen = _sampled(x.reshape(n * places, -1, *x.shape[2:]), rows, columns)
    if use_mask:
        seen = seen * mask.reshape(n * places, 1, kh * kw, oh, ow)
    seen = seen.reshape(n, groups, -1, oh * ow)
    kernel = weight.reshape(groups, len(weight) // groups, -1)
    return torch.einsum("gok,ngkp->ngop", kernel, seen).reshape(n, -1, oh, ow) + bias[:, None, None]


if not hasattr(torch.ops.torchvision, "deform_conv2d"):
    _op = torch.library.custom_op("torchvision::deform_conv2d", reference, mutates_args=(), schema=_SCHEMA)

    @_op.register_fake
    def _(x, weight, offset, *rest):
        return x.new_empty(x.shape[0], weight.shape[0], *offset.shape[2:])


@register_flop_formula(torch.ops.torchvision.deform_conv2d)
def _flops(x_shape, weight_shape, *rest, out_shape=None, **options):
    """torch's counter does not look into ops that are not its own."""
    return 2 * prod(out_shape) * prod(weight_shape[1:])


_APART, _INPUT, _OUTPUT = "(deform_conv) tells its positions apart", "graph input", "reaches the graph output"


class _Deformed(nn.Module):
    """A convolution, and behind it one whose offsets, and mask, a third makes."""

    groups = places = masked = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.where = nn.Conv2d(3, self.places * (12 if self.masked else 8), 2)
        self.weight, self.bias = nn.Parameter(torch.ones(4, 6 // self.groups, 2, 2)), nn.Parameter(torch.ones(4))
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        offset, mask = self.where(x), torch.zeros(len(x), 1, dtype=x.dtype)
        if self.masked:
            offset, mask = offset.split([self.places * 8, self.places * 4], 1)
            mask = mask.sigmoid()
        shape = (1, 1, 0, 0, 1, 1, self.groups, self.places, bool(self.masked))
        y = torch.ops.torchvision.deform_conv2d(self.conv(x), self.weight, offset, mask, self.bias, *shape)
        return self.out(y.relu())


image = nets.image(size=6)
_INNER = {"where.1": _APART, "where.2": _APART, "where.weight[1]": _INPUT, "out": _OUTPUT}


@nets.net(
    image,
    {"conv": 6, "weight": 4},
    {"where.0": _APART, "where.1": _APART, "where.weight[1]": _INPUT, "out": _OUTPUT},
)
class Deformed(_Deformed):
    """Offsets of all channels: no offset can go."""


@nets.net(image, {"where.0": 2, "conv.1": 3, "weight.1": 2}, _INNER)
class DeformedInGroups(_Deformed):
    """A group, with its offsets and its mask."""

    groups = places = 2


@nets.net(image, {"where.0": 3, "conv.1": 2, "weight": 4}, {"where.1": _APART, "out": _OUTPUT})
class DeformedInPlaces(_Deformed):
    """Input channels in offset groups, which a dense weight reads."""

    places, masked = 3, 0


@nets.net(image, {"weight.1": 2}, {"conv": _APART, "where.0": _APART, "where.1": _APART})
class DeformedInBoth(_Deformed):
    """Offset groups across the groups: input channels stay."""

    groups, places = 2, 3
