"""Small networks, one for every way in which ops couple channels, with what must come of each.

``prunable`` and ``frozen`` are written down by hand: they say what *must* be, not what came out.
Sizes are small and mostly distinct, so that a wrong axis shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.program import Program


@dataclass(frozen=True)
class Net:
    """A network and what must come of it.

    ``prunable``: group -> channels. ``mixed``: the same, with a normalisation across. ``frozen``:
    dim -> words of its reason. ``inert``: members that have no effect on the output, by mathematics. ``router``: of
    submodules that choose along the last axis of what they make, the parameter whose rows that axis is.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    prunable: Mapping[str, int]
    frozen: Mapping[str, str]
    mixed: Mapping[str, int] = field(default_factory=dict)
    inert: frozenset[str] = frozenset()
    router: Mapping[str, str] = field(default_factory=dict)


ZOO: dict[str, Net] = {}


def net(inputs: Callable[[], Any], prunable: Mapping[str, int], frozen: Mapping[str, str], **more: Any) -> Any:
    def enter(kind: type[nn.Module]) -> type[nn.Module]:
        ZOO[kind.__name__] = Net(kind, inputs, prunable, frozen, **more)
        return kind

    return enter


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter *and buffer* random and none zero: a zero BatchNorm bias hides mistakes."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=rng, dtype=tensor.dtype) + 0.5)
            else:
                scale = (1.0 / max(1, tensor[0].numel())) ** 0.5 if tensor.ndim > 1 else 0.5
                tensor.copy_(torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype) * scale)
    return module


def told_apart(module: Any) -> Any:
    """Random as ``randomise`` makes it, and its attention far from alike for all tokens."""
    randomise(module)
    for name, weight in module.named_parameters():
        if name.endswith(("q.weight", "k.weight")):
            weight.data *= 3
    return module


def image(channels: int = 3, size: int = 8, batch: int = 2) -> Callable[[], tuple[torch.Tensor]]:
    return lambda: (_randn(batch, channels, size, size),)


def vectors(*shape: int) -> Callable[[], tuple[torch.Tensor]]:
    return lambda: (_randn(*shape),)


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@cache
def module(name: str) -> nn.Module:
    """The network in eval mode, float64, all random. Copy it before changing it."""
    torch.manual_seed(0)
    return randomise(ZOO[name].make().double().eval())


@cache
def program(name: str) -> Program:
    """The same, exported. Programs do not change."""
    host = TorchHost.export(copy.deepcopy(module(name)), ZOO[name].inputs())
    return Program(host=host, source=host)


def outputs(model: nn.Module, inputs: Any) -> list[NDArray[Any]]:
    """The tensors a module returns, in order, as numpy."""
    args, kwargs = (inputs["args"], inputs["kwargs"]) if isinstance(inputs, dict) else (inputs, {})
    with torch.no_grad():
        out = model(*args, **kwargs)
    return [leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(out)]


def relative_error(a: list[NDArray[Any]], b: list[NDArray[Any]]) -> float:
    """max |a - b| / max |a| over all outputs; infinite where shapes differ."""
    worst = 0.0
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
            return float("inf")
        worst = max(worst, float(np.abs(x - y).max() / np.abs(x).max()))
    return worst


# ---- convolutional networks --------------------------------------------------------------------------

INPUT = "graph input"
OUTPUT = "reaches the graph output"


@net(
    image(),
    {"stem": 6, "block.conv1": 5, "down": 7, "last": 4},
    {"stem.weight[1]": INPUT, "fc": OUTPUT},
)
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.block = nn.ModuleDict(
            dict(
                conv1=nn.Conv2d(6, 5, 3, padding=1),
                bn1=nn.BatchNorm2d(5),
                conv2=nn.Conv2d(5, 6, 3, padding=1),
                bn2=nn.BatchNorm2d(6),
            )
        )
        self.down, self.bn3 = nn.Conv2d(6, 7, 1, stride=2), nn.BatchNorm2d(7)
        self.conv3 = nn.Conv2d(6, 7, 3, stride=2, padding=1)
        self.last = nn.Conv2d(7, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.bn0(self.stem(x)))
        y = self.block["bn2"](self.block["conv2"](F.relu(self.block["bn1"](self.block["conv1"](x)))))
        x = F.relu(x + y)
        x = self.bn3(self.down(x)) + self.conv3(x)
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.last(x)), 1).flatten(1))


