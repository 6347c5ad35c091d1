"""The network as its layers, before and after: what the report draws from left to right."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from ..axes.dim import Dim
from ..axes.index import shares
from ..cost.static import length_of, products, samples, trained
from ..ir.facts import Groups
from ..ir.graph import Graph, Op
from ..ir.host import Host
from ..ir.program import Program
from ..ops.traits import traits

Times = tuple[Mapping[str, float], Mapping[str, float]]
"""Milliseconds by op, before and after."""


def layers(source: Program, result: Program, times: Times | None = None) -> dict[str, Any]:
    """Plain data: ``layers``, the ops of ``source`` that multiply or hold weights, and those that join branches, in
    order of execution; ``edges``, pairs of their numbers: what one makes the other reads, other ops in between left
    out. Of a layer its op, name, kind, module, and channels, parameters, MACs (a sample) and, where ``times`` has it,
    ``ms`` as pairs before and after; after is zero for one that went. What scales and shifts a layer's outputs (a
    BatchNorm) counts as part of it."""
    after = {op.name: op for op in result.graph.ops}
    came: dict[str, frozenset[int]] = {}  # value -> the layers that it comes from
    shown: list[dict[str, Any]] = []
    edges: list[tuple[int, int]] = []
    mine, theirs = _Side(source.graph, source.host), _Side(result.graph, result.host)
    for op in source.graph.ops:
        reads = [came[value.name] for value in op.inputs if value is not None and value.name in came]
        before = frozenset[int]().union(*reads)
        own = mine.of(op)
        left = theirs.of(after[op.name]) if op.name in after else dict.fromkeys(own, 0)
        if own["params"] and not own["macs"] and len(before) == 1:
            pair = shown[next(iter(before))]["params"]
            pair[:] = pair[0] + own["params"], pair[1] + left["params"]
        elif own["macs"] or own["params"] or len(set(reads) - {frozenset()}) > 1:
            edges += [(k, len(shown)) for k in sorted(before)]
            module, _, name = _path(op, source.graph).rpartition(".")
            pairs: dict[str, list[Any]] = {key: [value, left[key]] for key, value in own.items()}
            if times and op.name in times[0]:
                pairs["ms"] = [times[0][op.name], times[1].get(op.name, 0.0)]
            shown.append({"op": op.name, "name": name, "module": module, "kind": op.kind, **pairs})
            before = frozenset((len(shown) - 1,))
        came.update(dict.fromkeys((out.name for out in op.outputs), before))
    return {"layers": shown, "edges": edges}


def _path(op: Op, graph: Graph) -> str:
    """What people call a layer: by its place in the class, by its node, and where files number their nodes by its
    weight."""
    own = op.origin or op.name
    if any(map(str.isalpha, own)):
        return own
    weights = [value.name for value in op.inputs if value is not None and value.name in graph.parameters]
    return weights[0].removesuffix(".weight") if weights else own


def kinds(source: Program, result: Program, times: Times) -> list[dict[str, Any]]:
    """The same milliseconds by kind of op, what takes longest first: plain data."""
    found: dict[str, list[float]] = {}
    for k, program in enumerate((source, result)):
        for op in program.graph.ops:
            if (ms := times[k].get(op.name)) is not None:
                found.setdefault(op.kind, [0.0, 0.0])[k] += ms
    order = sorted(found, key=lambda kind: (-max(found[kind]), kind))
    return [{"kind": kind, "ms": found[kind]} for kind in order]


def channels(source: Program, groups: Groups) -> dict[str, list[dict[str, Any]]]:
    """By op of a layer, whose channels it makes, in the order of its axis: the ``group``, or why they are ``frozen``,
    and how many they are."""
    mine = {group.dim: group.name for group in groups.channels}
    found = {}
    for op in source.graph.ops:
        dim = _channel_dim(op)
        if dim is not None and isinstance(dim.size, int):
            found[op.name] = [
                {"group": mine.get(leaf), "frozen": leaf.frozen if leaf not in mine else None, "count": len(at)}
                for leaf, (at, _) in shares(dim).items()
            ]
    return found


def _channel_dim(op: Op) -> Dim | None:
    dims = op.outputs[0].dims if op.outputs else ()
    return dims[1 if traits(op).spatial and len(dims) > 1 else -1] if dims else None


class _Side:
    """The sizes of one of the two networks."""

    def __init__(self, graph: Graph, host: Host) -> None:
        self._graph, self._host = graph, host
        self._sizes: Mapping[str, int] = host.sizes()
        self._samples = samples(graph, host)
        self._seen: set[str] = set()  # weights that several ops share are those of the first

    def of(self, op: Op) -> dict[str, int]:
        own = [v for v in trained(op, self._graph) if v.name not in self._seen]
        self._seen.update(v.name for v in own)
        terms = [(*one.rows, *one.outer, *one.inner, *one.steps) for one in products(op, self._graph)]
        return {
            "channels": self._channels(op),
            "params": sum(prod(self._length(dim) for dim in v.dims) for v in own),
            "macs": sum(prod(map(self._length, term)) for term in terms) // self._samples,
        }

    def _channels(self, op: Op) -> int:
        dim = _channel_dim(op)
        return 1 if dim is None else self._length(dim)

    def _length(self, dim: Any) -> int:
        return int(length_of(dim, {}, self._sizes))
