"""Tables and plots of benchmarks/accuracy.py's results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .cifar import TRAINED
from .results import between

Results = Mapping[tuple[str, str, str], Mapping[str, Any]]
BUDGETS = ("0.7x", "0.5x", "0.3x")
AUTO, ALONE, MEAN, PEER = "graphprune auto", "auto, mask alone", "auto with mean", "Torch-Pruning"
TUNED, HELD_OUT = ", fine-tuned", "held out: "
ALL_IMAGES = 10_000
PAGE = Path("docs/benchmarks.md")
START, END = "<!-- accuracy: written by python -m benchmarks.accuracy --report -->", "<!-- end of accuracy -->"


def report(results: Results, folder: Path) -> None:
    """Print the tables as Markdown, write them to ``tables.md``, and a plot per network."""
    tables = [_contest(results), _repair(results), _tuned(results), _settled(results)]
    tables += [_grid(results, name) for name in ("resnet56", "densenet40")]
    text = "\n\n".join(table for table in tables if table)
    (folder / "tables.md").write_text(text + "\n", encoding="utf-8")
    between(PAGE, START, END, "\n\n".join(table for table in tables[:4] if table))
    print(text)
    for name in TRAINED:
        _plot(results, name, folder)


def value(results: Results, name: str, budget: str, contender: str) -> float | None:
    found: float | None = results.get((name, budget, contender), {}).get("accuracy")
    return found


def best_peer(results: Results, name: str, budget: str) -> tuple[float, str] | None:
    """Of those that saw all test images."""
    rows = [
        (row["accuracy"], key[2])
        for key, row in results.items()
        if key[:2] == (name, budget)
        and key[2].startswith(f"{PEER} ")
        and row.get("images") == ALL_IMAGES
        and TUNED not in key[2]
    ]
    return max(rows) if rows else None


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return f"**{title}**\n\n" + "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _cases(results: Results) -> Iterator[tuple[str, str, float]]:
    """Network, budget, accuracy before."""
    for name in TRAINED:
        dense = value(results, name, "1x", "dense")
        for budget in BUDGETS:
            if dense is not None:
                yield name, budget, dense


def _contest(results: Results) -> str:
    rows, shares = [], []
    for name, budget, dense in _cases(results):
        mine, peer = value(results, name, budget, AUTO), best_peer(results, name, budget)
        if mine is None or peer is None:
            continue
        share = (dense - mine) / (dense - peer[0]) if dense > peer[0] else float("nan")
        shares += [share] if budget == "0.5x" else []
        seconds = f"{results[name, budget, AUTO]['seconds']:.0f}"
        which = peer[1].removeprefix(f"{PEER} ")
        row = [name, f"{dense:.2f}", budget, f"{mine:.2f}", f"{peer[0]:.2f}", which, f"{share:.2f}", seconds]
        rows.append(row)
    head = [
        "network",
        "dense",
        "MACs",
        "`auto`",
        "Torch-Pruning's best",
        "which",
        "drop, ours / theirs",
        "`auto`, s of a core",
    ]
    text = _table("No training", head, rows)
    if shares:
        text += f"\n\nDrop at 0.5x, ours over theirs: {sum(shares) / len(shares):.2f} on average of {len(shares)}."
    return text


def _repair(results: Results) -> str:
    rows, shares = [], []
    for name, budget, dense in _cases(results):
        found = [value(results, name, budget, contender) for contender in (ALONE, MEAN, AUTO)]
        if found[0] is not None and found[1] is not None and found[2] is not None:
            share = (dense - found[2]) / (dense - found[0])
            shares += [share] if budget == "0.5x" else []
            rows.append([name, budget, *(f"{each:.2f}" for each in found if each is not None), f"{share:.2f}"])
    head = ["network", "MACs", "mask alone", "+ mean", "+ least squares (`auto`)", "drop, least squares / alone"]
    text = _table("The same mask, compensated", head, rows)
    if shares:
        text += f"\n\nDrop at 0.5x, with over without: {sum(shares) / len(shares):.2f} on average of {len(shares)}."
    return text


def _tuned(results: Results) -> str:
    rows = []
    for name, budget, dense in _cases(results):
        found = [value(results, name, budget, contender + TUNED) for contender in (AUTO, ALONE, PEER)]
        if any(each is not None for each in found):
            cells = ["-" if each is None else f"{each:.2f}" for each in found]
            rows.append([name, f"{dense:.2f}", budget, *cells])
    counts = {row["trained_on"] for row in results.values() if "trained_on" in row}
    title = f"One epoch over {', '.join(map(str, sorted(counts)))} training images afterwards"
    return _table(title, ["network", "dense", "MACs", "`auto`", "its mask alone", "Torch-Pruning's best"], rows)


def _settled(results: Results) -> str:
    keys = [key for key in results if key[2].startswith(HELD_OUT) and "accuracy" in results[key]]
    places = list(dict.fromkeys(key[:2] for key in keys))
    rows = []
    for contender in dict.fromkeys(key[2] for key in keys):
        change = json.loads(contender.removeprefix(HELD_OUT))
        cells = [value(results, *place, contender) for place in places]
        what = ", ".join(f"{k} = {v}" for k, v in change.items()) or "none"
        rows.append([what, *("-" if cell is None else f"{cell:.2f}" for cell in cells)])
    return _table("How `auto` was settled: held-out training images", ["change", *map(" ".join, places)], rows)


def _grid(results: Results, name: str) -> str:
    rows = []
    mine = [key[2] for key in results if key[:2] == (name, "0.5x") and " + " in key[2]]
    for criterion in dict.fromkeys(contender.split(" + ")[0] for contender in mine):
        cells = [value(results, name, "0.5x", f"{criterion} + {repair}") for repair in ("none", "mean", "lsq")]
        rows.append([criterion, *("-" if cell is None else f"{cell:.2f}" for cell in cells)])
    title = f"{name} at 0.5x MACs, one threshold for all scores, every fifth test image"
    return _table(title, ["criterion", "no compensation", "mean", "least squares"], rows)


def _plot(results: Results, name: str, folder: Path) -> None:
    """Accuracy against MACs, every contender that was run at more than one budget."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    curves: dict[str, list[tuple[float, float]]] = {}
    for (network, budget, contender), row in results.items():
        if network == name and "accuracy" in row and "macs" in row and budget != "1x":
            curves.setdefault(contender, []).append((row["macs"], row["accuracy"]))
    dense = value(results, name, "1x", "dense")
    if not curves or dense is None:
        return
    with plt.rc_context({"svg.hashsalt": "graphprune"}):
        figure, axes = plt.subplots(figsize=(7, 4.5))
        for contender in sorted(curves):
            xs, ys = zip(*sorted([*curves[contender], (1.0, dense)]), strict=True)
            peer = contender.startswith(PEER)
            style: dict[str, Any] = {"color": "0.65", "linewidth": 0.8} if peer else {"linewidth": 2}
            axes.plot(xs, ys, marker=".", label=None if peer else contender, **style)
        axes.plot([], [], color="0.65", label=f"{PEER}, all twelve")
        axes.set_xlabel("MACs that remain")
        axes.set_ylabel("accuracy, %")
        axes.set_title(f"{name}, no training")
        axes.legend(frameon=False)
        axes.grid(alpha=0.2)
        figure.tight_layout()
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