@net(
    image(),
    {"stem": 4, "conv1": 6, "conv2.0": 2, "conv2.2": 2},
    {"stem.weight[1]": INPUT, "fc": OUTPUT},
)
class OptionA(nn.Module):
    """CIFAR ResNet: the shortcut is a strided slice, padded with zero channels on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)
        x = F.relu(self.bn2(self.conv2(F.relu(self.conv1(x)))) + short)
        return self.fc(x.mean((2, 3)))


@net(
    image(),
    {"expand": 5, "dw2.1": 2, "out": 7},
    {"expand.weight[1]": INPUT, "fc": OUTPUT},
)
class Depthwise(nn.Module):
    """A depthwise convolution, and one with multiplier 2."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 5, 1)
        self.dw1, self.bn1 = nn.Conv2d(5, 5, 3, groups=5, padding=1), nn.BatchNorm2d(5)
        self.dw2 = nn.Conv2d(5, 10, 3, groups=5, padding=1)
        self.out = nn.Conv2d(10, 7, 1)
        self.fc = nn.Linear(7, 3)

    def forward(self, x):
        x = F.relu6(self.bn1(self.dw1(self.expand(x))))
        return self.fc(F.hardswish(self.out(self.dw2(x))).mean((2, 3)))


@net(
    image(),
    {"stem.0": 2, "stem.1": 3, "grouped.1": 4, "last": 5},
    {"stem.weight[1]": INPUT, "fc": OUTPUT},
)
class Grouped(nn.Module):
    """A grouped convolution: whole groups, inputs of every group alike, outputs of every group alike."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 8, 3, groups=2, padding=1)
        self.last = nn.Conv2d(8, 5, 1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(self.last(F.relu(self.grouped(F.relu(self.stem(x))))).mean((2, 3)))


@net(
    image(),
    {"stem.0": 2, "stem.1": 4, "conv1.1": 2, "conv1.2": 3, "conv2.1": 5},
    {"stem.weight[1]": INPUT, "fc": OUTPUT},
)
class Shuffle(nn.Module):
    """ShuffleNet: a grouped convolution, its channels shuffled, a grouped convolution again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.conv1, self.bn = nn.Conv2d(8, 12, 1, groups=2), nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 10, 3, groups=2, padding=1)
        self.fc = nn.Linear(10, 3)

    def forward(self, x):
        x = F.relu(self.bn(self.conv1(F.relu(self.stem(x)))))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(self.conv2(x).mean((2, 3)))


@net(
    image(),
    {"stem": 4, "layer1": 3, "layer2": 5, "last": 6},
    {"stem.weight[1]": INPUT, "fc": OUTPUT},
)
class Dense(nn.Module):
    """DenseNet: features pile up, with a positive and a negative axis."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1, self.bn1 = nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(7)
        self.layer2, self.bn2 = nn.Conv2d(7, 5, 3, padding=1), nn.BatchNorm2d(12)
        self.last = nn.Conv2d(12, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = torch.cat([x, self.layer1(x)], 1)
        x = torch.cat([x, self.layer2(F.relu(self.bn1(x)))], -3)
        return self.fc(F.relu(self.last(F.relu(self.bn2(x)))).mean((2, 3)))


@net(
    image(),
    {"a": 4, "b": 6, "c": 5},
    {"a.weight[1]": INPUT, "fc": OUTPUT},
)
class BothOrders(nn.Module):
    """a+b and b+a of different sizes, added after a convolution each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.c, self.d = nn.Conv2d(10, 5, 1), nn.Conv2d(10, 5, 1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        a, b = F.relu(self.a(x)), torch.tanh(self.b(x))
        x = self.c(torch.cat([a, b], 1)) * self.d(torch.cat([b, a], 1))
        return self.fc(x.mean((2, 3)))


@net(
    image(),
    {"a": 2, "fc1": 4},
    {"a.weight[1]": INPUT, "fc": OUTPUT},
)
class CrossedSums(nn.Module):
    """cat(a, b) + cat(b, a) with sizes 4 and 6: positions that are two apart are one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.fc1, self.fc = nn.Linear(10, 4), nn.Linear(4, 3)

    def forward(self, x):
        a, b = F.relu(self.a(x)), torch.tanh(self.b(x))
        x = torch.cat([a, b], 1) + torch.cat([b, a], 1)
        return self.fc(torch.tanh(self.fc1(x.mean((2, 3)))))


@net(
    image(),
    {"conv": 5, "conv2": 4},
    {"conv.weight[1]": INPUT, "fc": OUTPUT},
)
class Gate(nn.Module):
    """chunk and multiply, and glu, which does both: the halves live or die together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10)
        self.conv2 = nn.Conv2d(5, 8, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        a, b = self.bn(self.conv(x)).chunk(2, 1)
        return self.fc(F.glu(self.conv2(a * torch.sigmoid(b)), 1).mean((-1, -2)))


@net(
    image(),
    {"conv.0": 3, "conv.1": 5, "conv.2": 4, "a": 6},
    {"conv.weight[1]": INPUT, "fc": OUTPUT},
)
class SplitUneven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3)
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(5, 6, 1), nn.Conv2d(4, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        a, b, c = torch.split(F.relu(self.conv(x)), [3, 5, 4], 1)
        return self.fc((self.a(a) + self.b(b) * self.c(c)).mean((2, 3)))


@net(
    image(size=4),
    {"a": 4, "b": 5, "fc1": 6},
    {"a.weight[1]": INPUT, "fc2": OUTPUT},
)
class Flatten(nn.Module):
    """Every channel of a concatenation becomes h*w = 16 features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 1)
        self.fc1, self.fc2 = nn.Linear(9 * 16, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.cat([F.relu(self.a(x)), self.b(x)], 1)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


@net(
    image(),
    {"conv.0": 2, "conv.2": 2, "conv.3": 4, "a": 4},
    {"conv.weight[1]": INPUT, "fc": OUTPUT},
)
class Slices(nn.Module):
    """Overlapping slices [0:3], [2:5] and [5:]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 9, 1), nn.BatchNorm2d(9)
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.bn(self.conv(x))
        x = self.a(x[:, :3]) + self.b(x[:, 2:5]) + self.c(x.narrow(1, 5, 4))
        return self.fc(F.relu(x).mean((2, 3)))


