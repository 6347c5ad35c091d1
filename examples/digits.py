"""A small residual CNN on scikit-learn's handwritten digits: what `make demo` trains, compiles and evaluates.

    python -m examples.digits train                       weights and calibration data, in demo-out/
    graphprune compile examples.digits:factory --macs 0.5x --data demo-out/calibration.npz \
        --eval examples.digits:accuracy -o demo-out/compiled

1797 images of 8x8 pixels; every fifth is held out: never trained on, never calibrated on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FOLDER = Path(__file__).resolve().parent.parent / "demo-out"
LASSO = 0.15
WEIGHTS, CALIBRATION = "weights.npz", "calibration.npz"


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.skip = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.skip(x))


class DigitsNet(nn.Module):
    """(N, 1, 8, 8) images to (N, 10) logits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            Block(width, width, 1), Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1)
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return scores


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, held-out images and labels; pixels from 0 to 1."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy((images / 16).astype(np.float32)).reshape(-1, 1, 8, 8)
    y = torch.from_numpy(labels)
    held_out = torch.arange(len(x)) % 5 == 3
    return x[~held_out], y[~held_out], x[held_out], y[held_out]


def train(folder: Path, epochs: int = 25, seed: int = 0) -> None:
    """Train, and write the weights and the calibration images to ``folder``.

    Proximal gradient descent on a group lasso over the BatchNorm scales (Liu et al., Network Slimming,
    2017; Huang and Wang, 2018): what the network does not need goes to zero while it learns, and can
    be cut afterwards without training again.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # layers this small gain nothing from more
    x, y, _, _ = digits()
    net, batch, start = DigitsNet(), 64, time.monotonic()
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    net.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x))[: steps // epochs * batch].reshape(-1, batch):
            shift = torch.randint(-1, 2, (2,)).tolist()
            loss = F.cross_entropy(net(torch.roll(x[rows], shift, (2, 3))), y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shrink(net, LASSO * float(schedule.get_last_lr()[0]))
            schedule.step()
            total += float(loss.detach())
        print(
            f"epoch {epoch + 1:2}/{epochs}  loss {total * epochs / steps:.3f}  {time.monotonic() - start:4.0f} s",
            flush=True,
        )
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / WEIGHTS, **{name: tensor.numpy() for name, tensor in net.state_dict().items()})
    np.savez(folder / CALIBRATION, x=x[:512].numpy())


@torch.no_grad()
def shrink(net: DigitsNet, step: float) -> None:
    """Shorten every channel's vector of BatchNorm scales by ``step`` times the root of its length.
    The channels that a residual stream joins live or die together: the scales of all norms that
    write to it are one vector."""
    a, b, c, d = cast(Any, net.blocks)
    stem = cast(Any, net.stem)
    for norms in ((stem[1], a.bn2, b.bn2), (a.bn1,), (b.bn1,), (c.bn1,), (c.bn2, c.skip[1], d.bn2), (d.bn1,)):
        norm = torch.stack([norm.weight for norm in norms]).norm(dim=0)
        less = step * len(norms) ** 0.5
        for one in norms:
            one.weight.mul_((1 - less / norm.clamp(min=less)).clamp(min=0))


def factory() -> tuple[nn.Module, tuple[Tensor]]:
    """The trained network and example inputs, for ``graphprune compile examples.digits:factory``."""
    net = DigitsNet()
    with np.load(FOLDER / WEIGHTS, allow_pickle=False) as weights:
        net.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    return net.eval(), (digits()[0][:2],)


def accuracy(network: nn.Module) -> float:
    """The share of the held-out digits that a network reads right, for ``graphprune compile --eval``."""
    _, _, x, y = digits()
    with torch.no_grad():
        return float((network(x).argmax(1) == y).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="train the network").add_argument("--epochs", type=int, default=25)
    arguments = parser.parse_args()
    train(FOLDER, arguments.epochs)


if __name__ == "__main__":
    main()
