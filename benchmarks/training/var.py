"""VAR at high sparsity: one-shot pruning without a step of training after it, beside SGD, SAM, l1 and DeepHoyer.

    python -m benchmarks.training.var [--network mlp] [--tune] [--epochs 20] [--seeds 0 1 2] [--out DIR]

20 epochs of digits from scratch; the smallest weights of all tensors go, or, in the grouped table, the channels of the
smallest norms (of each group as many); statistics of BatchNorm are taken anew. ``mlp`` has no norm, ``conv`` neither,
``conv-bn`` is examples.digits. ``--tune`` tries every decay and strength of every row on seed 0, judged at 95 % by a
fifth of the training images that it does not train on, and prints the best. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.train import Penalty

from ..results import Results
from .digits import BATCH, X, Y, batches, held, network
from .loop import Run, accuracy, mean
from .rivals import perceptron

SPARSITIES = (90, 95, 98)
CHANNELS = (50, 75)
DECAYS = (5e-4, 5e-3)
STRENGTHS: dict[str, tuple[float, ...]] = {
    "SGD": (0.0,),
    "SAM": (0.05, 0.2),
    "l1": (1e-4, 3e-4, 1e-3),
    "DeepHoyer": (1e-5, 1e-4, 1e-3, 1e-2),
    "VAR": (1e-4, 1e-3, 3e-3, 1e-2),
    "VAR, relative": (1e-6, 1e-5, 1e-4),
}
"""What --tune tries; of SAM it is the radius."""
CHOSEN: dict[str, dict[str, tuple[float, float]]] = {
    "mlp": {
        "SGD": (5e-3, 0.0),
        "SAM": (5e-3, 0.2),
        "l1": (5e-4, 1e-3),
        "DeepHoyer": (5e-3, 1e-5),
        "VAR": (5e-3, 1e-4),
        "VAR, relative": (5e-3, 1e-4),
    }
}
"""Decay and strength of each row, as --tune found them; where a network has none of its own, the MLP's."""


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


NETWORKS = {"mlp": perceptron, "conv": conv, "conv-bn": network}


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


def trained(kind: str, name: str, decay: float, strength: float, seed: int, options: Any) -> tuple[nn.Module, Any]:
    module, program = NETWORKS[kind](seed)
    run = Run(batches(seed), len(X) // BATCH, options.epochs, 0.1 if kind == "conv-bn" else 0.05, decay=decay)
    if options.tune:
        run = Run(_without_a_fifth, run.length, run.epochs, run.rate, decay=decay)
    step = run.sharpness_aware(strength) if name == "SAM" else None
    penalty: Any = None
    if name == "l1":
        penalty = Norms(program, module, strength=strength)
    elif name == "DeepHoyer":
        penalty = Hoyer(program, module, strength=strength)
    elif name.startswith("VAR"):
        penalty = gp.train.VAR(
            program, module, strength=strength, grouped=options.grouped, relative=name.endswith("relative")
        )
    run.train(module, penalty, step=step, what=f"{kind}, {name}, seed {seed}")
    return module, program


def _kept_aside(module: Any) -> float:
    return accuracy(module, X[FIFTH], Y[FIFTH])


FIFTH = torch.arange(len(X)) % 5 == 0


def _without_a_fifth(number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of as many batches, of four fifths of the images, shifted like the others."""
    rng = torch.Generator().manual_seed(number)
    for rows in torch.randperm(len(X), generator=rng)[: len(X) // BATCH * BATCH].reshape(-1, BATCH):
        shift = torch.randint(-1, 2, (2,), generator=rng).tolist()
        rows = rows[~FIFTH[rows]]
        yield torch.roll(X[rows], shift, (2, 3)), Y[rows]


def one(kind: str, name: str, decay: float, strength: float, seed: int, options: Any) -> dict[str, float]:
    module, program = trained(kind, name, decay, strength, seed, options)
    judge = _kept_aside if options.tune else held
    out = {"0": judge(module)}
    if options.grouped:
        for part in CHANNELS:
            learned = gp.train.Penalty(program, module).learned()
            cut = gp.run(f"mask{{channels={1 - part / 100}x floor=0}},propagate", learned).model
            out[str(part)] = judge(recalibrated(cut))
        return out
    return out | {str(part): judge(recalibrated(sparse(module, part / 100))) for part in SPARSITIES}


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


@torch.no_grad()
def recalibrated(module: Any) -> Any:
    """The same weights with BatchNorm's mean and variance measured over the training images."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
    module.train()
    for rows in torch.arange(len(X)).split(BATCH)[:-1] if norms else ():
        module(X[rows])
    return module.eval()


def tune(results: Results, kind: str, options: Any) -> None:
    for name, strengths in STRENGTHS.items():
        found = {
            pair: results.get(f"tune {kind} {name} {pair}", partial(one, kind, name, *pair, 0, options))["95"]
            for pair in product(DECAYS, strengths)
        }
        best = max(found, key=lambda pair: found[pair])
        print(f"| {kind} | {name} | {best[0]:g} | {best[1]:g} | {found[best]:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", choices=tuple(NETWORKS), action="append", help="default: all")
    parser.add_argument("--tune", action="store_true", help="decays and strengths, on seed 0")
    parser.add_argument("--grouped", action="store_true", help="channels instead of single weights")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("demo-out/training"), help="results so far")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.out / f"var-{options.epochs}{'-grouped' * options.grouped}.json")
    for kind in options.network or NETWORKS:
        if options.tune:
            tune(results, kind, options)
            continue
        parts = CHANNELS if options.grouped else SPARSITIES
        print(f"\n| {kind}: removed | decay, strength | 0% | {' | '.join(f'{part}%' for part in parts)} |")
        print(f"|{'---|' * (3 + len(parts))}")
        for name, (decay, strength) in CHOSEN.get(kind, CHOSEN["mlp"]).items():
            key = f"{kind} {name} {decay} {strength}"
            rows = [
                results.get(f"{key} {s}", partial(one, kind, name, decay, strength, s, options)) for s in options.seeds
            ]
            columns = [mean([row[k] for row in rows]) for k in rows[0]]
            print(f"| {name} | {decay:g}, {strength:g} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
