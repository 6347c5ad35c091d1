"""The part of the report that shows the network from left to right, before and after."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import sqrt
from typing import Any

from ..errors import OutputError, printable
from .environment import templates
from .units import count, duration, ratio

LIMIT = 600
"""More layers are listed and not drawn."""
ACROSS, DOWN = 26, 40
"""Pixels from a column to the next, and from a layer to the one below it."""
LEAST, LEGEND = 680, (380, 18)
"""Pixels of a picture's width, at least, and of a line that names a group, at least."""
LETTER, SAID = 7.5, 240
"""Pixels of a letter of a group's name, at most about, and of what else its line says."""
WIDE, TALL = 14, 32
"""Pixels of a layer's bar: its width, and its height where it has the most channels."""

Network = Mapping[str, Any]
Point = tuple[float, float]


def drawing(network: Network) -> dict[str, Any] | None:
    """Bars and lines with their places in pixels, for the template; None where there is nothing to draw."""
    layers = network["layers"]
    if not 1 < len(layers) <= LIMIT:
        return None
    places, routes = _layout(len(layers), network["edges"])
    most = max(layer["channels"][0] for layer in layers) or 1
    width = max(x for x, _ in places) + 2 * ACROSS
    heights = [y for route in (places, *routes) for _, y in route]
    low, high = min(heights), max(heights)
    shift = TALL / 2 + 4 - low
    return {
        "width": round(width),
        "height": round(high - low + TALL + 8),
        "lines": [" ".join(f"{x + ACROSS:.1f},{y + shift:.1f}" for x, y in route) for route in routes],
        "bars": [_bar(layer, x + ACROSS, y + shift, most) for layer, (x, y) in zip(layers, places, strict=True)],
    }


def _bar(layer: Mapping[str, Any], x: float, y: float, most: int) -> dict[str, Any]:
    before, after = layer["channels"]
    tall = max(6.0, TALL * sqrt(before / most))
    kept = tall * (after / before if before else 0)
    joins = not (layer["macs"][0] or layer["params"][0])
    return {
        "joins": joins,
        "x": round(x - WIDE / 2, 1),
        "middle": [round(x, 1), round(y, 1)],
        "top": round(y - tall / 2, 1),
        "tall": round(tall, 1),
        "kept_top": round(y + tall / 2 - kept, 1),
        "kept": round(kept, 1),
        "width": WIDE,
        "title": layer["kind"] if joins else f"{name_of(layer)}: {after} of {before} channels, {costs_of(layer)}",
    }


def name_of(layer: Mapping[str, Any]) -> str:
    return f"{layer['module']}.{layer['name']}" if layer["module"] else str(layer["name"])


def block_of(layer: Mapping[str, Any]) -> str:
    """The block that a layer is in, by its name: up to the first number of it, or its first two parts, and less where
    that is the layer itself. A join of branches has the name of its block."""
    parts = name_of(layer).replace("/", ".").strip(".").split(".")
    depth = next((k for k, part in enumerate(parts) if part.isdecimal()), 1) + 1
    if layer["macs"][0] or layer["params"][0]:
        depth = max(1, min(depth, len(parts) - 1))
    return ".".join(parts[:depth])


def costs_of(layer: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{count(layer[key][0])} to {count(layer[key][1])} {word}"
        for key, word in (("params", "parameters"), ("macs", "MACs"))
    )


def _layout(layers: int, edges: Sequence[Sequence[int]]) -> tuple[list[Point], list[list[Point]]]:
    """Where each layer is, and the points that each edge passes. A column holds what is as far from the start; an
    edge over several columns keeps a place in each, so that no bar is in its way."""
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(range(layers))
    graph.add_edges_from(map(tuple, edges))
    columns: dict[Any, int] = {node: k for k, column in enumerate(nx.topological_generations(graph)) for node in column}
    for node in range(layers):  # what reads nothing (a weight that is computed) stands before its first reader
        if graph.out_degree(node) and not graph.in_degree(node):
            columns[node] = min(columns[reader] for reader in graph.successors(node)) - 1
    routed, routes = nx.DiGraph(), []
    routed.add_nodes_from(columns)
    for a, b in edges:
        between = {(a, b, k): k for k in range(columns[a] + 1, columns[b])}
        columns |= between
        route = [a, *between, b]
        nx.add_path(routed, route)
        routes.append(route)
    height: dict[Any, float] = {}
    for _, column in groupby(sorted(routed, key=lambda node: columns[node]), key=lambda node: columns[node]):
        # as high as what it reads: layers before edges that only pass, which go below
        wanted = {node: _mean([height[one] for one in routed.predecessors(node)]) for node in column}
        for k, node in enumerate(sorted(wanted, key=lambda node: (wanted[node], isinstance(node, tuple)))):
            height[node] = k - (len(wanted) - 1) / 2
    at = {node: (columns[node] * ACROSS, height[node] * DOWN) for node in routed}
    return [at[k] for k in range(layers)], [[at[stop] for stop in route] for route in routes]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f", "#56b4e9", "#6a51a3", "#b8860b")