@net(
    vectors(2, 3, 12),
    {"conv1": 5, "conv2": 4},
    {"conv1.weight[1]": INPUT, "fc": OUTPUT},
)
class Conv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5)
        self.conv2, self.fc = nn.Conv1d(5, 4, 3, dilation=2), nn.Linear(4, 3)

    def forward(self, x):
        x = F.max_pool1d(F.elu(self.bn(self.conv1(x))), 2)
        return self.fc(self.conv2(F.pad(x, (2, 1))).amax(-1))


@net(
    vectors(2, 3, 4, 4, 4),
    {"conv1": 5, "conv2": 4},
    {"conv1.weight[1]": INPUT, "fc": OUTPUT},
)
class Conv3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv3d(3, 5, 3, padding=1, bias=False), nn.BatchNorm3d(5)
        self.conv2, self.fc = nn.Conv3d(5, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        x = F.avg_pool3d(F.gelu(self.bn(self.conv1(x))), 2)
        return self.fc(self.conv2(x).flatten(2).mean(2))


@net(
    image(4),
    {"down.0": 2, "down.1": 3, "up": 4, "grouped": 3},
    {"down.weight[1]": INPUT, "out": OUTPUT},
)
class Transposed(nn.Module):
    """A small U-Net, with a grouped transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.grouped = nn.ConvTranspose2d(6, 6, 2, stride=2, groups=2)
        self.out = nn.Conv2d(10, 3, 1)

    def forward(self, x):
        x = F.relu(self.down(x))
        return self.out(torch.cat([self.up(x), F.leaky_relu(self.grouped(x))], 1))


@net(
    image(),
    {"conv": 6, "fc1": 4, "conv2": 5},
    {"conv.weight[1]": INPUT, "fc": OUTPUT},
)
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.fc1, self.fc2 = nn.Linear(6, 4), nn.Linear(4, 6)
        self.conv2, self.fc = nn.Conv2d(6, 5, 1), nn.Linear(5, 3)

    def forward(self, x):
        x = F.silu(self.bn(self.conv(x)))
        s = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
        return self.fc(self.conv2(x * s[:, :, None, None]).mean((2, 3)))


@net(
    image(),
    {"conv1": 6, "conv2": 5},
    {"conv1.weight[1]": INPUT, "fc": OUTPUT},
)
class PReLU(nn.Module):
    """PReLU with a slope a channel, and one slope for all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 6, 3), nn.PReLU(6)
        self.conv2, self.act2 = nn.Conv2d(6, 5, 3), nn.PReLU()
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(self.act2(self.conv2(self.act1(self.conv1(x)))).mean((2, 3)))


