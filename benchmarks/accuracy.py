"""Accuracy without training on trained CIFAR-10 networks, beside Torch-Pruning.

    python -m benchmarks.accuracy                 run what is missing, then write tables and plots
    python -m benchmarks.accuracy --compile       only the models of `auto`
    python -m benchmarks.accuracy --only resnet20 --budget 0.5x
    python -m benchmarks.accuracy --settle        how `auto` was chosen, on held-out training images
    python -m benchmarks.accuracy --report        tables and plots of what there is

512 training images (labels for Taylor alone), no training. Both sides get the same MACs budget, counted
the same way; Torch-Pruning at the largest ratio that meets it, pruning every layer alike (`local`) or all
by one threshold (`global`). All its twelve contenders are run on every tenth test image, and those within
3 points of the best of them (three at most) on all 10,000: the best of these is its result (chosen on the
test set, in its favour). graphprune's models are exported and read back, and run on all 10,000; how they
are made was settled on held-out training images. Then one epoch of fine-tuning for `auto`, its mask alone,
and Torch-Pruning's best. The grid of criteria and compensations is run on every fifth test image, on the
models in memory. Accuracy in percent; times are processor time.

Every result is a line of accuracy.jsonl, written when it is known; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from . import accuracy_sides as sides
from .accuracy_report import ALONE, AUTO, MEAN, PEER, TUNED, report
from .cifar import TRAINED, network

RESULTS = Path("docs/accuracy/accuracy.jsonl")
BUDGETS = ("0.5x", "0.7x", "0.3x")


GRID = (
    *("l1", "l2", "bn", "fpgm", "lamp", "random", "wifv", "ifv", "wifn", "wanda", "variance", "aap", "obs"),
    *("lasso", "taylor", "fisher", "hessian"),
)
SCREEN, CLOSE, FINALISTS = 10, 3.0, 3
"""All of Torch-Pruning's contenders see every so many-th test image; those so close to the best see all, the best
first, up to so many."""
Job = tuple[str, str, str]  # network, budget, contender
Result = dict[str, Any]


class Results:
    """What is known, line by line in a file; the last line of a job counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines]
        self.rows = {(row["network"], row["budget"], row["contender"]): row for row in rows}

    def have(self, job: Job) -> bool:
        return job in self.rows

    def add(self, job: Job, work: Callable[[], Result]) -> None:
        """Do the work and write what came of it; one contender's failure is a result too."""
        try:
            result = work()
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:300]}
        row = {"network": job[0], "budget": job[1], "contender": job[2], **result}
        self.rows[job] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(*job, result, flush=True)


def dense(name: str) -> Result:
    return {**sides.score(network(name)), "macs": 1.0}


def automatic(name: str, budget: str) -> Result:
    seconds = float((sides.compiled(name, budget) / "seconds").read_text(encoding="utf-8"))
    return {**sides.score(sides.auto(name, budget)), "macs": sides.remains(name, budget), "seconds": seconds}


def repaired(name: str, budget: str, repair: str) -> Result:
    return {**sides.score(sides.same_mask(name, budget, repair)), "macs": sides.remains(name, budget)}


def peer(name: str, budget: str, criterion: str, scope: str, every: int) -> Result:
    model, ratio = sides.theirs(name, budget, criterion, scope)
    left = sides.macs(model) / sides.macs(network(name))
    return {**sides.score(model, every), "macs": left, "ratio": ratio}


def own_contenders(results: Results, name: str, budget: str) -> None:
    for contender, work in (
        (AUTO, lambda: automatic(name, budget)),
        (ALONE, lambda: repaired(name, budget, "")),
        (MEAN, lambda: repaired(name, budget, "compensate{by=mean}")),
    ):
        if not results.have((name, budget, contender)):
            results.add((name, budget, contender), work)


def peer_contenders(results: Results, name: str, budget: str) -> None:
    for criterion, scope, job in peers(name, budget):
        if not results.have(job):
            results.add(job, lambda c=criterion, s=scope: peer(name, budget, c, s, SCREEN))  # type: ignore[misc]
    seen = [(results.rows[one[2]].get("accuracy", -1.0), *one) for one in peers(name, budget)]
    seen.sort(reverse=True)
    for accuracy, criterion, scope, job in seen[:FINALISTS]:
        if accuracy >= seen[0][0] - CLOSE and results.rows[job].get("images") != len(sides.test_set()[1]):
            results.add(job, lambda c=criterion, s=scope: peer(name, budget, c, s, 1))  # type: ignore[misc]


