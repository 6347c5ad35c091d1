"""Catalyst on handwritten digits, beside a group lasso: what the cut changes, and the margin. Half a minute a seed.

    python -m benchmarks.training.digits [--seeds 0 1 2] [--out DIR]

Interrupted, it goes on where it stopped; the tables are Markdown, for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import graphprune as gp
from examples.digits import DigitsNet, digits

from ..results import Results
from .loop import Images, Run, accuracy, mean

WIDTH, BATCH, EPOCHS = 16, 64, 20
X, Y, X_HELD, Y_HELD = digits()
DIGITS = Images(X, Y, X_HELD, Y_HELD)


def shifted(x: Tensor, y: Tensor, seed: int, size: int) -> Any:
    """Images moved by up to a pixel, one way for all of a batch."""

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = torch.Generator().manual_seed(1000 * seed + number)
        for rows in torch.randperm(len(x), generator=rng)[: len(x) // size * size].reshape(-1, size):
            shift = torch.randint(-1, 2, (2,), generator=rng).tolist()
            yield torch.roll(x[rows], shift, (2, 3)), y[rows]

    return epoch


def batches(seed: int) -> Any:
    return shifted(X, Y, seed, BATCH)


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
    """Half of every group goes, decided in training: Catalyst without a lean, and a group lasso cut by its norms. Both
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
            penalty: Any = gp.train.Catalyst(program, module, optimizer, keep=0.5, total_steps=run.steps, lean=None)
        else:
            penalty = gp.train.GroupLasso(program, module, strength=5e-4, over="all")
        start = penalty.channels.norms().detach().clone()
        writers = gp.train.Penalty(program, module, over="writers").channels.norms().detach().clone()
        run.train(module, penalty, optimizer, what=f"{name}, seed {seed}")
        learned = penalty.learned()
        cut = gp.run("propagate" if name == "catalyst" else "mask{channels=0.5x},propagate", learned)
        with torch.no_grad():
            before, after = module(X_HELD), cut.model(X_HELD)
        out[name] = {
            "dense": held(module),
            "pruned": held(cut.model),
            "moved": float((before - after).abs().max() / before.abs().max()),
            "kept": sum(map(len, cut.plan["steps"][-1]["keep"].values())) / penalty.channels.total,
            "correlation": correlation(writers.numpy(), cut.plan["steps"][-1]["keep"], penalty),
            "norms": penalty.channels.norms().tolist(),
            "start": start.tolist(),
            "auxiliary": penalty.auxiliary.tolist() if name == "catalyst" else None,
        }
    return out


def _kept(keep: dict[str, list[int]], penalty: Any) -> np.ndarray:
    groups = penalty.channels.groups
    return np.concatenate([np.isin(np.arange(group.size), keep[group.name]) for group in groups]).astype(float)


def correlation(norms: np.ndarray, keep: dict[str, list[int]], penalty: Any) -> float:
    """Spearman's, of norm and survival, within groups (norms of different groups do not compare), pooled."""
    kept = _kept(keep, penalty)
    a, b, at = list[float](), list[float](), 0
    for group in penalty.channels.groups:
        mine = slice(at, at + group.size)
        ranks = np.argsort(np.argsort(norms[mine])) / (group.size - 1) - 0.5
        a, b, at = [*a, *ranks], [*b, *(kept[mine] - kept[mine].mean())], at + group.size
    return float(np.corrcoef(a, b)[0, 1])


# ---- tables ------------------------------------------------------------------------------------------


def table(results: Results, seeds: list[int], out: Path) -> None:
    rows = [results.get(f"catalyst, flow {seed}", partial(catalyst, seed)) for seed in seeds]
    print("\n| | before the cut | after | outputs moved (relative, worst) | channels kept | rank correlation |")
    print("|---|---|---|---|---|---|")
    for name in ("catalyst", "lasso"):
        every = [row[name] for row in rows]
        related = mean([one["correlation"] for one in every], 2)
        print(
            f"| {name} | {mean([e['dense'] for e in every])} | {mean([e['pruned'] for e in every])} "
            f"| {max(e['moved'] for e in every):.1e} | {100 * every[0]['kept']:.0f}% "
            f"| {related} |"
        )
    draw(rows[0]["catalyst"], out / "catalyst.png")


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
    parser.add_argument("--out", type=Path, default=Path("demo-out/training"), help="results so far, and the picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table(Results(options.out / "digits.json"), options.seeds, options.out)


if __name__ == "__main__":
    main()
