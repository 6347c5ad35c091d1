"""Catalyst beside what it competes with, at equal epochs from one trained network: digits at a fifth of the MACs, and a
perceptron (64-256-256-10, no norm) at an eighth of its hidden channels.

    python -m benchmarks.training.rivals [--setting mlp] [--epochs 20] [--seeds 0 1 2] [--aside] [--out DIR]

All train for the first half with their regulariser, are cut, and train on for the second at rates that start anew,
but for one-shot pruning, which is cut at the start, and Catalyst, which trains through all epochs and is cut at the
end; its rows "cut at half" go the way of the others. --aside measures on images that no choice was made by, a fifth of
the training images, which are then not trained on. Interrupted, it goes on where it stopped.
ResNet-20 is in benchmarks.training.cifar. The last row of the perceptron's table begins at weights that compute the
same, of norms that are drawn: what magnitude does to fate is seen apart from what went into it.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import graphprune as gp
from graphprune.ir.facts import Groups, Keep, Scores

from ..results import Results
from .digits import BATCH, DIGITS, X, correlation, network, shifted
from .loop import Images, Run, accuracy, mean

MASKS = {"digits": "mask{macs=0.2x}", "mlp": "mask{channels=0.125x}"}
ROWS = (
    *("one-shot", "plain", "GroupLasso", "GReg", "Torch-Pruning, GroupNorm"),
    *("Catalyst", "Catalyst, no lean", "Catalyst, leaning on L2"),
    *("Catalyst, cut at half", "Catalyst, no lean, cut at half"),
    "Catalyst, no lean, norms at random",
)


def perceptron(seed: int) -> tuple[nn.Module, gp.Program]:
    torch.manual_seed(seed)
    wide = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    module = nn.Sequential(nn.Flatten(), *wide, nn.Linear(256, 10))
    return module, gp.load(module, (X[:2],))


@torch.no_grad()
def rescaled(module: Any, seed: int) -> None:
    """Each hidden channel of the perceptron times a number between a half and two, what reads it divided by that."""
    rng = torch.Generator().manual_seed(seed)
    layers = [part for part in module if isinstance(part, nn.Linear)]
    for layer, reader in pairwise(layers):
        scale = 2 ** (2 * torch.rand(layer.out_features, generator=rng) - 1)
        layer.weight.mul_(scale[:, None])
        layer.bias.mul_(scale)
        reader.weight.div_(scale)


def run_of(seed: int, epochs: int, images: Images = DIGITS) -> Run:
    return Run(shifted(images.x, images.y, seed, BATCH), len(images.x) // BATCH, epochs)


class Experiment:
    """One seed; ``by(name)`` trains, cuts, trains on and measures."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        self.images = DIGITS.aside(seed % 5) if options.aside else DIGITS
        self.module: nn.Module
        self.program: gp.Program
        self.module, self.program = (network if options.setting == "digits" else perceptron)(seed)
        state = options.out / f"rivals-{options.setting}{'-aside' * options.aside}-{seed}.pt"
        self.run(0, 10).train(self.module, checkpoint=state, what=f"dense, seed {seed}")

    def run(self, more: int, epochs: int) -> Run:
        """With batches of its own, by a number added to the seed."""
        return run_of(self.seed + more, epochs, self.images)

    def worth(self, module: Any) -> float:
        return accuracy(module, self.images.x_held, self.images.y_held)

    def by(self, name: str) -> dict[str, Any]:
        if name == "one-shot":
            return self.one_shot()
        return self.torch_pruning() if name.startswith("Torch-Pruning") else self.ours(name)

    def one_shot(self) -> dict[str, Any]:
        cut = gp.run(f"group,score,{MASKS[self.options.setting]},propagate", self.program).model
        found = {"trained": self.worth(self.module), "cut": self.worth(cut)}
        self.run(50, self.options.epochs).train(cut, what=f"one-shot, seed {self.seed}")
        return {**found, "tuned": self.worth(cut)}

    def ours(self, name: str) -> dict[str, Any]:
        module, program, mask = self.module, self.program, MASKS[self.options.setting]
        if name.endswith("at random"):
            rescaled(module, self.seed)
        known = gp.run(f"group,score,{mask}", program)
        start = gp.train.Penalty(program, module, over="writers").channels.norms().detach()
        whole = name.startswith("Catalyst") and not name.endswith("cut at half")
        run = self.run(50, self.options.epochs if whole else self.options.epochs // 2)
        optimizer = run.optimizer(module)
        penalty = _penalty(name, known, program, module, optimizer, run)
        run.train(module, penalty, optimizer, what=f"{name}, seed {self.seed}")
        learned = penalty.learned()
        cut = gp.run("propagate" if learned.knows(Keep) else f"{mask},propagate", learned)
        found = {"trained": self.worth(module), "cut": self.worth(cut.model)}
        with torch.no_grad():
            a, b = module(self.images.x_held), cut.model(self.images.x_held)
        found["moved"] = float((a - b).abs().max() / a.abs().max())
        found["correlation"] = correlation(start.numpy(), cut.plan["steps"][-1]["keep"], penalty)
        if not whole:
            rest = self.run(100, self.options.epochs - run.epochs)
            rest.train(cut.model, what=f"{name}, seed {self.seed}, fine-tuning")
        return {**found, "tuned": self.worth(cut.model)}

    def torch_pruning(self) -> dict[str, Any]:
        """With the strength of its own CIFAR-10 scripts."""
        import torch_pruning as tp

        module, run = self.module, self.run(50, self.options.epochs // 2)
        module.requires_grad_(True)
        whole, _ = tp.utils.count_ops_and_params(module, X[:2])
        last = [part for part in module.modules() if isinstance(part, nn.Linear)][-1:]
        mlp = self.options.setting == "mlp"
        pruner = tp.pruner.GroupNormPruner(
            module,
            X[:2],
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.875 if mlp else 0.9,
            iterative_steps=1 if mlp else 100,
            ignored_layers=last,
            reg=5e-4,
        )

        def step(net: nn.Module, *given: Any) -> None:
            run.gradients(net, *given)
            pruner.regularize(net)

        run.train(module, step=step, what=f"Torch-Pruning, seed {self.seed}")
        found = {"trained": self.worth(module)}
        if mlp:
            pruner.step()
        while not mlp and tp.utils.count_ops_and_params(module, X[:2])[0] > 0.2 * whole:
            pruner.step()
        found["cut"] = self.worth(module)
        rest = self.run(100, self.options.epochs - run.epochs)
        rest.train(module, what=f"Torch-Pruning, seed {self.seed}, fine-tuning")
        return {**found, "tuned": self.worth(module)}


def _penalty(name: str, known: gp.Program, program: gp.Program, module: nn.Module, optimizer: Any, run: Run) -> Any:
    keep = {g.name: len(known.fact(Keep).keep[g.name]) / g.size for g in known.fact(Groups)}
    if name == "plain":
        return gp.train.Penalty(program, module, over="all")
    if name == "GroupLasso":
        return gp.train.GroupLasso(program, module, strength=5e-4, over="all")
    if name == "GReg":
        return gp.train.GrowingRegularization(known, module, strength=1 / run.steps)
    lean: Any = None if "no lean" in name else known.fact(Scores) if name.endswith("L2") else "taylor"
    return gp.train.Catalyst(program, module, optimizer, keep=keep, total_steps=run.steps, lean=lean)


def _by(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    return Experiment(options, seed).by(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--setting", choices=tuple(MASKS), action="append", help="default: all")
    parser.add_argument("--epochs", type=int, default=20, help="in all")
    parser.add_argument("--only", choices=ROWS, action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--aside", action="store_true", help="measure on a fifth of the training images, by the seed")
    parser.add_argument("--out", type=Path, default=Path("demo-out/training"), help="results so far")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.out / f"rivals-{options.epochs}{'-aside' * options.aside}.json")
    for setting in options.setting or MASKS:
        options.setting = setting
        print(f"\n{setting}, {options.epochs} epochs\n")
        print("| | trained | cut | in the end | outputs moved, worst | correlation with the norm at the start |")
        print("|---|---|---|---|---|---|")
        for name in options.only or ROWS[: None if setting == "mlp" else -1]:
            rows = [results.get(f"{setting} {name} {s}", partial(_by, options, name, s)) for s in options.seeds]
            columns = [mean([row[key] for row in rows]) for key in ("trained", "cut", "tuned")]
            moved = f"{max(row['moved'] for row in rows):.1e}" if "moved" in rows[0] else ""
            related = mean([row["correlation"] for row in rows], 2) if "correlation" in rows[0] else ""
            print(f"| {name} | {' | '.join(columns)} | {moved} | {related} |", flush=True)


if __name__ == "__main__":
    main()
