"""Families of dims on a trained Llama: what is left of its words at a share of its parameters, without training.

``python -m benchmarks.opened [--shares 0.9 0.7 0.5] [NAME ...]`` writes build/opened.json, goes on where it was, and
prints the table of docs/benchmarks.md. Calibration data is what the network itself writes; it is judged on other such
stories (the KL divergence of every next token, in nats) and on real ones (perplexity).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import graphprune as gp
from graphprune.api import default_recipe
from graphprune.cost.static import macs, params
from graphprune.ir.program import Program
from graphprune.pipeline.published import published
from graphprune.pipeline.recipe import Recipe

from .results import Results
from .stories import network, real, written

RESULTS = Path("build/opened.json")
CALIBRATION, JUDGED = 64, 64
FIT = "mask{params=@ allocate=rd},propagate,compensate"
FAMILIES = {
    "hidden size": "rms,rotate{untie=true},group{places=stream},score{by=obs},mask{params=@ floor=0},propagate,"
    "compensate",
    "ranks": "factor{by=data},group{only=*rank},score,mask{params=@ allocate=global floor=0},propagate,compensate",
    "branches": "group,branches{alone=true},score{branches=kl},mask{params=@ allocate=stepwise},propagate,compensate",
    "widths + branches": f"group,branches,score{{by=obs}},{FIT}",
    "widths + ranks": f"factor{{by=data}},group,score{{by=obs}},{FIT}",
    "widths + hidden size": f"rms,rotate{{untie=true}},group,score{{by=obs}},{FIT}",
    "all": f"rms,rotate{{untie=true}},factor{{by=data}},group,branches,score{{by=obs}},{FIT}",
}
"""Each by itself, and together in one budget by measured distortion."""


def recipe(name: str, share: str) -> Recipe:
    if name == "auto":
        return default_recipe("params", share, data=True)
    if name in published():
        return published()[name].recipe("params", share)
    return Recipe.parse(FAMILIES[name].replace("@", share))


def judge(program: Program) -> dict[str, float]:
    """The mean KL divergence from the original on stories of its own, and the perplexity of real ones."""
    kl = [_kl(*(log_softmax(host.run([ids])[0]) for host in (program.source, program.host))) for ids in _judged()]
    scores = log_softmax(program.host.run([real()])[0][:, :-1])
    each = np.take_along_axis(scores, real()[:, 1:, None], -1)
    return {"kl": float(np.mean(kl)), "perplexity": float(np.exp(-each.mean()))}


def log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _kl(whole: Any, pruned: Any) -> float:
    return float((np.exp(whole) * (whole - pruned)).sum(-1).mean())


def _judged() -> list[Any]:
    return np.array_split(written(JUDGED, seed=1), 4)


def measured(name: str, share: str) -> dict[str, Any]:
    import torch

    data = [np.ascontiguousarray(part) for part in np.array_split(written(CALIBRATION, seed=0), 4)]
    program = gp.load(network(), (torch.from_numpy(data[0][:2]),), data=[np.concatenate(data)])
    start = time.perf_counter()
    try:
        done = gp.run(recipe(name, share), program)
    except gp.GraphpruneError as error:
        return {"refused": str(error)[:200]}
    seconds = time.perf_counter() - start
    gp.verify(done)
    left = {
        count.__name__: count(done.graph, done.host)() / count(program.graph, program.host)()
        for count in (params, macs)
    }
    return {**judge(done), **left, "seconds": seconds}


def table(found: Any, names: list[str], shares: list[str]) -> str:
    lines = ["| | " + " | ".join(shares) + " |", "|---" * (len(shares) + 1) + "|"]
    for name in names:
        cells = []
        for share in shares:
            one = found.get(f"{name} {share}", {})
            cell = f"{one['kl']:.3f} / {one['perplexity']:.2f} ({one['params']:.2f})" if "kl" in one else "-"
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["auto", *FAMILIES, *published()])
    parser.add_argument("--shares", nargs="+", default=["0.9x", "0.7x", "0.5x"])
    args = parser.parse_args()
    results = Results(RESULTS)
    for name in args.names:
        for share in args.shares:
            results.get(f"{name} {share}", lambda name=name, share=share: measured(name, share))  # type: ignore[misc]
    print(table(results.known, args.names, args.shares))


if __name__ == "__main__":
    main()
