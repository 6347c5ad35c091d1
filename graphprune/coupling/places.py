"""Where in a network a dim lies: in the residual stream, in attention, or within a branch."""

from __future__ import annotations

from collections.abc import Iterator

from ..axes.dim import Dim, leaves
from ..ir.graph import Graph, Op
from .branches import adds, attends
from .routes import experts

PLACES = ("stream", "heads", "widths", "experts", "inner")
"""The channels of sums of branches; heads of attention, and their widths; experts of a mixture; all others."""


def places(graph: Graph) -> dict[Dim, str]:
    """Of every leaf that is not ``inner``, which of the others it is. What attends is no stream for being added:
    rotary embeddings are sums too."""
    found = {leaf: "stream" for op in graph.ops if adds(op) for dim in op.outputs[0].dims for leaf in leaves(dim)}
    for op in graph.ops:
        if attends(op, graph):
            found |= dict(_attention(graph, op))
    return found | dict.fromkeys(experts(graph), "experts")


def _attention(graph: Graph, op: Op) -> Iterator[tuple[Dim, str]]:
    """Heads are in both operands and the result; what is contracted, or makes the result, is a width."""
    relation = graph.relations[op.name]
    for name, dim in relation.dims.items():
        if "attention" in op.kind:
            heads = name in ("h", "g")
            if not heads and name not in ("d", "e"):
                continue
        else:
            heads = {0, 1} <= {k for k, _ in relation.inputs.get(name, ())} and name in relation.outputs
        yield from ((leaf, "heads" if heads else "widths") for leaf in leaves(dim))
