"""Catalyst, VAR and BiP on handwritten digits, each beside what it competes with. About two minutes a seed.

    python -m benchmarks.training.digits [--seeds 0 1 2] [--only catalyst] [--out DIR]

Interrupted, it goes on where it stopped; the tables are Markdown, for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import graphprune as gp
from examples.digits import DigitsNet, digits
from graphprune.ir.facts import Groups

from ..results import Results
from .loop import Run, accuracy, mean

WIDTH, BATCH, EPOCHS = 16, 64, 20
SPARSITIES = (50, 70, 80, 90)
X, Y, X_HELD, Y_HELD = digits()


def batches(seed: int) -> Any:
    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = torch.Generator().manual_seed(1000 * seed + number)
        for rows in torch.randperm(len(X), generator=rng)[: len(X) // BATCH * BATCH].reshape(-1, BATCH):
            shift = torch.randint(-1, 2, (2,), generator=rng).tolist()
            yield torch.roll(X[rows], shift, (2, 3)), Y[rows]

    return epoch


def network(seed: int) -> tuple[nn.Module, Any]:
    torch.manual_seed(seed)
    module = DigitsNet(WIDTH)
    return module, gp.load(module, (X[:2],))


def training(seed: int, epochs: int = EPOCHS, rate: float = 0.1) -> Run:
    return Run(batches(seed), len(X) // BATCH, epochs, rate)


def held(module: Any) -> float:
    return accuracy(module, X_HELD, Y_HELD)


# ---- Catalyst ----------------------------------------------------------------------------------------


def catalyst(seed: int) -> dict[str, Any]:
    """Half of every group goes, decided in training: Catalyst, and a group lasso cut by its norms. Both
    start from the same trained network, whose norms mean something."""
    out = {}
    module, program = network(seed)
    training(seed, 10).train(module, what=f"dense, seed {seed}")
    dense = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for name in ("catalyst", "lasso"):
        module.load_state_dict(dense)
        run = training(seed)
        optimizer = run.optimizer(module)
        if name == "catalyst":
            penalty: Any = gp.train.Catalyst(program, module, optimizer, keep=0.5, total_steps=run.steps)
        else:
            penalty = gp.train.GroupLasso(program, module, strength=5e-4, over="all")
        start = penalty.channels.norms().detach().clone()
        writers = gp.train.Penalty(program, module, over="writers").channels.norms().detach().clone()
        run.train(module, penalty, optimizer, what=f"{name}, seed {seed}")
        learned = penalty.learned()
        cut = gp.run("propagate" if name == "catalyst" else "mask{channels=0.5x},propagate", learned)
        with torch.no_grad():
            before, after = module(X_HELD), cut.model(X_HELD)
        kept = _kept(cut.plan["steps"][-1]["keep"], penalty)
        out[name] = {
            "dense": held(module),
            "pruned": held(cut.model),
            "moved": float((before - after).abs().max() / before.abs().max()),
            "kept": sum(map(len, cut.plan["steps"][-1]["keep"].values())) / penalty.channels.total,
            "correlation": _rank_correlation(writers.numpy(), kept, penalty),
            "norms": penalty.channels.norms().tolist(),
            "start": start.tolist(),
            "auxiliary": penalty.auxiliary.tolist() if name == "catalyst" else None,
        }
    return out


def _kept(keep: dict[str, list[int]], penalty: Any) -> np.ndarray:
    groups = penalty.channels.groups
    return np.concatenate([np.isin(np.arange(group.size), keep[group.name]) for group in groups]).astype(float)


def _rank_correlation(norms: np.ndarray, kept: np.ndarray, penalty: Any) -> float:
    """Spearman's, within groups (norms of different groups do not compare), pooled."""
    a, b, at = list[float](), list[float](), 0
    for group in penalty.channels.groups:
        mine = slice(at, at + group.size)
        ranks = np.argsort(np.argsort(norms[mine])) / (group.size - 1) - 0.5
        a, b, at = [*a, *ranks], [*b, *(kept[mine] - kept[mine].mean())], at + group.size
    return float(np.corrcoef(a, b)[0, 1])


# ---- VAR ---------------------------------------------------------------------------------------------


