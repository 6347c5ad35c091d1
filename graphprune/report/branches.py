"""Residual branches, from the network's input to its output: what each costs, and which are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..cost.static import gates, macs, params
from ..coupling.branches import gate, residuals
from ..ir.facts import Frozen
from ..ir.graph import Branch, Graph
from ..ir.host import Host
from .units import count

Rows = list[dict[str, Any]]


def rows(graph: Graph, host: Host, gone: Sequence[Branch] = ()) -> tuple[Rows, tuple[Frozen, ...]]:
    """Of every branch that may go its ``name``, the ``params`` and ``macs`` (a sample) that go along, and whether it
    is ``kept``; and the branches that must stay."""
    found, frozen = residuals(graph)
    groups = [gate(graph, [one]) for one in found]
    known = gates(graph, groups)
    counted = {"params": params(graph, host, known), "macs": macs(graph, host, known)}
    whole = {unit: cost() for unit, cost in counted.items()}
    return [
        {
            "name": group.name,
            **{unit: round(whole[unit] - cost({group.dim: 0})) for unit, cost in counted.items()},
            "kept": group.branches[0] not in gone,
        }
        for group in groups
    ], frozen


def listed(graph: Graph, host: Host, everything: bool = True) -> str:
    """A line for every branch, or one for them all; empty where there is none."""
    found, frozen = rows(graph, host)
    if not found and not frozen:
        return ""
    noun = "branch" if len(found) == 1 else "branches"
    if not everything:
        stay = f", {len(frozen)} that must stay" if frozen else ""
        return f"{len(found)} residual {noun} that can go whole (`branches`){stay}; --all lists them"
    whole = {"params": params(graph, host)(), "macs": macs(graph, host)()}
    lines = [f"{len(found)} residual {noun} that can go whole (`branches`)"]
    width = max((len(row["name"]) for row in (*found, *({"name": one.name} for one in frozen))), default=0)
    if found:
        lines.append(f"  {'':<{width}}  {'parameters':>18}  {'MACs':>18}")
    lines += [
        f"  {row['name']:<{width}}  " + "  ".join(f"{_share(row[unit], whole[unit]):>18}" for unit in whole)
        for row in found
    ]
    return "\n".join([*lines, *(f"  {one.name:<{width}}  stays: {one.reason}" for one in frozen)])


def _share(part: float, whole: float) -> str:
    return f"{count(part)} ({part / whole:.1%})" if whole else count(part)
