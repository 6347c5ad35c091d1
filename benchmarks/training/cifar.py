"""ResNet-20 on CIFAR-10 at half the MACs: Catalyst, VAR and BiP beside Torch-Pruning's GroupNorm and GReg.

    python -m benchmarks.training.cifar [--epochs 4 --images 8000] [--seeds 0 1 2] [--only catalyst]

Needs ../shared/data beside the checkout (weights, images, network classes). Every method starts from the same
trained weights and gets the same number of epochs: the first half with its regulariser or mask, then the cut,
the second half to recover; one-shot magnitude pruning has them all after the cut. The channels offered are those
inside the blocks, which both tools can follow (the padded shortcuts freeze the others for Torch-Pruning), the same
share of every layer. A GPU is used where there is one: --epochs 100 --images 50000. Interrupted, it goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.ir.facts import Groups, Keep, Scores

from .. import cifar
from ..results import Results
from .loop import DEVICE, Run, accuracy, mean, share

GROUP = "group{only=*.conv1}"
MASK = "mask{macs=0.5x}"


def images(part: str, count: int) -> tuple[Tensor, Tensor]:
    """``count`` images spread over all classes, normalised, and their labels."""
    pixels, labels = cifar.images(part)
    chosen = np.linspace(0, len(pixels), count, endpoint=False).astype(int)
    x, y = torch.from_numpy(cifar.normalised(pixels[chosen])), torch.from_numpy(labels[chosen])
    return x.to(DEVICE, memory_format=torch.channels_last), y.to(DEVICE)


def network() -> nn.Module:
    return cifar.network("resnet20").to(DEVICE)


def batches(x: Tensor, y: Tensor, seed: int, size: int) -> Any:
    """Random crops of the padded image and flips, one for all of a batch."""

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = torch.Generator().manual_seed(1000 * seed + number)
        for rows in torch.randperm(len(x), generator=rng)[: len(x) // size * size].reshape(-1, size):
            batch = nn.functional.pad(x[rows.to(x.device)], (4, 4, 4, 4))
            top, left, flip = torch.randint(0, 9, (3,), generator=rng).tolist()
            batch = batch[:, :, top : top + 32, left : left + 32]
            yield (batch.flip(3) if flip % 2 else batch), y[rows.to(y.device)]

    return epoch


class Experiment:
    """One seed; ``by(name)`` trains, cuts to half the MACs, fine-tunes and measures."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        x, y = options.train
        half = max(options.epochs // 2, 1)
        self.run = Run(batches(x, y, seed, options.batch), len(x) // options.batch, half, options.rate)
        self.test = options.held
        self.folder = options.out / f"cifar-{options.epochs}-{options.images}"

    def by(self, name: str) -> dict[str, float]:
        if name == "one-shot":
            return self.one_shot()
        return self.ours(name) if name in PENALTIES else self.torch_pruning(name)

    def one_shot(self) -> dict[str, float]:
        module = network()
        program = self.program(module)
        cut = gp.run(f"score,{MASK},propagate", program)
        return self.recovered("one-shot", module, cut.model, share(cut, program), epochs=self.options.epochs)

    def ours(self, name: str) -> dict[str, float]:
        module = network()
        program = self.program(module)
        optimizer = self.run.optimizer(module)
        penalty = PENALTIES[name](program, module, optimizer, self.run)
        seconds = self.run.train(module, penalty, optimizer, checkpoint=self.checkpoint(name), what=self.what(name))
        learned = penalty.learned()
        cut = gp.run("propagate" if learned.knows(Keep) else f"{MASK},propagate", learned)
        return self.recovered(name, module, cut.model, share(cut, program), seconds)

    def torch_pruning(self, name: str) -> dict[str, float]:
        """With the strengths of its own CIFAR-10 scripts; GReg's grows as often as in their 100 epochs."""
        import torch_pruning as tp

        module, example = network(), self.test[0][:2]
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        before, _ = tp.utils.count_ops_and_params(module, example)
        kind, options = {
            "tp-groupnorm": (tp.pruner.GroupNormPruner, {"reg": 5e-4}),
            "tp-greg": (tp.pruner.GrowingRegPruner, {"reg": 5e-4, "delta_reg": 1e-4}),
        }[name]
        pruner = kind(
            module,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.9,
            iterative_steps=200,
            ignored_layers=[m for path, m in module.named_modules() if path in ("conv1", "linear") or "conv2" in path],
            **options,
        )
        done = 0

        def step(net: nn.Module, x: Tensor, y: Tensor, penalty: Any) -> None:
            nonlocal done
            done += 1
            self.run.gradients(net, x, y, None)
            pruner.regularize(net)
            if name == "tp-greg" and done % max(self.run.steps // 100, 1) == 0:
                pruner.update_reg()

        seconds = self.run.train(module, step=step, what=self.what(name))
        trained = copy.deepcopy(module)
        left = 1.0
        while left > 0.5:
            pruner.step()
            left = tp.utils.count_ops_and_params(module, example)[0] / before
        return self.recovered(name, trained, module, left, seconds)

    def recovered(
        self, name: str, trained: Any, cut: Any, left: float, seconds: float = 0.0, epochs: int | None = None
    ) -> dict[str, float]:
        """Fine-tune and measure."""
        found = {"trained": accuracy(trained, *self.test), "cut": accuracy(cut, *self.test), "macs": left}
        x, y = self.options.train
        again = batches(x, y, self.seed + 500, self.options.batch)
        tune = replace(self.run, batches=again, epochs=epochs or self.run.epochs)
        seconds += tune.train(cut, checkpoint=self.checkpoint(f"{name}-tuned"), what=f"{self.what(name)}, fine-tuning")
        return {**found, "tuned": accuracy(cut, *self.test), "seconds": seconds}

    def program(self, module: nn.Module) -> gp.Program:
        return gp.run(GROUP, gp.load(module, (self.test[0][:2],)))

    def checkpoint(self, name: str) -> Path:
        file: Path = self.folder / f"{name}-{self.seed}.pt"
        return file

    def what(self, name: str) -> str:
        return f"{name}, seed {self.seed}"


def _shares(program: gp.Program) -> dict[str, float]:
    """How much of every group half of the MACs allows, the same share of each."""
    known = gp.run(f"score,{MASK}", program)
    return {group.name: len(known.fact(Keep).keep[group.name]) / group.size for group in known.fact(Groups)}


Make = Callable[[gp.Program, nn.Module, torch.optim.Optimizer, Run], Any]
PENALTIES: dict[str, Make] = {
    "plain": lambda program, module, optimizer, run: gp.train.Penalty(program, module, optimizer, over="all"),
    "lasso": lambda program, module, optimizer, run: gp.train.GroupLasso(
        program, module, optimizer, strength=5e-4, over="all"
    ),
    "greg": lambda program, module, optimizer, run: gp.train.GrowingRegularization(
        gp.run(f"score,{MASK}", program), module, optimizer, strength=1 / run.steps
    ),
    "catalyst": lambda program, module, optimizer, run: gp.train.Catalyst(
        program, module, optimizer, keep=_shares(program), total_steps=run.steps
    ),
    "catalyst-no-lean": lambda program, module, optimizer, run: gp.train.Catalyst(
        program, module, optimizer, keep=_shares(program), total_steps=run.steps, lean=None
    ),
    "catalyst-l2": lambda program, module, optimizer, run: gp.train.Catalyst(
        program,
        module,
        optimizer,
        keep=_shares(program),
        total_steps=run.steps,
        lean=gp.run("score", program).fact(Scores),
    ),
    "var": lambda program, module, optimizer, run: gp.train.VAR(program, module, optimizer, strength=1e-4),
    "bip": lambda program, module, optimizer, run: gp.train.BiP(
        program, module, optimizer, keep=_shares(program), total_steps=run.steps
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=4, help="in all, half before the cut and half after")
    parser.add_argument("--images", type=int, default=8000, help="training images")
    parser.add_argument("--test", type=int, default=10000, help="test images")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.005, help="highest learning rate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    names = ["one-shot", *PENALTIES, "tp-groupnorm", "tp-greg"]
    parser.add_argument("--only", choices=names, action="append")
    parser.add_argument("--out", type=Path, default=Path("demo-out/training"), help="results and checkpoints")
    options = parser.parse_args()
    if not cifar.DATA.is_dir():
        parser.error(f"{cifar.DATA} is not there")
    options.train, options.held = images("train", options.images), images("test", options.test)
    results = Results(options.out / f"cifar-{options.epochs}-{options.images}-{options.test}.json")
    dense = results.get("dense", lambda: accuracy(network(), *options.held))
    print(f"\nResNet-20, dense: {dense:.1f}\n")
    print("| | trained | cut | fine-tuned | MACs | seconds |\n|---|---|---|---|---|---|")
    for name in options.only or names:
        rows = [results.get(f"{name} {seed}", partial(Experiment(options, seed).by, name)) for seed in options.seeds]
        columns = [mean([row[key] for row in rows]) for key in ("trained", "cut", "tuned")]
        print(f"| {name} | {' | '.join(columns)} | {rows[0]['macs']:.2f}x | {rows[0]['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