def var(seed: int) -> dict[str, Any]:
    """One-shot magnitude pruning of single weights, without a step of training after it; only the
    statistics of the norms are taken anew, for all alike."""
    out = {}
    for name in ("SGD", "SAM", "VAR"):
        module, program = network(seed)
        run = training(seed)
        penalty = gp.train.VAR(program, module, strength=VAR_STRENGTH, grouped=False) if name == "VAR" else None
        step = run.sharpness_aware(0.05) if name == "SAM" else None
        run.train(module, penalty, step=step, what=f"{name}, seed {seed}")
        out[name] = {"0": held(module)}
        for sparsity in SPARSITIES:
            out[name][str(sparsity)] = held(recalibrated(sparse(module, sparsity / 100)))
    return out


VAR_STRENGTH = 1e-4  # of 0, 1e-7, ..., 2e-2 the best on seed 0 at 70 and 80%


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
def recalibrated(module: nn.Module) -> nn.Module:
    """The same weights with BatchNorm's mean and variance measured over the training images."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
    module.train()
    for rows in torch.arange(len(X)).split(BATCH)[:-1]:
        module(X[rows])
    return module.eval()


# ---- BiP ---------------------------------------------------------------------------------------------

ROUNDS = 4
TUNE = 8  # epochs of fine-tuning, and of BiP


def bip(seed: int, keep: float) -> dict[str, Any]:
    """Structured: ``keep`` of every group's channels remains. All start from the same trained network."""
    module, program = network(seed)
    training(seed, 10).train(module, what=f"dense, seed {seed}")
    dense = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    out: dict[str, Any] = {"dense": {"accuracy": held(module), "seconds": 0.0}}

    cut = gp.run(f"group,score,mask{{channels={keep}x floor=0}},propagate", program).model
    out["one-shot"] = {"accuracy": held(cut), "seconds": 0.0}
    seconds = training(seed, TUNE).train(cut, what=f"one-shot + fine-tune, seed {seed}")
    out[f"one-shot, {TUNE} epochs"] = {"accuracy": held(cut), "seconds": seconds}

    module.load_state_dict(dense)
    for epochs in (TUNE, TUNE // ROUNDS):
        model, seconds = gp.load(module, (X[:2],)), 0.0
        for number in range(1, ROUNDS + 1):  # the same share of what is left, each round
            model = gp.run(f"group,score,mask{{channels={keep ** (1 / ROUNDS):.6f}x floor=0}},propagate", model)
            what = f"iterative {number}/{ROUNDS}, seed {seed}"
            seconds += training(seed, epochs).train(model.model, what=what)
        left = sum(group.size for group in gp.run("group", model).fact(Groups))
        name = f"iterative magnitude, {ROUNDS} x {epochs} epochs"
        out[name] = {"accuracy": held(model.model), "seconds": seconds, "channels": left}

    module.load_state_dict(dense)
    run = training(seed, TUNE)
    optimizer = run.optimizer(module)
    penalty = gp.train.BiP(program, module, optimizer, keep=keep, total_steps=run.steps)
    counts, first = set(), penalty.chosen()

    def step(*given: Any) -> None:
        counts.add(int(penalty.chosen().sum()))
        run.gradients(*given)

    seconds = run.train(module, penalty, optimizer, step=step, what=f"BiP, seed {seed}")
    done = gp.run("propagate", penalty.learned())
    channels = sum(len(own) for own in done.plan["steps"][-1]["keep"].values())
    out[f"BiP, {TUNE} epochs"] = {
        "accuracy": held(done.model),
        "seconds": seconds,
        "channels": channels,
        "counts": sorted(counts),
        "moved": int((first & ~penalty.chosen()).sum()),
    }
    return out


def bip_weights(seed: int, keep: float) -> dict[str, Any]:
    """``keep`` of the single weights of every tensor remains. BiP at the rate zero is one-shot magnitude
    pruning, trained masked."""
    module, program = network(seed)
    training(seed, 10).train(module, what=f"dense, seed {seed}")
    dense = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    out: dict[str, Any] = {"dense": {"accuracy": held(module), "seconds": 0.0}}
    shares = list(gp.train.cubic(ROUNDS, keep))
    for name, rounds, epochs, lr in (
        (f"one-shot, {TUNE} epochs", [keep], TUNE, 0.0),
        (f"BiP, {TUNE} epochs", [keep], TUNE, 0.1),
        (f"iterative magnitude, {ROUNDS} x {TUNE // ROUNDS} epochs", shares, TUNE // ROUNDS, 0.0),
        (f"iterative magnitude, {ROUNDS} x {TUNE} epochs", shares, TUNE, 0.0),
    ):
        module.load_state_dict(dense)
        seconds = 0.0
        for share in rounds:
            run = training(seed, epochs)
            optimizer = run.optimizer(module)
            penalty = gp.train.BiP(
                program, module, optimizer, keep=share, structured=False, lr=lr, total_steps=run.steps
            )
            first = penalty.masks()
            seconds += run.train(module, penalty, optimizer, what=f"{name}, seed {seed}")
            moved = sum(int((first[k] > own).sum()) for k, own in penalty.masks().items())
            penalty.remove()
        out[name] = {"accuracy": held(module), "seconds": seconds, "moved": moved}
    return out


# ---- tables ------------------------------------------------------------------------------------------


def table(results: Results, seeds: list[int], only: str | None, out: Path) -> None:
    if only in (None, "catalyst"):
        rows = [results.get(f"catalyst, trained {seed}", partial(catalyst, seed)) for seed in seeds]
        print("\n| | before the cut | after | outputs moved (relative, worst) | channels kept | rank correlation |")
        print("|---|---|---|---|---|---|")
        for name in ("catalyst", "lasso"):
            every = [row[name] for row in rows]
            correlation = mean([one["correlation"] for one in every], 2)
            print(
                f"| {name} | {mean([e['dense'] for e in every])} | {mean([e['pruned'] for e in every])} "
                f"| {max(e['moved'] for e in every):.1e} | {100 * every[0]['kept']:.0f}% "
                f"| {correlation} |"
            )
        draw(rows[0]["catalyst"], out / "catalyst.png")
    if only in (None, "var"):
        rows = [results.get(f"var {seed}", partial(var, seed)) for seed in seeds]
        print(f"\n| weights removed | 0% | {' | '.join(f'{s}%' for s in SPARSITIES)} |\n|---|---|---|---|---|---|")
        for name in rows[0]:
            print(f"| {name} | {' | '.join(mean([row[name][k] for row in rows]) for k in rows[0][name])} |")
    if only in (None, "bip"):
        for what, work, keep in (
            ("weights", bip_weights, 0.1),
            ("weights", bip_weights, 0.03),
            ("channels", bip, 0.25),
        ):
            rows = [results.get(f"bip {what} {keep} {seed}", partial(work, seed, keep)) for seed in seeds]
            print(f"\n| {keep:g}x of the {what} | accuracy | seconds | swapped |\n|---|---|---|---|")
            for name in rows[0]:
                found = [row[name] for row in rows]
                columns = [mean([f[key] for f in found]) for key in ("accuracy", "seconds")]
                moved = mean([f["moved"] for f in found]) if "moved" in found[0] else ""
                print(f"| {name} | {' | '.join(columns)} | {moved} |")


def draw(found: dict[str, Any], path: Path) -> None:
    """|D_i| against ||F_i||, both as a share of the norm at the start, and the margin between."""
    from matplotlib.figure import Figure

    start = np.array(found["start"])
    norms, auxiliary = np.array(found["norms"]) / start, np.array(found["auxiliary"]) / start
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.scatter(norms, auxiliary, s=12, alpha=0.6)
    top = max(norms.max(), auxiliary.max()) * 1.05
    left.plot([0, top], [0, top], color="0.6", lw=1, ls="--")
    left.set(xlabel="norm of the channel, to its start", ylabel="auxiliary parameter, to the same", title="two fates")
    right.hist(norms / (norms + auxiliary), bins=40, range=(0, 1), color="0.3")
    right.axvline(0.5, color="0.6", lw=1, ls="--")
    right.set(xlabel="norm / (norm + auxiliary)", ylabel="channels", title="the margin")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=("catalyst", "var", "bip"))
    parser.add_argument("--out", type=Path, default=Path("demo-out/training"), help="results so far, and the picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table(Results(options.out / "digits.json"), options.seeds, options.only, options.out)


if __name__ == "__main__":
    main()
