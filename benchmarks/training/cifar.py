"""ResNet-20 on CIFAR-10 at half the MACs: Catalyst, VAR and BiP beside Torch-Pruning's GroupNorm and GReg.

    python -m benchmarks.training.cifar [--epochs 4 --images 2048 --batch 32 --rate 0.005 --test 1000] [--only catalyst]

Needs ../shared/data beside the checkout (weights, images, network classes). Every method starts from the same
trained weights and gets the same number of epochs: the first half with its regulariser or mask, then the cut,
the second half to recover. The channels offered are those inside the blocks, which both tools can follow (the
padded shortcuts freeze the others for Torch-Pruning). A GPU is used where there is one: --epochs 100.
Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import graphprune as gp
from graphprune.costs import macs
from graphprune.facts import Groups, Keep

from .loop import DEVICE, Results, Run, accuracy, mean

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
GROUP = "group{freeze=conv1*|*.conv2|*.conv2.*}"
MASK = "mask{macs=0.5x}"


def images(name: str, count: int, shared: Path) -> tuple[Tensor, Tensor]:
    """``count`` images spread over all classes, normalised, and their labels."""
    from PIL import Image

    with zipfile.ZipFile(shared / f"cifar10_jpeg_{name}.zip") as archive:
        names = sorted(archive.namelist())
        classes = sorted({one.split("/")[0] for one in names})
        chosen = names[:: max(1, len(names) // count)][:count]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(one)))) for one in chosen])
    x = (torch.from_numpy(pixels).float() / 255 - MEAN) / STD
    return x.permute(0, 3, 1, 2).contiguous().to(DEVICE), torch.tensor(
        [classes.index(one.split("/")[0]) for one in chosen], device=DEVICE
    )


def network(shared: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("cifar_nets", shared / "cifar_nets.py")
    assert spec is not None and spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    module: nn.Module = nets.NETS["resnet20"]()
    module.load_state_dict(load_file(shared / "resnet20_cifar10.safetensors"))
    return module.eval().to(DEVICE)


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
    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        x, y = options.train
        half = max(options.epochs // 2, 1)
        self.run = Run(batches(x, y, seed, options.batch), len(x) // options.batch, half, options.rate)
        self.test = options.held
        self.folder = options.out / f"cifar-{options.epochs}-{options.images}"

    def checkpoint(self, name: str) -> Path:
        return self.folder / f"{name}-{self.seed}.pt"

    def program(self, module: nn.Module) -> gp.Program:
        return gp.run(GROUP, gp.load(module, (self.test[0][:2],)))

    def ours(self, name: str) -> dict[str, float]:
        module = network(SHARED)
        program = self.program(module)
        optimizer = self.run.optimizer(module)
        penalty = PENALTIES[name](program, module, optimizer, self.run)
        seconds = self.run.train(
            module, penalty, optimizer, checkpoint=self.checkpoint(name), what=f"{name}, seed {self.seed}"
        )
        learned = penalty.learned()
        cut = gp.run("propagate" if learned.knows(Keep) else f"{MASK},propagate", learned)
        left = macs(cut.graph, cut.host)() / macs(program.graph, program.host)()
        return self.recovered(name, module, cut.model, left, seconds)

    def recovered(self, name: str, module: Any, cut: Any, left: float, seconds: float) -> dict[str, float]:
        found = {"trained": accuracy(module, *self.test), "cut": accuracy(cut, *self.test), "macs": left}
        tune = replace(self.run, batches=batches(*self.options.train, self.seed + 500, self.options.batch))
        seconds += tune.train(cut, checkpoint=self.checkpoint(f"{name}-tuned"), what=f"{name}, fine-tuning")
        return {**found, "tuned": accuracy(cut, *self.test), "seconds": seconds}

    def torch_pruning(self, name: str) -> dict[str, float]:
        import torch_pruning as tp

        module, example = network(SHARED), self.test[0][:2]
        before, _ = tp.utils.count_ops_and_params(module, example)
        ignored = [part for path, part in module.named_modules() if path in ("conv1", "linear") or "conv2" in path]
        kind, importance = {
            "tp-groupnorm": (tp.pruner.GroupNormPruner, tp.importance.GroupMagnitudeImportance(p=2)),
            "tp-greg": (tp.pruner.GrowingRegPruner, tp.importance.GroupMagnitudeImportance(p=2)),
        }[name]
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        pruner = kind(
            module, example, importance=importance, pruning_ratio=0.9, iterative_steps=200, ignored_layers=ignored
        )

        pruner.update_regularizer()
        done, often = 0, max(self.run.steps // 10, 1)

        def step(net: nn.Module, x: Tensor, y: Tensor, penalty: Any) -> None:
            nonlocal done
            done += 1
            self.run.gradients(net, x, y, None)
            pruner.regularize(net)
            if hasattr(pruner, "update_reg") and done % often == 0:
                pruner.update_reg()

        seconds = self.run.train(module, step=step, what=f"{name}, seed {self.seed}")
        trained = copy.deepcopy(module)
        left = 1.0
        while left > 0.5:
            pruner.step()
            left = tp.utils.count_ops_and_params(module, example)[0] / before
        return self.recovered(name, trained, module, left, seconds)


def _shares(program: gp.Program) -> dict[str, float]:
    """How much of every group half of the MACs allows, the same share of each."""
    known = gp.run(f"score,{MASK}", program)
    return {group.name: len(known.fact(Keep).keep[group.name]) / group.size for group in known.fact(Groups)}


Make = Callable[[gp.Program, nn.Module, torch.optim.Optimizer, Run], Any]
PENALTIES: dict[str, Make] = {
    "l2": lambda program, module, optimizer, run: gp.train.Penalty(program, module, optimizer, over="all"),
    "catalyst": lambda program, module, optimizer, run: gp.train.Catalyst(
        program,
        module,
        optimizer,
        keep=_shares(program),
        opening=run.steps // 3,
        strength=CLOSE / (run.steps * run.rate * 5),
    ),
    "var": lambda program, module, optimizer, run: gp.train.VAR(program, module, optimizer, strength=1e-4),
    "bip": lambda program, module, optimizer, run: gp.train.BiP(
        program, module, optimizer, keep=_shares(program), total_steps=run.steps
    ),
}
CLOSE = 12.0  # the time that Catalyst's flow gets, in units of 1/lambda: half as one-cycle rates average half


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=4, help="in all, half before the cut and half after")
    parser.add_argument("--images", type=int, default=50000, help="training images")
    parser.add_argument("--test", type=int, default=10000, help="test images")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.02, help="highest learning rate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    names = [*PENALTIES, "tp-groupnorm", "tp-greg"]
    parser.add_argument("--only", choices=names, action="append")
    parser.add_argument("--out", type=Path, default=Path("demo-out/training"), help="results and checkpoints")
    options = parser.parse_args()
    if not SHARED.is_dir():
        parser.error(f"{SHARED} is not there")
    options.train, options.held = images("train", options.images, SHARED), images("test", options.test, SHARED)
    results = Results(options.out / f"cifar-{options.epochs}-{options.images}-{options.test}.json")
    dense = results.get("dense", lambda: accuracy(network(SHARED), *options.held))
    print(f"\nResNet-20, dense: {dense:.1f}\n")
    print("| | trained | cut | fine-tuned | MACs | seconds |\n|---|---|---|---|---|---|")
    for name in options.only or names:
        rows = []
        for seed in options.seeds:
            experiment = Experiment(options, seed)
            work = experiment.ours if name in PENALTIES else experiment.torch_pruning
            rows.append(results.get(f"{name} {seed}", lambda work=work, name=name: work(name)))
        columns = [mean([row[key] for row in rows]) for key in ("trained", "cut", "tuned")]
        print(f"| {name} | {' | '.join(columns)} | {rows[0]['macs']:.2f}x | {rows[0]['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
