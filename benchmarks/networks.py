"""Real architectures with random weights, at their published sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Sample = tuple[nn.Module, tuple[torch.Tensor, ...]]


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """DenseNet-121 (Huang et al. 2017) with its default sizes."""

    def __init__(self, growth: int = 32, blocks: tuple[int, ...] = (6, 12, 24, 16), channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        ]
        for number, depth in enumerate(blocks):
            for _ in range(depth):
                layers.append(DenseLayer(channels, growth))
                channels += growth
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            if number < len(blocks) - 1:
                layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(channels, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def densenet121() -> Sample:
    return DenseNet(), (torch.randn(1, 3, 224, 224),)


def resnet50() -> Sample:
    import transformers

    return transformers.ResNetForImageClassification(transformers.ResNetConfig()), (torch.randn(1, 3, 224, 224),)


def vit_b() -> Sample:
    import transformers

    return transformers.ViTForImageClassification(transformers.ViTConfig()), (torch.randn(1, 3, 224, 224),)


def bert_base() -> Sample:
    import transformers

    return transformers.BertForSequenceClassification(transformers.BertConfig()), (torch.randint(0, 30000, (1, 128)),)


NETWORKS: dict[str, Callable[[], Sample]] = {
    "ResNet-50": resnet50,
    "ViT-B": vit_b,
    "BERT-base": bert_base,
    "DenseNet-121": densenet121,
}


def make(name: str) -> Sample:
    """The network in eval mode, seeded."""
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    return module.eval(), inputs
