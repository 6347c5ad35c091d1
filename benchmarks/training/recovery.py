"""What a hundred steps regain after a cut: with all parameters, or with few (gp.train.Recover).

    python -m benchmarks.training.recovery [--network resnet56] [--steps 100] [--seeds 0 1 2] [--out DIR]

Needs ../shared/data beside the checkout. Half of the MACs go by L2; AdamW, a one-cycle rate, batches of 64 of 8,192
training images; every row with labels alone, and with the dense network's answers beside them. Interrupted, it goes on
where it stopped.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import graphprune as gp

from .. import cifar
from ..results import Results
from .cifar import batches, images
from .loop import DEVICE, accuracy, clock, mean

ROWS = {
    "all": (None, 1e-3),
    "norm,bias": ("norm,bias", 1e-2),
    "norm,bias,lora": ("norm,bias,lora", 3e-3),
}
"""What is trained, and the highest rate."""


def one(options: argparse.Namespace, name: str, distilled: bool, seed: int) -> dict[str, Any]:
    dense = cifar.network(options.network).to(DEVICE).eval()
    x, y = options.train
    cut = gp.run("group,score,mask{macs=0.5x},propagate", gp.load(dense, (x[:2],))).model.eval()
    before = accuracy(cut, *options.held)
    parts, rate = ROWS[name]
    torch.manual_seed(seed)
    recover = gp.train.Recover(cut, parts) if parts else None
    trained = list((recover or cut).parameters())
    optimizer = torch.optim.AdamW(trained, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=options.steps)
    start, done = clock(), 0
    cut.train()
    while done < options.steps:
        for inputs, labels in batches(x, y, seed, 64)(done):
            if done == options.steps:
                break
            logits = cut(inputs)
            loss = F.cross_entropy(logits, labels)
            if distilled:
                with torch.no_grad():
                    wanted = dense(inputs)
                loss = loss + gp.train.answers(logits, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
    seconds = clock() - start
    if recover:
        recover.merge()
    after, whole = accuracy(cut.eval(), *options.held), accuracy(dense, *options.held)
    share = 100 * (after - before) / (whole - before)
    return {
        "dense": whole,
        "cut": before,
        "tuned": after,
        "regained": share,
        "trained": sum(p.numel() for p in trained),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", choices=("resnet20", "resnet32", "resnet56"), default="resnet56")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--images", type=int, default=8192, help="training images")
    parser.add_argument("--test", type=int, default=2000, help="test images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("demo-out/training"), help="results so far")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.train, options.held = images("train", options.images), images("test", options.test)
    results = Results(options.out / f"recovery-{options.network}-{options.steps}-{options.test}.json")
    print("| trained | parameters | cut | after | of the loss regained, % | seconds |\n|---|---|---|---|---|---|")
    for name in ROWS:
        for distilled in (False, True):
            what = f"{name}{', distilled' * distilled}"
            found = [
                results.get(f"{what} {seed}", partial(one, options, name, distilled, seed)) for seed in options.seeds
            ]
            columns = [mean([f[key] for f in found]) for key in ("cut", "tuned", "regained", "seconds")]
            print(f"| {what} | {found[0]['trained']:,} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
