"""VAR at high sparsity: one-shot pruning without a step of training after it, beside SGD, SAM, l1 and DeepHoyer.

    python -m benchmarks.training.var [--network mlp] [--tune] [--epochs 20] [--seeds 0 1 2] [--out DIR]

20 epochs of digits from scratch; the smallest weights of all tensors go, or, in the grouped table, the channels of the
smallest norms (of each group as many); statistics of BatchNorm are taken anew. ``mlp`` has no norm, ``conv`` neither,
``conv-bn`` is examples.digits. ``resnet20`` is trained already, and trained on for 4 epochs of 4,096 images of CIFAR-10
(../shared/data beside the checkout). ``--tune`` tries every decay and strength of every row, judged at 95 % (of
resnet20 at 90 %) by a fifth of the training images that it does not train on, and prints the best. Interrupted, it
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.train import Penalty

from ..results import Results
from . import cifar
from .digits import BATCH, DIGITS, X, network, shifted
from .loop import Images, Run, accuracy, mean
from .rivals import perceptron

SPARSITIES = (90, 95, 98)
CHANNELS = (50, 75)
DECAYS = (5e-4, 5e-3)
STRENGTHS: dict[str, tuple[float, ...]] = {
    "SGD": (0.0,),
    "SAM": (0.02, 0.05, 0.2),
    "l1": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "DeepHoyer": (1e-5, 1e-4, 1e-3, 1e-2),
    "VAR": (1e-5, 1e-4, 1e-3, 1e-2),
    "VAR, relative": (1e-6, 1e-5, 1e-4, 1e-3),
}
"""What --tune tries; of SAM it is the radius."""
CHOSEN: dict[str, dict[str, tuple[float, float]]] = {
    "mlp": {
        "SGD": (5e-3, 0.0),
        "SAM": (5e-3, 0.02),
        "l1": (5e-4, 1e-3),
        "DeepHoyer": (5e-3, 1e-3),
        "VAR": (5e-3, 1e-3),
        "VAR, relative": (5e-3, 1e-4),
    },
    "conv": {
        "SGD": (5e-3, 0.0),
        "SAM": (5e-4, 0.05),
        "l1": (5e-4, 3e-4),
        "DeepHoyer": (5e-3, 1e-4),
        "VAR": (5e-3, 1e-4),
        "VAR, relative": (5e-3, 1e-5),
    },
    "conv-bn": {
        "SGD": (5e-3, 0.0),
        "SAM": (5e-3, 0.2),
        "l1": (5e-3, 3e-3),
        "DeepHoyer": (5e-3, 1e-3),
        "VAR": (5e-3, 1e-4),
        "VAR, relative": (5e-3, 1e-4),
    },
    "resnet20": {
        "SGD": (5e-3, 0.0),
        "SAM": (5e-4, 0.2),
        "l1": (5e-3, 3e-3),
        "DeepHoyer": (5e-4, 1e-3),
        "VAR": (5e-3, 1e-3),
        "VAR, relative": (5e-4, 1e-3),
    },
}
"""Decay and strength of each row, as --tune found them."""


class Conv(nn.Sequential):
    """The smallest convolutional network without a norm."""

    def __init__(self, width: int = 32) -> None:
        layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(2 * width, 2 * width, 3, 2, 1), nn.ReLU(), nn.Flatten())
        self.append(nn.Linear(8 * width, 10))


def conv(seed: int) -> tuple[nn.Module, gp.Program]:
    torch.manual_seed(seed)
    module = Conv()
    return module, gp.load(module, (X[:2],))


def resnet20(seed: int) -> tuple[nn.Module, gp.Program]:
    torch.manual_seed(seed)
    module = cifar.network()
    return module, gp.run(cifar.GROUP, gp.load(module, (of_cifar().x[:2],)))


@cache
def of_cifar() -> Images:
    return Images(*cifar.images("train", 4096), *cifar.images("test", 2000))


@dataclass(frozen=True)
class Setting:
    """``make(seed)``: module and program. Highest rate, and epochs, of training; the sparsity that --tune judges at."""

    make: Callable[[int], tuple[nn.Module, gp.Program]]
    images: Callable[[], Images] = lambda: DIGITS
    batches: Callable[..., Any] = shifted
    rate: float = 0.05
    epochs: int = 20
    judged: int = 95


SETTINGS = {
    "mlp": Setting(perceptron),
    "conv": Setting(conv),
    "conv-bn": Setting(network, rate=0.1),
    "resnet20": Setting(resnet20, of_cifar, cifar.batches, epochs=4, judged=90),
}


class Norms(Penalty):
    """sum |w|, or DeepHoyer's sum over tensors of (sum |w|)^2 / sum w^2 (Yang et al., 2020)."""

    hoyer = False

    def value(self) -> Tensor:
        total = torch.zeros(())
        for weight in self.weights().values():
            total = total + (weight.abs().sum() ** 2 / weight.square().sum() if self.hoyer else weight.abs().sum())
        return total


