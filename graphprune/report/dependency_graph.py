"""The dependency graph as a picture: dims on the left, the parameter axes that have them on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import printable
from ..ir.facts import Groups
from .figure import drawing, write

if TYPE_CHECKING:
    import networkx as nx

# Dashes tell the roles apart where colours do not (blue and orange do for most colour-blind people).
STYLES = {"writer": ("#0a63a8", "-"), "carrier": ("#7a828b", ":"), "reader": ("#c25700", "--")}
INK, SOFT, BACK = "#1a1d21", "#5b636d", "#ffffff"

ROW, COLUMN, AXIS_AT, ASPECT = 0.2, 5.6, 2.6, 1.4
"""Inches: height of a line, width of a column, where axes start; and the width to aim at per height."""


@dataclass(frozen=True)
class _Part:
    """One connected component: everything that is coupled, in graph order."""

    dims: tuple[str, ...]
    axes: tuple[str, ...]

    @property
    def rows(self) -> int:
        return max(len(self.axes), 2 * len(self.dims)) + 1


def draw(groups: Groups, path: Path) -> None:
    """Write the graph of ``groups`` as SVG; the same graph gives the same bytes. Raises OutputError."""
    from matplotlib.figure import Figure

    parts = _parts(groups.graph)
    total = sum(part.rows for part in parts)
    columns = max(1, round(sqrt(ASPECT * total * ROW / COLUMN)))
    placed = _place(parts, ceil(total / columns))
    height = max((row + part.rows for part, _, row in placed), default=0) + 2
    width = max((column for _, column, _ in placed), default=0) + 1
    with drawing({"svg.fonttype": "none", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(width * COLUMN, height * ROW), facecolor=BACK)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width * COLUMN), ylim=(height * ROW, 0))
        axes.set_axis_off()
        _legend(axes)
        for part, column, row in placed:
            _draw_part(axes, groups.graph, part, column * COLUMN + 0.2, (row + 2) * ROW)
        write(figure, path)


def _parts(graph: nx.Graph) -> list[_Part]:
    """Components in graph order, those with something to prune first."""
    import networkx as nx

    order = {node: k for k, node in enumerate(graph)}
    parts = []
    for component in nx.connected_components(graph):
        nodes = sorted(component, key=order.__getitem__)
        dims = tuple(node for node in nodes if graph.nodes[node]["kind"] == "dim")
        parts.append(_Part(dims, tuple(node for node in nodes if graph.nodes[node]["kind"] == "axis")))
    parts.sort(key=lambda part: (all(graph.nodes[dim]["frozen"] for dim in part.dims), order[part.dims[0]]))
    return parts


def _place(parts: Sequence[_Part], rows: int) -> list[tuple[_Part, int, int]]:
    """(part, column, first row): columns are filled from the top, in order."""
    placed, column, row = [], 0, 0
    for part in parts:
        if row and row + part.rows > rows + 2:
            column, row = column + 1, 0
        placed.append((part, column, row))
        row += part.rows
    return placed


def _draw_part(axes: Any, graph: nx.Graph, part: _Part, left: float, top: float) -> None:
    y = {axis: top + (k + 0.5) * ROW for k, axis in enumerate(part.axes)}
    heights = _heights(graph, part, y, top)
    for dim in part.dims:
        node, middle = graph.nodes[dim], heights[dim]
        ends = [axis for axis in part.axes if graph.has_edge(dim, axis)]
        at = left + 2.0
        for axis in ends:
            colour, dashes = STYLES[graph.edges[dim, axis]["role"]]
            axes.plot([at, left + AXIS_AT - 0.05], [middle, y[axis]], color=colour, linestyle=dashes, linewidth=1)
        frozen = node["frozen"]
        axes.plot(
            [at], [middle], "o", markersize=6, markeredgecolor=SOFT if frozen else INK, color=BACK if frozen else INK
        )
        label = {"ha": "right", "va": "center", "color": SOFT if frozen else INK}
        axes.text(at - 0.12, middle, f"{_short(dim, 22)}  ({node['size']})", fontsize=8, **label)
        if frozen:
            axes.text(at - 0.12, middle + 0.8 * ROW, _short(frozen, 46), fontsize=5.5, **label)
    for axis in part.axes:
        axes.text(left + AXIS_AT, y[axis], _short(_member(axis), 44), fontsize=7, va="center", color=INK)


def _heights(graph: nx.Graph, part: _Part, y: dict[str, float], top: float) -> dict[str, float]:
    """Each dim beside the middle of its axes, two lines apart at least, none below the last axis."""
    middle = {dim: [y[axis] for axis in part.axes if graph.has_edge(dim, axis)] for dim in part.dims}
    order = sorted(part.dims, key=lambda dim: sum(middle[dim]) / len(middle[dim]))
    lowest = top + (part.rows - 1.5) * ROW
    heights: dict[str, float] = {}
    last = top - 1.5 * ROW
    for k, dim in enumerate(order):
        below = lowest - 2 * ROW * (len(order) - 1 - k)
        last = heights[dim] = max(min(sum(middle[dim]) / len(middle[dim]), below), last + 2 * ROW)
    return heights


def _legend(axes: Any) -> None:
    for k, (role, (colour, dashes)) in enumerate(STYLES.items()):
        axes.plot([0.2 + k * 1.1, 0.5 + k * 1.1], [ROW, ROW], color=colour, linestyle=dashes, linewidth=1.5)
        axes.text(0.56 + k * 1.1, ROW, role, fontsize=8, va="center", color=INK)
    axes.plot([3.5], [ROW], "o", markersize=6, markeredgecolor=SOFT, color=BACK)
    axes.text(3.6, ROW, "frozen", fontsize=8, va="center", color=INK)


def _member(node: str) -> str:
    """An axis as messages spell it: ``conv1.weight[0]`` for the node ``conv1.weight:0``."""
    parameter, _, axis = node.rpartition(":")
    return f"{parameter}[{axis}]"


def _short(text: str, length: int) -> str:
    """The end of a name says more than its beginning; the reverse for a reason, which has spaces."""
    text = printable(text)
    if len(text) <= length:
        return text
    return f"{text[: length - 1]}…" if " " in text else f"…{text[1 - length :]}"
