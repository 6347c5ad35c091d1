"""Convolutional networks at their published sizes, with random weights: the shapes that copies depend on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or a bottleneck (He et al. 2016)."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            layers = [conv(inputs, width), nn.ReLU(), conv(width, width, 3, stride), nn.ReLU(), conv(width, outputs)]
        else:
            layers = [conv(inputs, width, 3, stride), nn.ReLU(), conv(width, width, 3)]
        self.layers = nn.Sequential(*layers)
        self.short = conv(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layers(x) + self.short(x))


class ResNet(nn.Module):
    def __init__(self, depths: tuple[int, ...], bottleneck: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        channels = 64
        for stage, depth in enumerate(depths):
            for k in range(depth):
                layers.append(Block(channels, 64 << stage, 2 if stage and not k else 1, bottleneck))
                channels = (64 << stage) * (4 if bottleneck else 1)
        self.features, self.head = nn.Sequential(*layers), nn.Linear(channels, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


class Inverted(nn.Module):
    """Sandler et al. 2018."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        first = [conv(inputs, wide), nn.ReLU6()] if expand > 1 else []
        self.layers = nn.Sequential(*first, conv(wide, wide, 3, stride, wide), nn.ReLU6(), conv(wide, outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.layers(x) if self.adds else self.layers(x)
        return y


class MobileNetV2(nn.Module):
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, 32, 3, 2), nn.ReLU6()]
        channels = 32
        for expand, outputs, depth, stride in self.STAGES:
            for k in range(depth):
                layers.append(Inverted(channels, outputs, stride if k == 0 else 1, expand))
                channels = outputs
        self.features, self.last = nn.Sequential(*layers), nn.Sequential(conv(channels, 1280), nn.ReLU6())
        self.head = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.last(self.features(x)).mean((2, 3)))
        return logits


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm, self.first = nn.BatchNorm2d(channels), nn.Sequential(conv(channels, 4 * growth), nn.ReLU())
        self.second = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        x: torch.Tensor = self.second(self.first(torch.relu(self.norm(torch.cat(features, 1)))))
        return x


class DenseNet(nn.Module):
    """DenseNet-121 (Huang et al. 2017); every layer concatenates all before it, as torchvision's does."""

    def __init__(self, depths: tuple[int, ...] = (6, 12, 24, 16), growth: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks, self.steps = nn.ModuleList(), nn.ModuleList()
        channels = 64
        for number, depth in enumerate(depths):
            self.blocks.append(nn.ModuleList(DenseLayer(channels + growth * k, growth) for k in range(depth)))
            channels += growth * depth
            step: list[nn.Module] = [nn.BatchNorm2d(channels), nn.ReLU()]
            if number < len(depths) - 1:
                step += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
            self.steps.append(nn.Sequential(*step))
        self.head = nn.Linear(channels, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block, step in zip(self.blocks, self.steps, strict=True):
            features = [x]
            for layer in block:  # type: ignore[attr-defined]
                features.append(layer(features))
            x = step(torch.cat(features, 1))
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


CONVNETS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: ResNet((2, 2, 2, 2), False),
    "ResNet-50": lambda: ResNet((3, 4, 6, 3), True),
    "MobileNetV2": MobileNetV2,
    "DenseNet-121": DenseNet,
}


def make(name: str, batch: int = 1) -> tuple[nn.Module, torch.Tensor]:
    """The network in eval mode and an input of 224 x 224, seeded."""
    torch.manual_seed(0)
    return CONVNETS[name]().eval(), torch.randn(batch, 3, 224, 224)
