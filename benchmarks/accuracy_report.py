"""Tables and plots of benchmarks/accuracy.py's results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cifar import TRAINED

Results = Mapping[tuple[str, str, str], Mapping[str, Any]]
BUDGETS = ("0.7x", "0.5x", "0.3x")
PEER = "Torch-Pruning"
AUTO = "graphprune auto"


def report(results: Results, folder: Path) -> None:
    """Print the tables as Markdown, write them to ``tables.md``, and a plot per network."""
    text = "\n\n".join([_contest(results), _repair(results), *(_grid(results, n) for n in ("resnet56", "densenet40"))])
    (folder / "tables.md").write_text(text + "\n")
    print(text)
    for name in TRAINED:
        _plot(results, name, folder)


def _value(results: Results, name: str, budget: str, contender: str) -> float | None:
    found: float | None = results.get((name, budget, contender), {}).get("accuracy")
    return found


def _best_peer(results: Results, name: str, budget: str) -> tuple[float, str] | None:
    rows = [
        (row["accuracy"], key[2])
        for key, row in results.items()
        if key[:2] == (name, budget) and PEER in key[2] and "accuracy" in row
    ]
    return max(rows) if rows else None


def _contest(results: Results) -> str:
    lines = [
        "| network | dense | MACs | graphprune auto | best of Torch-Pruning | which | drop ours / theirs | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in TRAINED:
        dense = _value(results, name, "1x", "dense")
        for budget in BUDGETS:
            mine, peer = _value(results, name, budget, AUTO), _best_peer(results, name, budget)
            if mine is None or peer is None or dense is None:
                continue
            seconds = results[name, budget, AUTO]["seconds"]
            which = peer[1].removeprefix(f"{PEER} ")
            share = f"{(dense - mine) / (dense - peer[0]):.2f}" if dense > peer[0] else "-"
            lines.append(
                f"| {name} | {dense:.2f} | {budget} | {mine:.2f} | {peer[0]:.2f} | {which} | {share} | {seconds:.0f} |"
            )
    return "\n".join(lines)


def _repair(results: Results) -> str:
    lines = [
        "| network | MACs | mask alone | + mean | + least squares | drop, least squares / alone |",
        "|---|---|---|---|---|---|",
    ]
    for name in TRAINED:
        for budget in BUDGETS:
            dense = _value(results, name, "1x", "dense")
            row = [_value(results, name, budget, c) for c in ("auto, mask alone", "auto with mean", AUTO)]
            if dense is not None and row[0] is not None and row[1] is not None and row[2] is not None:
                share = (dense - row[2]) / (dense - row[0])
                lines.append(f"| {name} | {budget} | {row[0]:.2f} | {row[1]:.2f} | {row[2]:.2f} | {share:.2f} |")
    return "\n".join(lines)


def _grid(results: Results, name: str) -> str:
    lines = [f"| {name} at 0.5x MACs, global | none | mean | least squares |", "|---|---|---|---|"]
    criteria = dict.fromkeys(key[2].split(" + ")[0] for key in results if key[0] == name and " + " in key[2])
    for criterion in criteria:
        row = [_value(results, name, "0.5x", f"{criterion} + {repair}") for repair in ("none", "mean", "lsq")]
        lines.append(f"| {criterion} | " + " | ".join("-" if v is None else f"{v:.2f}" for v in row) + " |")
    return "\n".join(lines)


def _plot(results: Results, name: str, folder: Path) -> None:
    """Accuracy against MACs, every contender that was run at more than one budget."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    curves: dict[str, list[tuple[float, float]]] = {}
    for (network, budget, contender), row in results.items():
        if network == name and "accuracy" in row and budget != "1x":
            curves.setdefault(contender, []).append((row["macs"], row["accuracy"]))
    dense = _value(results, name, "1x", "dense")
    if not curves or dense is None:
        return
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for contender, points in curves.items():
        if len(points) > 1:
            xs, ys = zip(*sorted([*points, (1.0, dense)]), strict=True)
            peer = PEER in contender
            style = {"color": "0.6", "linewidth": 0.8} if peer else {"linewidth": 2}
            axes.plot(xs, ys, marker=".", label=None if peer else contender, **style)
            if peer:
                axes.annotate(contender.removeprefix(f"{PEER} "), (xs[0], ys[0]), fontsize=5, color="0.4")
    axes.plot([], [], color="0.6", label=PEER)
    axes.set_xlabel("MACs that remain")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"{name}, no training")
    axes.legend(frameon=False)
    axes.grid(alpha=0.2)
    figure.tight_layout()
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
