"""BiP on digits beside one-shot and iterative pruning of the same length, of single weights and of channels.

    python -m benchmarks.training.bip [--only weights] [--keep 0.03] [--seeds 0 1 2] [--out DIR]

All rows start from one trained network and are trained masked. BiP at the rate zero is one-shot magnitude pruning.
Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import graphprune as gp

from ..results import Results
from .digits import held, network, training
from .loop import mean

TUNE, ROUNDS = 8, 4
KEEPS = {"weights": (0.1, 0.03), "channels": (0.25,)}
Options = Mapping[str, Any]
ROWS: Mapping[str, Mapping[str, tuple[int, int, Options]]] = {  # rounds, epochs of each, options of BiP
    "weights": {
        "one-shot, among all weights": (1, TUNE, {"lr": 0.0}),
        "BiP, among all weights": (1, TUNE, {}),
        "BiP, the authors' rate": (1, TUNE, {"lr": 0.1}),
        "BiP, tied, the authors' rate": (1, TUNE, {"lr": 0.1, "tied": True}),
        "one-shot, each tensor": (1, TUNE, {"lr": 0.0, "scope": "tensor"}),
        "BiP, each tensor, the authors' rate": (1, TUNE, {"lr": 0.1, "scope": "tensor"}),
        "iterative, as long": (ROUNDS, TUNE // ROUNDS, {"lr": 0.0}),
        "iterative, four times as long": (ROUNDS, TUNE, {"lr": 0.0}),
    },
    "channels": {
        "one-shot (the default: the mask rests)": (1, TUNE, {}),
        "BiP, the authors' rate": (1, TUNE, {"lr": 0.1, "warm_up": 1.0}),
        "BiP, in the first quarter": (1, TUNE, {"lr": 0.1, "warm_up": 0.25}),
        "BiP, tied, in the first quarter": (1, TUNE, {"lr": 0.1, "warm_up": 0.25, "tied": True}),
        "iterative, as long": (ROUNDS, TUNE // ROUNDS, {}),
    },
}


def one(folder: Path, what: str, name: str, keep: float, seed: int) -> dict[str, float]:
    rounds, epochs, options = ROWS[what][name]
    module, program = network(seed)
    training(seed, 10).train(module, checkpoint=folder / f"digits-dense-{seed}.pt", what=f"dense, seed {seed}")
    seconds, shares = 0.0, list(gp.train.cubic(rounds, keep)) if rounds > 1 else [keep]
    for share in shares:
        run = training(seed, epochs)
        optimizer = run.optimizer(module)
        penalty = gp.train.BiP(
            program,
            module,
            optimizer,
            **{"keep": share, "structured": what == "channels", "total_steps": run.steps, **options},
        )
        first = {k: own.clone() for k, own in penalty.masks().items()}
        seconds += run.train(module, penalty, optimizer, what=f"{name}, seed {seed}")
        swapped = sum(int((first[k] > own).sum()) for k, own in penalty.masks().items())
        left = sum(float(own.sum()) for own in first.values())
        penalty.remove()
    return {"accuracy": held(module), "seconds": seconds, "swapped": 100 * swapped / left}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=tuple(ROWS))
    parser.add_argument("--keep", type=float, action="append", help="only these shares")
    parser.add_argument("--row", action="append", help="only these rows")
    parser.add_argument("--out", type=Path, default=Path("demo-out/training"), help="results so far")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.out / "bip.json")
    for what, keeps in KEEPS.items():
        for keep in (options.keep or keeps) if options.only in (None, what) else ():
            print(f"\n| {keep:g}x of the {what} | accuracy | swapped, % | seconds |\n|---|---|---|---|")
            for name in options.row or ROWS[what]:
                rows = [
                    results.get(f"{what} {keep} {name} {s}", partial(one, options.out, what, name, keep, s))
                    for s in options.seeds
                ]
                columns = [mean([row[key] for row in rows]) for key in ("accuracy", "swapped", "seconds")]
                print(f"| {name} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