@net(
    image(),
    {"conv1": 6, "conv2": 5},
    {"conv1.weight[1]": INPUT, "fc": OUTPUT},
    inert=frozenset({"conv1.bias[0]"}),  # the normalisation takes every channel's mean away
)
class Instance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True)
        self.conv2, self.norm2 = nn.Conv2d(6, 5, 1), nn.InstanceNorm2d(5, affine=True, track_running_stats=True)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        return self.fc(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))


@net(
    image(),
    {"conv1.0": 2, "conv2": 5},
    {"conv1.weight[1]": INPUT, "fc": OUTPUT},
    mixed={"conv1.1": 4},
)
class GroupNorm(nn.Module):
    """Whole groups can go; inside one, the statistics mix."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)
        self.conv2, self.fc = nn.Conv2d(8, 5, 1), nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(self.conv2(F.relu(self.norm(self.conv1(x)))).mean((2, 3)))


@net(
    image(),
    {"pw1": 7},
    {"stem.weight[1]": INPUT, "fc": OUTPUT},
    mixed={"stem": 6},
)
class ConvNeXt(nn.Module):
    """LayerNorm over channels last, a layer scale, a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dw = nn.Conv2d(3, 6, 2, stride=2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.pw1, self.pw2 = nn.LayerNorm(6), nn.Linear(6, 7), nn.Linear(7, 6)
        self.gamma, self.fc = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pw2(F.gelu(self.pw1(y)))
        return self.fc((x + y.permute(0, 3, 1, 2)).mean((-2, -1)))


@net(
    image(),
    {"conv1.0": 6, "conv2": 4, "conv3": 5},
    {
        "conv1.1": "pixel_shuffle (pixel_shuffle) tells its positions apart",
        "conv3.weight[1].1": "pixel_unshuffle",
        "fc": OUTPUT,
    },
)
class PixelShuffle(nn.Module):
    """Groups of r*r channels become one: four writers of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(6, 4, 3)
        self.conv3, self.fc = nn.Conv2d(16, 5, 1), nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.conv2(F.pixel_shuffle(self.conv1(x), 2)))
        return self.fc(self.conv3(F.pixel_unshuffle(x, 2)).mean((2, 3)))


@net(
    image(),
    {"conv": 5, "conv2": 6},
    {"conv.weight[1]": INPUT, "fc": OUTPUT},
)
class SpatialAttention(nn.Module):
    """One channel of attention is broadcast over all the others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.att = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 1, 1)
        self.conv2, self.fc = nn.Conv2d(5, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.fc(F.relu(self.conv2(x * torch.sigmoid(self.att(x)))).mean((2, 3)))


@net(
    image(),
    {"conv2": 4},
    {"conv.weight[1]": INPUT, "conv": "mean (reduce) reduces over it", "fc": OUTPUT},
)
class MinusMean(nn.Module):
    """x - x.mean(1): every channel depends on all, and no weight reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv2, self.fc = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.fc(F.relu(self.conv2(x - x.mean(1, keepdim=True))).mean((2, 3)))


@net(
    image(),
    {"conv3": 4},
    {"conv1": "(along) tells its positions apart", "conv2": "(along) tells its positions apart", "fc": OUTPUT},
)
class ChannelSoftmax(nn.Module):
    """Softmax over channels, and channels in reverse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)
        self.conv3, self.fc = nn.Conv2d(5, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        y = self.conv1(x).softmax(1) + self.conv2(x).flip(1)
        return self.fc(self.conv3(y).mean((2, 3)))


@net(
    image(),
    {"conv1": 5, "conv2": 6, "conv3": 4},
    {"conv1.weight[1]": INPUT, "conv4": OUTPUT},
)
class PadUpsample(nn.Module):
    """Spatial padding of three kinds, resizing, and channels padded with a constant that is not 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), nn.Conv2d(5, 6, 3)
        self.conv3, self.conv4 = nn.Conv2d(6, 4, 1), nn.Conv2d(5, 3, 1)

    def forward(self, x):
        x = F.interpolate(F.relu(self.conv1(x)), scale_factor=2)
        x = F.interpolate(self.conv2(F.pad(x, (1, 2, 0, 1), mode="replicate")), size=(9, 7), mode="bilinear")
        x = F.pad(self.conv3(x).flip(-1), (0, 0, 0, 0, 0, 1), value=0.7)
        return self.conv4(torch.tanh(x))


@net(
    image(),
    {"conv1": 5, "conv3": 4},
    {"conv2": OUTPUT, "head": OUTPUT},
)
class Heads(nn.Module):
    """A dict of outputs; one is a feature map that is read on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 1)
        self.conv3, self.head = nn.Conv2d(6, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        features = self.conv2(F.relu(self.conv1(x)))
        logits = self.head(F.relu(self.conv3(features)).mean((2, 3)))
        return {"logits": logits, "more": (features, logits.softmax(-1))}


@net(
    image(),
    {"conv1": 6, "conv2": 5},
    {"conv1.weight[1]": INPUT, "fc": OUTPUT},
)
class InPlace(nn.Module):
    """In-place ops, dropout, casts and copies."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.act = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.conv2, self.drop, self.fc = nn.Conv2d(6, 5, 3), nn.Dropout2d(0.5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.act(self.bn(self.conv1(x)))
        x = self.drop(self.conv2(x)).clone()
        x += 0.5
        x.mul_(1.5)
        x = F.dropout(x.to(torch.float64).contiguous(), 0.3, self.training)
        return self.fc(x.clamp(-1, 4).mean((2, 3)))


@net(
    vectors(2, 6),
    {"inner.0": 5, "enter": 4},
    {"leave": OUTPUT},
)
class Shared(nn.Module):
    """Weights that are used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 4)
        self.inner = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4))
        self.leave = nn.Linear(4, 3)

    def forward(self, x):
        x = self.enter(x)
        return self.leave(torch.tanh(x + self.inner(self.inner(x))))