"""Of groups, in turns: told apart by most colour-blind people, on white and on black."""


def picture(network: Network, channels: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The drawing by itself, as SVG: bars in the colour and with the number of the group that their channels are of,
    hollow where they are frozen; ``channels`` says which, by op. Raises OutputError where there is nothing to draw."""
    drawn = drawing(network)
    if drawn is None:
        count = len(network["layers"])
        raise OutputError(
            f"{count} layers are not drawn ({'2 at least' if count < 2 else f'{LIMIT} at most'})",
            "graphprune inspect --all lists them",
        )
    found = [one for layer in network["layers"] for one in channels.get(layer["op"], ())]
    groups = {name: k for k, name in enumerate(dict.fromkeys(one["group"] for one in found if one["group"]), 1)}
    rows: list[dict[str, Any]] = [
        {"number": k, "colour": COLOURS[(k - 1) % len(COLOURS)], "name": name, "layers": 0, "channels": 0}
        for name, k in groups.items()
    ]
    for bar, layer in zip(drawn["bars"], network["layers"], strict=True):
        own = channels.get(layer["op"], ())
        bar["parts"] = _parts(bar, own, groups)
        bar["title"] = f"{name_of(layer)} ({layer['kind']}): {'; '.join(map(_whose, own)) or layer['channels'][0]}"
        for one in own:
            if one["group"] and not bar["joins"]:
                row = rows[groups[one["group"]] - 1]
                row["layers"], row["channels"] = row["layers"] + 1, max(row["channels"], one["count"])
    width = max(drawn["width"], LEAST)
    longest = max((len(row["name"]) for row in rows), default=0)
    wide = max(LEGEND[0], SAID + round(LETTER * longest))
    lines = -(-len(rows) // max(1, width // wide))
    for k, row in enumerate(rows):
        row["at"] = (8 + k // lines * wide, drawn["height"] + 14 + k % lines * LEGEND[1])
    height = drawn["height"] + 60 + lines * LEGEND[1]
    page = templates().get_template("network.svg.j2")
    return printable(page.render(drawing=drawn, rows=rows, wide=WIDE, width=width, height=height))


def _parts(bar: Mapping[str, Any], own: Sequence[Mapping[str, Any]], groups: Mapping[str, int]) -> list[dict[str, Any]]:
    """A bar from its lower end up, as high as each has channels of it."""
    whole, end, parts = sum(one["count"] for one in own) or 1, bar["top"] + bar["tall"], []
    for one in own:
        tall = bar["tall"] * one["count"] / whole
        number = groups.get(one["group"])
        end -= tall
        parts.append(
            {
                "top": round(end, 1),
                "tall": round(tall, 1),
                "number": number,
                "colour": COLOURS[(number - 1) % len(COLOURS)] if number else None,
            }
        )
    return parts


def _whose(one: Mapping[str, Any]) -> str:
    if one["group"]:
        return f"{one['count']} of {one['group']}"
    return f"{one['count']} frozen, {one['frozen']}" if one["frozen"] else f"{one['count']} that no weight holds"


def blocks(network: Network) -> list[dict[str, Any]]:
    """The layers by the block that they are in, in order, with what each had and has."""
    members: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for layer in network["layers"]:
        if layer["macs"][0] or layer["params"][0]:
            members[block_of(layer)].append(layer)
    keys = ("params", "macs", *(("ms",) if any("ms" in layer for layer in network["layers"]) else ()))
    return [
        {
            "name": name,
            "layers": [{**_row(layer), "name": name_of(layer), "kind": layer["kind"]} for layer in own],
            **_row({key: [sum(layer[key][k] for layer in own if key in layer) for k in (0, 1)] for key in keys}),
        }
        for name, own in members.items()
    ]


def _row(layer: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: f"{count(layer[key][0])} to {count(layer[key][1])}" for key in ("params", "macs")}
    shares = {f"{key}_remain": ratio(*layer[key]) for key in ("params", "macs")}
    channels = {"channels": "{} to {}".format(*layer["channels"])} if "channels" in layer else {}
    times = {"ms": f"{duration(layer['ms'][0])} to {duration(layer['ms'][1])}" if "ms" in layer else ""}
    return {**shown, **shares, **channels, **times}
