"""Every method of gp.train on digits, at half the MACs: from one trained network, eight epochs each, then the
cut, then two epochs of fine-tuning.

    python -m benchmarks.training.kin [--seeds 0 1 2] [--out DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.ir.facts import Groups, Keep

from ..results import Results
from .digits import batches, held, network, training
from .loop import Run, mean, share

EPOCHS, TUNE = 8, 2
MASK = "mask{macs=0.5x}"
"""For methods that are told what goes."""
BY_SCORES = "mask{macs=0.5x allocate=global}"
"""For those that give scores, which press all layers at once and some more than others."""


def penalty_of(name: str, program: gp.Program, module: nn.Module, optimizer: Any, run: Run) -> Any:
    known = gp.run(f"group,score,{MASK}", program)
    keep = {g.name: len(known.fact(Keep).keep[g.name]) / g.size for g in known.fact(Groups)}
    train, third = gp.train, run.steps // 3
    make: dict[str, Callable[[], Any]] = {
        "none": lambda: train.Penalty(program, module, over="all"),
        "GroupLasso": lambda: train.GroupLasso(program, module, optimizer, over="all"),
        "Slimming": lambda: train.Slimming(program, module, optimizer),
        "VAR": lambda: train.VAR(program, module, optimizer),
        "AdaSAP": lambda: train.AdaSAP(program, module),
        "DReSS": lambda: train.DReSS(known, module, optimizer),
        "GrowingRegularization": lambda: train.GrowingRegularization(known, module, strength=1 / run.steps),
        "GReg2": lambda: train.GReg2(program, module, keep=keep, total_steps=run.steps),
        "Catalyst": lambda: train.Catalyst(program, module, optimizer, keep=keep, total_steps=run.steps),
        "BiP": lambda: train.BiP(program, module, optimizer, keep=keep, total_steps=run.steps),
        "Movement": lambda: train.Movement(program, module, optimizer, keep=keep, total_steps=2 * third),
        "SMCP": lambda: train.SMCP(program, module, optimizer, every=10, total_steps=run.steps),
        "LAPP": lambda: train.LAPP(program, module, optimizer, total_steps=run.steps),
        "LAPP, bypass": lambda: train.LAPP(program, module, optimizer, total_steps=run.steps, bypass=0.3),
        "Polarization": lambda: train.Polarization(program, module, optimizer),
        "Consensus": lambda: train.Consensus(program, module, optimizer),
        "OnTheFly": lambda: train.OnTheFly(program, module, optimizer, keep=keep),
        "StochasticMasks": lambda: train.StochasticMasks(known, module, optimizer, total_steps=run.steps),
        "Transport": lambda: train.Transport(program, module, optimizer, total_steps=run.steps),
    }
    return make[name]()


NAMES = (
    *("none", "GroupLasso", "Slimming", "VAR", "AdaSAP", "DReSS", "GrowingRegularization", "GReg2", "Catalyst", "BiP"),
    *("Movement", "SMCP", "LAPP", "LAPP, bypass", "Polarization", "Consensus", "OnTheFly", "StochasticMasks"),
    "Transport",
)


def one(results: Results, name: str, seed: int) -> dict[str, float]:
    module, program = network(seed)
    state = results.path.parent / f"kin-dense-{seed}.pt"
    training(seed, 10).train(module, checkpoint=state, what=f"dense, seed {seed}")
    run = Run(batches(seed + 50), training(seed).length, EPOCHS)
    optimizer = run.optimizer(module)
    penalty = penalty_of(name, program, module, optimizer, run)

    def perturbed(net: nn.Module, x: Tensor, y: Tensor, _: Any) -> None:
        run.gradients(net, x, y, None)
        with penalty.perturbed():
            F.cross_entropy(net(x), y, label_smoothing=run.smoothing).backward()

    run.train(module, penalty, optimizer, step=perturbed if name == "AdaSAP" else None, what=f"{name}, seed {seed}")
    found = {"trained": held(module)}
    learned = penalty.learned()
    own = gp.run("propagate", learned) if learned.knows(Keep) else None
    within = own is not None and share(own, program) <= 0.51  # the same budget for all, whatever they decided
    cut = own if own is not None and within else gp.run(f"{BY_SCORES},propagate", learned)
    found["cut"] = held(cut.model)
    Run(batches(seed + 100), run.length, TUNE, rate=0.05).train(cut.model, what=f"{name}, fine-tuning")
    return {**found, "tuned": held(cut.model)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=NAMES, action="append")
    parser.add_argument("--out", type=Path, default=Path("demo-out/training"), help="results so far")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.out / "kin.json")
    rows = {
        name: [results.get(f"{name} {seed}", partial(one, results, name, seed)) for seed in options.seeds]
        for name in options.only or NAMES
    }
    print("\n| | trained | cut to 0.5x MACs | fine-tuned |\n|---|---|---|---|")
    for name, found in rows.items():
        print(f"| {name} | {' | '.join(mean([f[key] for f in found]) for key in ('trained', 'cut', 'tuned'))} |")


if __name__ == "__main__":
    main()