@net(
    vectors(2, 6),
    {"direction": 5, "free": 4, "kept": 6, "back": 4},
    {"bounded": "not zero where exp (pointwise) gets zeros", "leave": OUTPUT},
)
class Computed(nn.Module):
    """Weights computed from parameters: w * g, tanh(2w), and exp(w), which zeroing w does not make zero."""

    def __init__(self) -> None:
        super().__init__()
        self.direction, self.gain = nn.Parameter(torch.ones(5, 6)), nn.Parameter(torch.ones(5, 1))
        self.bounded, self.free = nn.Parameter(torch.ones(7, 5)), nn.Parameter(torch.ones(4, 7))
        self.kept, self.back = nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.ones(6, 4))
        self.leave = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(F.linear(x, self.direction * self.gain))
        x = torch.relu(F.linear(x, self.bounded))
        x = F.linear(x, torch.exp(self.free))
        return self.leave(F.linear(F.linear(x, self.kept).tanh(), (2 * self.back.t()).tanh() / 0.5))


# ---- transformers, multilayer perceptrons ------------------------------------------------------------

POSITIONS = "tells its positions apart"


@net(
    vectors(2, 6),
    {"fc1": 7, "fc2": 5},
    {"fc1.weight[1]": INPUT, "fc3": OUTPUT},
)
class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn = nn.Linear(6, 7, bias=False), nn.BatchNorm1d(7)
        self.fc2, self.fc3 = nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.fc3(F.softplus(self.fc2(F.relu(self.bn(self.fc1(x))))))


def _heads(x, heads):
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


@net(
    vectors(2, 4, 5),
    {"v.1": 2, "q.0": 3, "k.1": 2, "out": 4},
    {"q.weight[1]": INPUT, "fc": OUTPUT},
    inert=frozenset({"k.bias[0]"}),  # the same for every key: softmax takes it away
)
class Attention(nn.Module):
    """Separate q, k and v, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 6)
        self.out, self.fc = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = (_heads(layer(x), 3) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-2, -1) / 2**0.5, -1)
        x = (weights @ v).transpose(1, 2).reshape(*x.shape[:2], -1)
        return self.fc(torch.tanh(self.out(x)))


@net(
    vectors(2, 4, 6),
    {"qkv.1": 3, "qkv.weight[0].2": 2, "fc1": 5},
    {"proj": INPUT, "qkv.0": POSITIONS},
)
class Packed(nn.Module):
    """ViT: q, k and v from one layer, told apart by view and unbind; SDPA; a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(6, 18, bias=False), nn.Linear(6, 6)
        self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 3, c // 3).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
        return x + self.fc2(F.gelu(self.fc1(x)))


