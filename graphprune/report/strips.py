"""The report's drawing of a network in strips, a block each, which close and open without a script: both forms of a
strip have the lines of the network at the same heights of their edges, whatever their neighbours show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from .network import ACROSS, Network, Point, block_of, costs_of, name_of

CLOSED, TALL = 64, 30
"""Pixels of a closed strip's width, and of the box in it."""
INSET = 10
"""From an edge of a closed strip to its box."""
ROOM = 990
"""Of a page: the blocks of what is wider are closed at first."""
LETTER = 6.2
"""Of a label's font, about."""


@dataclass(frozen=True)
class _Piece:
    """Some columns of the drawing, and what they are called."""

    first: int
    last: int
    name: str


def strips(network: Network, drawn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """From left to right, for the template: what ``drawn`` (``network.drawing``) has between two columns, and of a
    block of several ``closed``: a box as full as is kept of it, and the lines that lead to it, from it and past it."""
    columns = [_column(bar["middle"]) for bar in drawn["bars"]]
    routes = [[_point(text) for text in line.split()] for line in drawn["lines"]]
    pieces = _by_name(network, columns) or _by_waist(network, columns)
    found = []
    for several, own in groupby(pieces, lambda piece: piece.last > piece.first):
        if several:
            found += [_strip(network, drawn, columns, routes, piece, True) for piece in own]
        else:  # layers by themselves have nothing to close
            alone = [*own]
            plain = _Piece(alone[0].first, alone[-1].last, "")
            found.append(_strip(network, drawn, columns, routes, plain, False))
    return found


def _column(place: Sequence[float]) -> int:
    return round(place[0] / ACROSS) - 1


def _point(text: str) -> Point:
    x, y = text.split(",")
    return float(x), float(y)


def _by_name(network: Network, columns: Sequence[int]) -> list[_Piece]:
    """A piece per block of the names; blocks side by side are one. Nothing where names say no more than one block, or
    one for every layer."""
    spans: dict[str, tuple[int, int]] = {}
    named = {block_of(layer) for layer in network["layers"] if layer["macs"][0] or layer["params"][0]}
    for layer, column in zip(network["layers"], columns, strict=True):
        first, last = spans.get(block_of(layer), (column, column))
        spans[block_of(layer)] = min(first, column), max(last, column)
    pieces: list[_Piece] = []
    for block, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        name = block if block in named else ""  # of a join by itself it says nothing
        if pieces and first <= pieces[-1].last:
            before = pieces.pop()
            first, last, name = before.first, max(last, before.last), ", ".join(filter(None, (before.name, name)))
        pieces.append(_Piece(first, last, name))
    blocks = [piece for piece in pieces if piece.last > piece.first]
    return pieces if blocks and len(pieces) > 1 else []


def _by_waist(network: Network, columns: Sequence[int]) -> list[_Piece]:
    """A piece ends where all that follows reads one layer (beside weights that are computed)."""
    layers = network["layers"]
    read = {b for _, b in network["edges"]}
    edges = [(a, b) for a, b in network["edges"] if a in read or layers[a]["macs"][0]]
    ends = [
        column
        for column in range(max(columns) + 1)
        if len({a for a, b in edges if columns[a] <= column < columns[b]}) <= 1
    ]
    starts = [0, *(end + 1 for end in ends)]
    return [_Piece(first, after - 1, _span(layers, columns, first, after)) for first, after in pairwise(starts)]


def _span(layers: Sequence[Mapping[str, Any]], columns: Sequence[int], first: int, after: int) -> str:
    """The first and the last layer within some columns, by name."""
    inside = [layer for layer, column in zip(layers, columns, strict=True) if first <= column < after]
    real = [name_of(layer) for layer in inside if layer["macs"][0]] or [name_of(layer) for layer in inside]
    return real[0] if len(real) == 1 else f"{real[0]} to {real[-1]}"


def _strip(
    network: Network,
    drawn: Mapping[str, Any],
    columns: Sequence[int],
    routes: Sequence[Sequence[Point]],
    piece: _Piece,
    closes: bool,
) -> dict[str, Any]:
    inside = [k for k, column in enumerate(columns) if piece.first <= column <= piece.last]
    width = (piece.last - piece.first + 1) * ACROSS
    near = [[p for p in route if piece.first - 1 <= _column(p) <= piece.last + 1] for route in routes]
    layers = [network["layers"][k] for k in inside]
    return {
        "left": (piece.first + 0.5) * ACROSS,
        "width": width,
        "label": _label(piece.name, width),
        "title": _title(piece.name, layers),
        "bars": [drawn["bars"][k] for k in inside],
        "lines": [" ".join(f"{x},{y}" for x, y in some) for some in near if len(some) > 1],
        "open": drawn["width"] <= ROOM,
        "closed": _closed(piece, layers, [drawn["bars"][k] for k in inside], routes) if closes else None,
    }


def _label(name: str, width: int) -> str:
    """A name as far as it fits: its end, for the blocks of a network begin alike."""
    most = int(width / LETTER)
    return name if len(name) <= most else f"\N{HORIZONTAL ELLIPSIS}{name[1 - most :]}"


def _title(name: str, layers: Sequence[Mapping[str, Any]]) -> str:
    real = [layer for layer in layers if layer["macs"][0] or layer["params"][0]]
    whole = {key: [sum(layer[key][k] for layer in real) for k in (0, 1)] for key in ("params", "macs")}
    return f"{name}: {len(real)} {'layer' if len(real) == 1 else 'layers'}, {costs_of(whole)}"


def _closed(
    piece: _Piece,
    layers: Sequence[Mapping[str, Any]],
    bars: Sequence[Mapping[str, Any]],
    routes: Sequence[Sequence[Point]],
) -> dict[str, Any]:
    middle = sum(bar["middle"][1] for bar in bars) / len(bars)
    unit = "macs" if any(layer["macs"][0] for layer in layers) else "params"
    before, after = (sum(layer[unit][k] for layer in layers) for k in (0, 1))
    kept = TALL * (after / before if before else 1)
    lines = dict.fromkeys(
        " ".join(f"{round(x, 1)},{round(y, 1)}" for x, y in line)
        for route in routes
        if (line := _past(piece, {_column(point): point[1] for point in route}, middle))
    )
    return {
        "width": CLOSED,
        "label": _label(piece.name, CLOSED),
        "x": INSET,
        "wide": CLOSED - 2 * INSET,
        "top": round(middle - TALL / 2, 1),
        "tall": TALL,
        "kept_top": round(middle + TALL / 2 - kept, 1),
        "kept": round(kept, 1),
        "lines": [*lines],
    }


def _past(piece: _Piece, heights: Mapping[int, float], middle: float) -> list[Point]:
    """The line of an edge, with its height in every column, in a closed strip: to the box, from it, or past it."""

    def edge(column: int) -> float:  # where it crosses from this column to the next
        return (heights[column] + heights[column + 1]) / 2

    start, end = min(heights), max(heights)
    enters, leaves = start < piece.first <= end, start <= piece.last < end
    box, right = (INSET, middle), (CLOSED - INSET, middle)
    if enters and leaves:
        came, goes = edge(piece.first - 1), edge(piece.last)
        lane, clear = (came + goes) / 2, TALL / 2 + 5
        if abs(lane - middle) < clear:
            lane = middle + (clear if lane >= middle else -clear)
        return [(0, came), (INSET, lane), (CLOSED - INSET, lane), (CLOSED, goes)]
    if enters:
        return [(0, edge(piece.first - 1)), box]
    return [right, (CLOSED, edge(piece.last))] if leaves else []
