"""The matrix products that ops are, in axes: multiply-accumulates and workloads are read off them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..axes.dim import Dim
from ..ir.graph import Op, Relation, Value

Dims = tuple[Dim, ...]


@dataclass(frozen=True)
class Product:
    """``rows x inner`` times ``inner x outer``, once for each of ``steps``, one after the other: the product of
    all sizes is its multiply-accumulates."""

    rows: Dims
    inner: Dims
    outer: Dims
    steps: Dims = ()


Products = Callable[[Op, Relation], Iterator[Product]]
"""What an op multiplies. Only asked where the rule could be applied: all shapes are known."""


def layer(op: Op, relation: Relation) -> Iterator[Product]:
    """(x, weight (outputs, inputs of a group, taps...)) with outputs last: linear layers."""
    y = op.outputs[0].dims
    yield Product(y[:-1], _there(op.inputs[1]).dims[1:], y[-1:])


def convolution(op: Op, relation: Relation) -> Iterator[Product]:
    """(x, weight (outputs, inputs of a group, taps...)): every output one product per tap and input."""
    y, weight = op.outputs[0].dims, _there(op.inputs[1]).dims
    channels = len(y) - len(weight) + 1
    yield Product((*y[:channels], *y[channels + 1 :]), weight[1:], (y[channels],))


def sampled(op: Op, relation: Relation) -> Iterator[Product]:
    """As a convolution whose taps are first gathered from where they lie, and then multiplied."""
    y, groups = op.outputs[0].dims, relation.dims.get("g") or Dim(op.attrs["groups"])
    yield Product((y[0], *y[2:], groups), _there(op.inputs[1]).dims[1:], (relation.dims["o"],))


def transposed(op: Op, relation: Relation) -> Iterator[Product]:
    """(x, weight (inputs, outputs of a group, taps...)): every input one product per tap and output."""
    x, weight = _there(op.inputs[0]).dims, _there(op.inputs[1]).dims
    channels = len(x) - len(weight) + 1
    yield Product((*x[:channels], *x[channels + 1 :]), (x[channels],), weight[1:])


def contraction(op: Op, relation: Relation) -> Iterator[Product]:
    """The output, once per position of every axis that is summed over."""
    y = op.outputs[0].dims
    gone = tuple(dim for name, dim in relation.dims.items() if name not in relation.outputs)
    yield Product(y[:-1], gone, y[-1:])


def einsum(op: Op, relation: Relation) -> Iterator[Product]:
    """Operand after operand, as runtimes do: what neither the others nor the output have is summed over at once."""
    names = [{name for name, at in relation.inputs.items() if k in dict(at)} for k in range(len(op.inputs))]
    out, made = set(relation.outputs), names[0]
    for k in range(1, len(names)):
        made = made | names[k]
        wanted = out.union(*names[k + 1 :])
        last = k == len(names) - 1
        stay = (
            op.outputs[0].dims
            if last
            else tuple(relation.dims[name] for name in relation.dims if name in made & wanted)
        )
        gone = tuple(relation.dims[name] for name in relation.dims if name in made - wanted)
        yield Product(stay[:-1], gone, stay[-1:])
        made = made & wanted


def grouped(op: Op, relation: Relation) -> Iterator[Product]:
    """(rows, weights (several, inputs, outputs), ends): every row times one of the weights."""
    y = op.outputs[0].dims
    yield Product(y[:-1], _there(op.inputs[1]).dims[1:2], y[-1:])


def attention(op: Op, relation: Relation) -> Iterator[Product]:
    """(q, k, v) of shapes (..., length, width): queries with keys, and those with values."""
    q, k, y = _there(op.inputs[0]).dims, _there(op.inputs[1]).dims, op.outputs[0].dims
    yield Product(q[:-1], q[-1:], (k[-2],))
    yield Product(y[:-1], (k[-2],), y[-1:])


def packed_heads(op: Op, relation: Relation) -> Iterator[Product]:
    """The same, with heads and widths in one axis: (batch, length, heads x width). Keys may be packed
    into the queries."""
    q, k = _there(op.inputs[0]), op.inputs[1] or _there(op.inputs[0])
    yield from _heads(op, relation, q.dims[:2], k.dims[1])


def own_heads(op: Op, relation: Relation) -> Iterator[Product]:
    """The same, with the projection of x to queries, keys and values by a weight before it."""
    x, weight = _there(op.inputs[0]).dims, _there(op.inputs[1]).dims
    yield Product(x[:-1], weight[:1], weight[1:])
    yield from _heads(op, relation, x[:2], x[1])


def _heads(op: Op, relation: Relation, queries: Dims, keys: Dim) -> Iterator[Product]:
    heads = tuple(relation.dims[name] for name in "hg" if name in relation.dims)
    wide, tall = (relation.dims.get(name, Dim(size)) for name, size in zip("de", op.attrs["widths"], strict=True))
    yield Product((*queries, *heads), (wide,), (keys,))
    yield Product((*queries, *heads), (keys,), (tall,))


def directions(op: Op, relation: Relation) -> Iterator[Product]:
    """(x, W, R), weights as (directions, gates, inputs): all inputs at once, states step by step."""
    x, time = _there(op.inputs[0]).dims, op.attrs["time"]
    ways, gates, inputs = _there(op.inputs[1]).dims
    yield Product((*x[:-1], ways), (inputs,), (gates,))
    yield Product((x[1 - time], ways), _there(op.inputs[2]).dims[2:], (gates,), (x[time],))


def recurrent_layers(op: Op, relation: Relation) -> Iterator[Product]:
    """(x, states..., weights...): of every layer and direction as ``directions``; and what projects its state."""
    x, time = _there(op.inputs[0]).dims[:-1], op.attrs["time"]
    rows = x if time is None else tuple(dim for axis, dim in enumerate(x) if axis != time)
    steps = () if time is None else x[time : time + 1]
    each = 2 + op.attrs["biases"] + op.attrs["projected"]
    weights = op.inputs[1 + op.attrs["states"] :]
    for first in range(0, len(weights), each):
        made, read = _there(weights[first]).dims, _there(weights[first + 1]).dims
        yield Product(x, made[1:], made[:1])
        yield Product(rows, read[1:], read[:1], steps)
        if op.attrs["projected"]:
            last = _there(weights[first + each - 1]).dims
            yield Product(rows, last[1:], last[:1], steps)


def recurrent_cell(op: Op, relation: Relation) -> Iterator[Product]:
    """(x, states..., input weight, recurrent weight): one step."""
    rows = _there(op.inputs[0]).dims[:-1]
    for weight in op.inputs[1 + op.attrs["states"] :][:2]:
        yield Product(rows, _there(weight).dims[1:], _there(weight).dims[:1])


def _there(value: Value | None) -> Value:
    assert value is not None
    return value