@net(
    vectors(2, 4, 6),
    {"qkv.0": 2, "qkv.weight[0].1": 3, "qkv.2": 3},
    {"qkv.weight[1]": INPUT, "proj": OUTPUT},
)
class Chunked(nn.Module):
    """GPT-2: q, k and v from one layer, told apart by chunk; a causal mask; values of their own width."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(6, 18, bias=False), nn.Linear(6, 6)

    def forward(self, x):
        q, k, v = (_heads(part, 2) for part in self.qkv(x).chunk(3, -1))
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.proj(x)


@net(
    vectors(2, 4, 5),
    {"q.0": 2, "q.1": 3, "k.1": 4, "v.1": 4},
    {"q.weight[1]": INPUT, "out": OUTPUT},
)
class GroupedQuery(nn.Module):
    """Llama: two key heads serve six query heads through expand and reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(5, 24, bias=False), nn.Linear(5, 8, bias=False)
        self.v, self.out = nn.Linear(5, 8, bias=False), nn.Linear(24, 4)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = _heads(self.q(x), 6), _heads(self.k(x), 2), _heads(self.v(x), 2)
        k, v = (y[:, :, None].expand(n, 2, 3, t, 4).reshape(n, 6, t, 4) for y in (k, v))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(t, t, dtype=torch.bool).tril())
        return self.out(x.transpose(1, 2).reshape(n, t, 24))


@net(
    vectors(2, 4, 5),
    {"q": 3, "k": 4, "v": 2},
    {"q[0]": INPUT, "o": OUTPUT},
)
class Einsum(nn.Module):
    """Attention in einsum, weights with an axis for heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Parameter(torch.ones(5, 3, 4)), nn.Parameter(torch.ones(5, 3, 4))
        self.v, self.o = nn.Parameter(torch.ones(5, 3, 2)), nn.Parameter(torch.ones(3, 2, 6))

    def forward(self, x):
        q, k, v = (torch.einsum("ntc,chd->nthd", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("nqhd,nkhd->nhqk", q, k).softmax(-1)
        return torch.einsum("nqhe,heo->nqo", torch.einsum("nhqk,nkhe->nqhe", weights, v), self.o)


@net(
    lambda: (torch.tensor([[1, 4, 2, 0], [3, 3, 5, 6]]),),
    {"fc1": 7},
    {"head": "emb (gather) tells its positions apart"},
    mixed={"fc2": 6},
)
class Language(nn.Module):
    """An embedding tied to the head, positions, LayerNorm and RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.pos = nn.Embedding(8, 6), nn.Parameter(torch.ones(9, 6))
        self.norm1, self.fc1, self.fc2 = nn.LayerNorm(6), nn.Linear(6, 7), nn.Linear(7, 6)
        self.norm2, self.head = nn.RMSNorm(6), nn.Linear(6, 8, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids):
        x = self.emb(ids) + self.pos[: ids.shape[1]]
        x = x + self.fc2(F.gelu(self.fc1(self.norm1(x)), approximate="tanh"))
        return self.head(self.norm2(x))


STREAM = {"emb": 6, "q.0": 2, "k.1": 3, "v.1": 3, "gate": 7}


