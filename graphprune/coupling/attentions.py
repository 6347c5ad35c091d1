"""Attention of tokens to one another in a graph: as one op, or written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ..axes.dim import Dim, factors
from ..errors import ModelError
from ..ir.graph import Graph, Op, Value
from .token_axis import signature

SAME = ("same", "cast", "mul")
"""Functions that leave zeros where shares of attention are zero."""


@dataclass(frozen=True)
class Attention:
    """A layer of attention of all tokens to one another. ``weights``: (batch, heads, tokens, tokens), or the first two
    as one axis, where a value holds them; else what ``queries`` and ``keys`` come to, times ``scale``, behind
    a ``mask`` or none."""

    op: Op
    values: Value
    weights: Value | None = None
    queries: Value | None = None
    keys: Value | None = None
    scale: float = 1.0
    mask: Value | None = None


def attentions(graph: Graph) -> Iterator[tuple[int, Attention, Dim]]:
    """Every attention of tokens to one another, the number of its op, and the axis of its keys."""
    softmaxes = dict[Value, Value]()
    for at, op in enumerate(graph.ops):
        if op.kind == "attention":
            q, k, v = op.inputs[:3]
            assert q is not None and k is not None and v is not None
            width, given = q.dims[-1].size, op.attrs.get("scale")
            if signature(q.dims[-2]) == signature(k.dims[-2]) and isinstance(width, int) and len(q.dims) == 4:
                scale = width**-0.5 if given is None else float(given)
                mask = op.inputs[3] if len(op.inputs) > 3 else None
                yield at, Attention(op, v, None, q, k, scale, mask), k.dims[-2]
        elif op.attrs.get("function") == "softmax" and op.inputs[0] is not None:
            softmaxes[op.outputs[0]] = op.outputs[0]
        elif (before := shares(graph, op)) in softmaxes:
            softmaxes[op.outputs[0]] = softmaxes[before]
        elif op.kind == "matmul" and (weights := softmaxes.get(op.inputs[0])) is not None:  # type: ignore[arg-type]
            v, (*_, q_axis, k_axis) = op.inputs[1], (*weights.dims, Dim(0), Dim(0))[: max(len(weights.dims), 2)]
            if v is not None and len(weights.dims) == len(v.dims) > 2 and signature(q_axis) == signature(k_axis):
                yield at, Attention(op, v, weights), k_axis


def shares(graph: Graph, op: Op) -> Value | None:
    """Of which shares of attention an op makes what is zero where they are: as such, or with numbers for NaN."""
    if op.kind == "pointwise" and len(op.inputs) == 3:
        asked, number, x = op.inputs
        maker = graph.maker(asked) if asked is not None else None
        return x if maker is not None and maker.inputs == (x,) and number is not None and number.constant else None
    return op.inputs[0] if op.attrs.get("function") in SAME and op.inputs else None


def heads(x: Value, batch: Dim) -> int:
    """How many heads the first axis holds beside the batch. Raises ModelError where that is not known."""
    parts, own = (list(map(signature, factors(dim))) for dim in (x.dims[0], batch))
    rest = factors(x.dims[0])[len(own) :]
    sizes = [int(dim.size) for dim in rest if isinstance(dim.size, int)]
    if parts[: len(own)] != own or len(sizes) < len(rest):
        raise ModelError(f"how `{x.name}` holds heads and samples in one axis is not known")
    return prod(sizes)