def peers(name: str, budget: str) -> Iterator[tuple[str, str, Job]]:
    for criterion in sides.CRITERIA:
        for scope in ("local", "global"):
            yield criterion, scope, (name, budget, f"{PEER} {criterion} {scope}")


def best_peer(results: Results, name: str, budget: str) -> tuple[str, str, Job]:
    """Torch-Pruning's best among those that saw all test images."""
    whole = len(sides.test_set()[1])

    def accuracy(peer: tuple[str, str, Job]) -> float:
        row = results.rows.get(peer[2], {})
        return float(row["accuracy"]) if row.get("images") == whole else -1.0

    return max(peers(name, budget), key=accuracy)


def tuned_contenders(results: Results, name: str, budget: str, images: int) -> None:
    """One epoch afterwards, the same for all."""
    criterion, scope, winner = best_peer(results, name, budget)
    starts: dict[str, Callable[[], torch.nn.Module]] = {
        AUTO: lambda: sides.auto(name, budget),
        ALONE: lambda: sides.same_mask(name, budget, ""),
        PEER: lambda: sides.torch_pruning(name, criterion, scope, results.rows[winner]["ratio"]),
    }
    for contender, start in starts.items():
        job = (name, budget, contender + TUNED)
        if not results.have(job) or results.rows[job].get("trained_on") != images:

            def work(start: Callable[[], torch.nn.Module] = start) -> Result:
                return {**sides.score(sides.finetuned(start(), images)), "trained_on": images}

            results.add(job, work)


def grid(results: Results, name: str, budget: str) -> None:
    """Criteria x compensation, on every fifth test image."""
    for criterion in GRID:
        jobs = {repair: (name, budget, f"{criterion} + {repair}") for repair in ("none", "mean", "lsq")}
        if all(map(results.have, jobs.values())):
            continue
        try:
            for repair, model in sides.by_criterion(name, budget, criterion):
                results.add(jobs[repair], lambda m=model: sides.score(m, 5))  # type: ignore[misc]
        except gp_error() as error:
            results.add(jobs["none"], lambda e=error: {"error": str(e)[:300]})  # type: ignore[misc]


def gp_error() -> type[Exception]:
    from graphprune.errors import GraphpruneError

    return GraphpruneError


def run(options: argparse.Namespace, results: Results) -> None:
    networks, budgets = tuple(options.only or TRAINED), tuple(options.budget or BUDGETS)
    if options.compile:
        for budget in budgets:
            for name in networks:
                print(
                    name,
                    budget,
                    (sides.compiled(name, budget) / "seconds").read_text(encoding="utf-8").strip(),
                    flush=True,
                )
        return
    for name in networks:
        if not results.have((name, "1x", "dense")):
            results.add((name, "1x", "dense"), lambda n=name: dense(n))  # type: ignore[misc]
    for budget in budgets:
        for name in networks:
            if options.side in ("both", "peer"):
                peer_contenders(results, name, budget)
            if options.side in ("both", "own"):
                own_contenders(results, name, budget)
        for name in networks:
            if options.side == "both" and options.finetune:
                tuned_contenders(results, name, budget, options.finetune)
    if options.side in ("both", "own") and not options.no_grid:
        for name in ("resnet56", "densenet40"):
            grid(results, name, "0.5x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TRAINED, action="append", help="networks (default: all)")
    parser.add_argument("--budget", choices=BUDGETS, action="append", help="what remains of the MACs (default: all)")
    parser.add_argument("--side", choices=("both", "own", "peer"), default="both", help="of which side")
    parser.add_argument(
        "--finetune", type=int, default=5_120, metavar="IMAGES", help="of the epoch afterwards; 0: none (5120)"
    )
    parser.add_argument("--no-grid", action="store_true", help="leave out the table of criteria x compensation")
    parser.add_argument("--compile", action="store_true", help="only compile `auto`'s models")
    parser.add_argument("--settle", action="store_true", help="how `auto` was chosen")
    parser.add_argument("--report", action="store_true", help="only write tables and plots of what there is")
    options = parser.parse_args()
    results = Results(RESULTS)
    if options.settle:
        from .accuracy_settle import settle

        settle(results)
    elif not options.report:
        run(options, results)

    report(results.rows, RESULTS.parent)


if __name__ == "__main__":
    main()