@net(lambda: (torch.tensor([[1, 4, 2, 0], [3, 3, 5, 6]]),), STREAM, {"head": OUTPUT})
class Llama(nn.Module):
    """A residual stream below RMS norms, two of which share a weight; norms of queries and keys; gated units."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(8, 6), nn.Linear(6, 5)
        self.norm1, self.norm2, self.last = nn.RMSNorm(6, eps=0.1), nn.RMSNorm(6, eps=0.3), nn.RMSNorm(6)
        self.q, self.k, self.v = nn.Linear(6, 6, bias=False), nn.Linear(6, 6), nn.Linear(6, 6)
        self.qn, self.kn, self.o = nn.RMSNorm(3, eps=0.2), nn.RMSNorm(3, eps=0.2), nn.Linear(6, 6)
        self.gate, self.up, self.down = nn.Linear(6, 7), nn.Linear(6, 7), nn.Linear(7, 6)

    def forward(self, ids):
        x = self.emb(ids)
        y = self.norm1(x)
        q, k, v = self.qn(_heads(self.q(y), 2)), self.kn(_heads(self.k(y), 2)), _heads(self.v(y), 2)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.norm2(x)
        y = self.norm1(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(self.last(x))


class Rms(nn.Module):
    """An RMS norm as people write it, in one of many ways."""

    def __init__(self, size: int, eps: float, way: str = "cast") -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self.way = nn.Parameter(torch.ones(size)), eps, way
        self.size, self.scale = size, size**-0.5

    def forward(self, x):
        eps = self.variance_epsilon
        if self.way == "sum":
            return x / torch.sqrt((x * x).sum(-1, keepdim=True) / self.size + eps) * self.weight
        if self.way == "length":
            return F.normalize(x, dim=-1, eps=eps) / self.scale * self.weight
        if self.way == "clamped":
            return x / (torch.norm(x, dim=-1, keepdim=True) * self.scale).clamp(min=eps) * self.weight
        if self.way == "added":
            return self.weight * (x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) * self.scale + eps))
        if self.way == "root":  # the number is added to the root, and the weight comes first
            return self.weight * x / (x.pow(2).mean(-1).sqrt() + eps)[..., None]
        if self.way == "cast":
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
        if self.way == "divide":
            return x / torch.sqrt(eps + (x * x).mean(dim=-1, keepdim=True)) * self.weight
        if self.way == "invert":
            return x * (1 / torch.sqrt(torch.square(x).mean(-1, True) + eps)) * self.weight
        return (x * torch.pow(x.pow(2).mean(-1, True) + eps, -0.5)).type_as(x) * (1 + self.weight)


@net(lambda: (torch.tensor([[1, 4, 2, 0], [3, 3, 5, 6]]),), STREAM, {"head": OUTPUT})
class Written(Llama):
    """The same with norms that are written out."""

    def __init__(self) -> None:
        super().__init__()
        norms = {"norm1": Rms(6, 0.1), "norm2": Rms(6, 0.3, "divide"), "last": Rms(6, 0.4, "shift")}
        for name, norm in {**norms, "qn": Rms(3, 0.2, "invert"), "kn": Rms(3, 0.2)}.items():
            setattr(self, name, norm)


@net(
    lambda: (torch.tensor([[1, 4, 2, 0], [3, 3, 5, 6]]),),
    {name.replace("k.", "q."): size for name, size in STREAM.items()},
    {"head": OUTPUT},
)
class Lengths(Llama):
    """The same by sums and lengths, which do not notice the zeros; the smallest length that counts is often met."""

    def __init__(self) -> None:
        super().__init__()
        norms = {"norm1": Rms(6, 0.1, "sum"), "norm2": Rms(6, 1.5, "length"), "last": Rms(6, 0.6, "clamped")}
        for name, norm in {**norms, "qn": Rms(3, 0.2, "added"), "kn": Rms(3, 0.3, "root")}.items():
            setattr(self, name, norm)


class Responses(nn.Module):
    """Global response normalisation as ConvNeXt V2 has it (channels last), as timm does, and weight first."""

    def __init__(self, size: int, eps: float, way: str) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.way = (
            nn.Parameter(torch.ones(size)),
            nn.Parameter(torch.ones(size)),
            eps,
            way,
        )

    def forward(self, x):
        if self.way == "last":
            length = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
            return self.weight * (x * (length / (length.mean(dim=-1, keepdim=True) + self.eps))) + self.bias + x
        weight, bias = self.weight.view(1, -1, 1, 1), self.bias[None, :, None, None]
        if self.way == "timm":
            length = x.norm(p=2, dim=(2, 3), keepdim=True)
            return x + torch.addcmul(bias, weight, x * (length / (length.mean(dim=1, keepdim=True) + self.eps)))
        length = x.pow(2).sum((2, 3), keepdim=True).sqrt()
        return x + weight * x * (length / (length.mean(1, keepdim=True) + self.eps)) + bias


@net(image(), {"stem": 8, "conv": 6, "up": 7}, {"stem.weight[1]": INPUT, "head": OUTPUT})
class Respond(nn.Module):
    """Global response normalisation, spelt in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3), Responses(8, 0.3, "timm")
        self.conv, self.second = nn.Conv2d(8, 6, 3), Responses(6, 0.2, "weight")
        self.up, self.third, self.head = nn.Linear(6, 7), Responses(7, 0.5, "last"), nn.Linear(7, 3)

    def forward(self, x):
        x = self.second(F.gelu(self.conv(self.first(F.relu(self.stem(x))))))
        return self.head(self.third(F.gelu(self.up(x.permute(0, 2, 3, 1)))).mean((1, 2)))


@net(
    lambda: (torch.tensor([[1, 4, 2, 0], [3, 3, 5, 6]]),),
    {"emb": 6, "fc": 5},
    {"head": OUTPUT},
)
class Embedding(nn.Module):
    """Without a norm, the width of an embedding can go."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.fc, self.head = nn.Embedding(8, 6), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, ids):
        return self.head(torch.tanh(self.fc(self.emb(ids).mean(1))))


@net(
    vectors(2, 4, 6),
    {"a": 5, "b": 3, "mid": 4},
    {"a[0]": INPUT, "c": OUTPUT},
)
class Matmul(nn.Module):
    """Bare matrices: matmul, addmm, stack, index_select, repeat and unknown ops on other axes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(6, 5)), nn.Parameter(torch.ones(5, 3))
        self.mid, self.bias = nn.Linear(3, 4), nn.Parameter(torch.ones(4))
        self.c, self.d = nn.Parameter(torch.ones(4, 7)), nn.Parameter(torch.ones(7))

    def forward(self, x):
        x = torch.tanh(x @ self.a) @ self.b
        y = torch.stack([x, x.relu()], 1).cumsum(1).sum(1)
        y = self.mid(y.repeat(1, 2, 1).index_select(1, torch.tensor([0, 2, 5])))
        y = (y + self.bias).amax(1)
        return torch.addmm(self.d, y, self.c)


