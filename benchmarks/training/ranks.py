"""Ranks chosen in training: TRP and ACIP beside ranks cut at the start, on the perceptron of `rivals`.

    python -m benchmarks.training.ranks [--epochs 20] [--seeds 0 1 2] [--out DIR]

From one trained network, all train for as many epochs; one-shot is cut before them, the others after, with no training
behind the cut. ACIP is trained for each size alone, and in one run for all of them; TRP comes to sizes of its own.
Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

import graphprune as gp
from graphprune.cost.static import params

from ..results import Results
from .digits import X, held
from .loop import mean
from .rivals import perceptron, run_of

SIZES = (0.5, 0.25, 0.1)
ENERGIES = (0.02, 0.05, 0.1)
ONE_SHOT = "factor{{share=none}},group{{only=*rank}},score,mask{{params={}x allocate=global floor=0}},propagate"


def one(options: argparse.Namespace, name: str, seed: int) -> dict[str, list[float]]:
    """Size and accuracy of each network that a row comes to, in per cent."""
    module, program = perceptron(seed)
    state = options.out / f"rivals-mlp-{seed}.pt"
    run_of(seed, 10).train(module, checkpoint=state, what=f"dense, seed {seed}")
    whole, found = params(program.graph, program.host)(), dict[str, list[float]]()

    def add(what: str, cut: gp.Program) -> None:
        found[what] = [100 * params(cut.graph, cut.host)() / whole, held(cut.model)]

    if name == "one-shot":
        for size in SIZES:
            cut = gp.run(ONE_SHOT.format(size), gp.load(module, (X[:2],)))
            run_of(seed + 50, options.epochs).train(cut.model, what=f"{name} {size}, seed {seed}")
            add(str(size), cut)
        return found
    for setting in ENERGIES if name == "TRP" else SIZES if name == "ACIP" else SIZES[-1:]:
        run_of(seed, 10).train(module, checkpoint=state)
        run = run_of(seed + 50, options.epochs)
        optimizer = run.optimizer(module)
        kind: Any = gp.train.TRP if name == "TRP" else gp.train.ACIP
        choice = {"energy": setting} if name == "TRP" else {"target": setting}
        if name == "ACIP":
            choice["nested"] = 0.0
        penalty = kind(program, module, optimizer, total_steps=run.steps, **choice)
        run.train(module, penalty, optimizer, what=f"{name} {setting}, seed {seed}")
        penalty.remove()
        if name == "ACIP, one run":
            for size in SIZES:
                add(str(size), gp.run(f"mask{{params={size}x allocate=global floor=0}},propagate", penalty.learned()))
        else:
            add(str(setting), gp.run("propagate", penalty.learned()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("demo-out/training"), help="results so far")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.out / f"ranks-{options.epochs}.json")
    print("| | setting | parameters, % | accuracy |\n|---|---|---|---|")
    for name in ("one-shot", "ACIP", "ACIP, one run", "TRP"):
        rows = [results.get(f"{name} {seed}", partial(one, options, name, seed)) for seed in options.seeds]
        for setting in rows[0]:
            sizes, right = ([row[setting][k] for row in rows] for k in (0, 1))
            print(f"| {name} | {setting} | {mean(sizes)} | {mean(right)} |", flush=True)


if __name__ == "__main__":
    main()