class Hoyer(Norms):
    hoyer = True


class Experiment:
    """Rows of one network: trained, made sparse, measured."""

    def __init__(self, kind: str, options: argparse.Namespace) -> None:
        self.kind, self.setting, self.grouped = kind, SETTINGS[kind], options.grouped
        self.images = self.setting.images()
        if options.tune:
            self.images = self.images.aside()
        self.epochs = options.epochs or self.setting.epochs

    def one(self, name: str, decay: float, strength: float, seed: int) -> dict[str, float]:
        """Accuracy by the share that goes, in per cent."""
        module, program = self.trained(name, decay, strength, seed)
        out = {"0": self.accuracy(module)}
        if not self.grouped:
            return out | {
                str(part): self.accuracy(self.recalibrated(sparse(module, part / 100))) for part in SPARSITIES
            }
        learned = gp.train.Penalty(program, module).learned().seeing([[self.images.x[:1024].numpy(force=True)]])
        for part in CHANNELS:
            recipe = f"mask{{channels={1 - part / 100}x floor=0}},propagate,compensate{{by=bn}}"
            out[str(part)] = self.accuracy(gp.run(recipe, learned).model)
        return out

    def trained(self, name: str, decay: float, strength: float, seed: int) -> tuple[nn.Module, gp.Program]:
        module, program = self.setting.make(seed)
        x, y = self.images.x, self.images.y
        batches = self.setting.batches(x, y, seed, BATCH)
        run = Run(batches, len(x) // BATCH, self.epochs, self.setting.rate, decay=decay)
        step = run.sharpness_aware(strength) if name == "SAM" else None
        penalty: Any = None
        if name == "l1":
            penalty = Norms(program, module, strength=strength)
        elif name == "DeepHoyer":
            penalty = Hoyer(program, module, strength=strength)
        elif name.startswith("VAR"):
            penalty = gp.train.VAR(
                program, module, strength=strength, grouped=self.grouped, relative=name.endswith("relative")
            )
        run.train(module, penalty, step=step, what=f"{self.kind}, {name}, seed {seed}")
        return module, program

    def accuracy(self, model: Any) -> float:
        return accuracy(model, self.images.x_held, self.images.y_held)

    @torch.no_grad()
    def recalibrated(self, module: nn.Module) -> nn.Module:
        """The same weights with BatchNorm's mean and variance measured over the training images."""
        norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
        module.train()
        for batch in self.images.x.split(BATCH)[:-1] if norms else ():
            module(batch)
        return module.eval()

    def tune(self, results: Results, seeds: Sequence[int]) -> None:
        judged = str(self.setting.judged)
        for name, strengths in STRENGTHS.items():
            found = {
                pair: [
                    results.get(f"tune {self.kind} {name} {pair} {seed}", partial(self.one, name, *pair, seed))[judged]
                    for seed in seeds
                ]
                for pair in product(DECAYS, strengths)
            }
            best = max(found, key=lambda pair: sum(found[pair]))
            print(f"| {self.kind} | {name} | {best[0]:g} | {best[1]:g} | {mean(found[best])} |", flush=True)


@torch.no_grad()
def sparse(module: nn.Module, sparsity: float) -> nn.Module:
    """A copy with the smallest weights of all tensors together set to zero."""
    module = copy.deepcopy(module)
    weights = [p for p in module.parameters() if p.ndim > 1]
    every = torch.cat([w.abs().flatten() for w in weights])
    threshold = every.kthvalue(round(sparsity * len(every))).values
    for weight in weights:
        weight.mul_(weight.abs() > threshold)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", choices=tuple(SETTINGS), action="append", help="default: all")
    parser.add_argument("--tune", action="store_true", help="decays and strengths instead")
    parser.add_argument("--grouped", action="store_true", help="channels instead of single weights")
    parser.add_argument("--epochs", type=int, help="default: 20, or 4 of resnet20")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("demo-out/training"), help="results so far")
    options = parser.parse_args()
    torch.set_num_threads(1)
    length = f"-{options.epochs}" if options.epochs else ""
    results = Results(options.out / f"var{length}{'-grouped' * options.grouped}.json")
    for kind in options.network or SETTINGS:
        experiment = Experiment(kind, options)
        if options.tune:
            experiment.tune(results, options.seeds)
            continue
        parts = CHANNELS if options.grouped else SPARSITIES
        print(f"\n| {kind}: removed | decay, strength | 0% | {' | '.join(f'{part}%' for part in parts)} |")
        print(f"|{'---|' * (3 + len(parts))}")
        for name, (decay, strength) in CHOSEN[kind].items():
            key = f"{kind} {name} {decay} {strength}"
            rows = [
                results.get(f"{key} {seed}", partial(experiment.one, name, decay, strength, seed))
                for seed in options.seeds
            ]
            columns = [mean([row[k] for row in rows]) for k in rows[0]]
            print(f"| {name} | {decay:g}, {strength:g} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