@net(
    vectors(2, 4, 5),
    {"v": 4},
    {"q": "matmul (matmul) contracts it between activations", "out": OUTPUT},
)
class Activated(nn.Module):
    """Queries and keys that are never zero: no zeroed weight masks their width."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(a, b) for a, b in ((5, 3), (5, 3), (5, 4), (4, 2)))

    def forward(self, x):
        weights = F.elu(self.q(x)).exp() @ F.elu(self.k(x)).exp().transpose(1, 2)
        return self.out(weights.softmax(-1) @ self.v(x))


@net(
    vectors(2, 4, 6),
    {"enter": 7, "rnn.weight_ih_l0.1": 4, "head": 5},
    {"last": OUTPUT},
)
class Recurrent(nn.Module):
    """One hidden size of all gates and both directions, which both recurrent weights read."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.rnn = nn.Linear(6, 7), nn.GRU(7, 4, batch_first=True, bidirectional=True)
        self.head, self.last = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(F.relu(self.head(self.rnn(torch.tanh(self.enter(x)))[0])))


@net(vectors(3, 2, 6), {"rnn.weight_ih_l0.1": 5, "rnn.weight_hr_l0": 3}, {"head": OUTPUT})
class Projected(nn.Module):
    """What the layers of an LSTM read of one another is projected; its last cell states are read as well."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 5, num_layers=2, proj_size=3, bidirectional=True)
        self.head, self.cells = nn.Linear(6, 4), nn.Linear(5, 4)

    def forward(self, x):
        y, (_, c) = self.rnn(x)
        return self.head(y) + self.cells(torch.tanh(c)).sum((0, 1))


@net(vectors(2, 3, 6), {"first": 5, "start": 7}, {"head": OUTPUT})
class Started(nn.Module):
    """A state that is computed, another that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.start = nn.Linear(6, 5), nn.Parameter(torch.ones(1, 1, 7))
        self.one, self.two = nn.RNN(6, 5, bias=False, batch_first=True), nn.GRU(5, 7, num_layers=2)
        self.head = nn.Linear(7, 4)

    def forward(self, x):
        y, _ = self.one(x, torch.tanh(self.first(x.mean(1))[None]))
        return self.head(self.two(y, self.start.expand(2, 3, 7).contiguous())[0])


@net(vectors(2, 3, 6), {"a.weight_ih.1": 7, "b.weight_ih.1": 5, "c.weight_ih": 4}, {"head": OUTPUT})
class Cells(nn.Module):
    """Cells step by step: the state of a step is what the weights read at the next."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.LSTMCell(6, 7), nn.GRUCell(7, 5), nn.RNNCell(5, 4, nonlinearity="relu")
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], 7)
        k = m = None
        for t in range(x.shape[1]):
            h, c = self.a(x[:, t], (h, c))
            k = self.b(h, k)
            m = self.c(k, m)
        return self.head(m)


@net(vectors(2, 3, 6), {"read": 5}, {"head": OUTPUT})
class Unrolled(nn.Module):
    """The loop of an LSTM written by hand, its gates cut out of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.again, self.head = nn.Linear(6, 20), nn.Linear(5, 20, bias=False), nn.Linear(5, 3)

    def forward(self, x):
        h = c = torch.zeros(x.shape[0], 5, dtype=x.dtype)
        for t in range(x.shape[1]):
            i, f, g, o = (self.read(x[:, t]) + self.again(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


@net(
    vectors(2, 4, 6),
    {"head": 5},
    {"mix": "renorm: no rule for `aten.renorm.default`", "head.weight[1]": "no rule for", "last": OUTPUT},
)
class Unknown(nn.Module):
    """An op that the table does not know is carried along, and freezes what it touches."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head, self.last = nn.Linear(6, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(F.relu(self.head(torch.renorm(self.mix(x), 2, 0, 1.0))))
