"""The sensitivity sweep: what the outputs lose as each group alone loses channels, as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..allocation.rd import distortions
from ..errors import DataError, printable
from ..ir.facts import Groups, Scores
from ..ir.program import Program
from ..pipeline.base import Progress
from ..pipeline.recipe import Recipe
from ..pipeline.run import run
from ..report.figure import drawing, write

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of a group's channels at whose removal the outputs are measured."""
Curves = Mapping[str, Mapping[float, float]]


def sweep(program: Program, by: str = "obs", progress: Progress | None = None) -> Curves:
    """Per group and share of its channels removed (lowest scores first, readers refitted), the mean
    squared change of the outputs over their variance. Raises DataError without calibration data."""
    if not program.data:
        raise DataError("a sensitivity sweep needs calibration data", "give --data FILE, or gp.load(..., data=...)")
    scored = run(Recipe.parse(f"group,score{{by={by}}}"), program, progress)
    groups = scored.fact(Groups)
    losses = distortions(scored, groups, scored.fact(Scores), SHARES)
    return {
        group.name: {share: losses[group.name][max(1, round((1 - share) * group.size))] for share in SHARES}
        for group in groups
    }


def table(curves: Curves) -> str:
    """One line per group, the most sensitive (at half its channels) first."""
    order = sorted(curves, key=lambda name: -curves[name][0.5])
    width = max(map(len, order), default=5)
    lines = [f"{'channels removed':<{width}}  " + "  ".join(f"{share:>6.0%}" for share in SHARES)]
    lines += [f"{name:<{width}}  " + "  ".join(f"{curves[name][share]:6.3f}" for share in SHARES) for name in order]
    return "\n".join(lines)


def plot(curves: Curves, path: Path) -> None:
    """Write a heat map as SVG: groups in order of execution, darker where the outputs change more. The same
    curves give the same bytes. Raises OutputError."""
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    grid = np.array([[max(curves[name][share], 1e-6) for share in SHARES] for name in curves])
    with drawing({"font.size": 8}):
        figure = Figure(figsize=(6.5, 1.2 + 0.2 * len(curves)))
        axes = figure.subplots()
        image = axes.imshow(
            grid, aspect="auto", cmap="Blues", norm=LogNorm(max(grid.min(), 1e-4), max(grid.max(), 1e-3))
        )
        axes.set_xticks(range(len(SHARES)), [f"{share:.0%}" for share in SHARES])
        axes.set_yticks(range(len(curves)), map(printable, curves))
        axes.set_xlabel("channels of the group removed")
        bar = figure.colorbar(image, format="%g")
        bar.set_label("change of the outputs (share of their variance)")
        figure.tight_layout()
        write(figure, path)
