"""Intervals through ops that look at windows or axes of one tensor, or move data about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from ..axes.dim import Dim, factors, find
from ..ir.graph import Op
from .interval import Interval, ranked

Move = Callable[[Op, Sequence[Interval]], "Interval | Sequence[Interval] | None"]
"""Bounds of the result or results of an op, from those of its operands; None: it can be anything."""

MOVES: dict[str, Move] = {}
"""By kind; operands are all there, and of known rank."""


def step(*kinds: str) -> Callable[[Move], Move]:
    def enter(function: Move) -> Move:
        MOVES.update(dict.fromkeys(kinds, function))
        return function

    return enter


@step("pool", "resize")
def _pool(op: Op, operands: Sequence[Interval]) -> list[Interval] | None:
    """Windows: one of the numbers in them, their mean, or that with the zeros beside them."""
    x = operands[0]
    function, rank = op.attrs.get("function"), len(x.shape)
    x = x.collapsed(range(rank - op.attrs["spatial"], rank))
    if function in ("max", "mean"):
        return [x]
    return [x.with_zero()] if function == "padded_mean" else None


@step("reduce")
def _reduce(op: Op, operands: Sequence[Interval]) -> list[Interval] | None:
    x, function = operands[0], op.attrs.get("function")
    rank = len(x.shape)
    gone = sorted({axis % rank for axis in op.attrs["axes"]} or set(range(rank)))
    if function not in ("max", "mean", "min", "sum"):
        return None
    x = x.collapsed(gone)
    if function == "sum":  # of any number of them
        x = Interval(np.where(x.lo >= 0, x.lo, -np.inf), np.where(x.hi <= 0, x.hi, np.inf))
    return [x if op.attrs.get("keepdim") else x.moved(lambda bound: bound.squeeze(tuple(gone)))]


@step("along")
def _along(op: Op, operands: Sequence[Interval]) -> Interval | None:
    return Interval.between(0.0, 1.0, len(operands[0].shape)) if op.attrs.get("function") == "softmax" else None


# ---- what moves data ---------------------------------------------------------------------------------------


@step("transpose")
def _transpose(op: Op, operands: Sequence[Interval]) -> Interval:
    return operands[0].moved(lambda bound: bound.transpose(op.attrs["perm"]))


@step("expand")
def _expand(op: Op, operands: Sequence[Interval]) -> Interval:
    return ranked(operands[0], len(op.outputs[0].dims))


@step("concat")
def _concat(op: Op, operands: Sequence[Interval]) -> Interval | None:
    rank = len(op.outputs[0].dims)
    axis = op.attrs["axis"] % rank
    sizes = [(value.shape or ())[axis] for value in op.inputs if value is not None]
    if any(isinstance(n, str) for n in sizes) or any(len(box.shape) != rank for box in operands):
        return None
    whole = np.broadcast_shapes(*(_but(box.shape, axis, 1) for box in operands))
    parts = [
        box.moved(lambda bound, n=n: np.broadcast_to(bound, _but(whole, axis, int(n))))  # type: ignore[misc]
        for box, n in zip(operands, sizes, strict=True)
    ]
    return Interval(*(np.concatenate([getattr(part, end) for part in parts], axis) for end in ("lo", "hi")))


@step("split")
def _split(op: Op, operands: Sequence[Interval]) -> list[Interval] | None:
    x = operands[0]
    axis = op.attrs["axis"] % len(x.shape)
    if x.shape[axis] == 1:
        return [x] * len(op.outputs)
    sizes = [(value.shape or ())[axis] for value in op.outputs]
    if any(isinstance(n, str) for n in sizes) or sum(map(int, sizes)) != x.shape[axis]:
        return None
    ends = np.cumsum([int(n) for n in sizes])
    return [_taken(x, axis, slice(end - int(n), end)) for end, n in zip(ends, sizes, strict=True)]


@step("slice")
def _slice(op: Op, operands: Sequence[Interval]) -> Interval:
    x = operands[0]
    for axis, start, end, by in zip(*(op.attrs[key] for key in ("axes", "starts", "ends", "steps")), strict=True):
        axis %= len(x.shape)
        if x.shape[axis] > 1 and isinstance(start, int) and isinstance(end, int):
            x = _taken(x, axis, slice(start, end, by))
        else:
            x = x.collapsed([axis])
    return x


@step("select", "unbind")
def _select(op: Op, operands: Sequence[Interval]) -> list[Interval]:
    x = operands[0]
    axis = op.attrs["axis"] % len(x.shape)
    return [x.collapsed([axis]).moved(lambda bound: bound.squeeze(axis))] * len(op.outputs)


@step("reshape")
def _reshape(op: Op, operands: Sequence[Interval]) -> Interval | None:
    """The factors that the axes are made of stay; they are told apart where they were."""
    x, before, after = operands[0], op.inputs[0], op.outputs[0].dims
    assert before is not None
    old = [(part, n > 1) for n, dim in zip(x.shape, before.dims, strict=True) for part in factors(dim)]
    new = [factors(dim) for dim in after]
    if [id(part) for part, _ in old] != [id(part) for parts in new for part in parts]:
        return None
    flat = [_size(part) if apart else 1 for part, apart in old]
    left = iter(old)
    whole, shape = [], []
    for parts in new:  # an axis of which one factor is told apart is told apart itself
        mine = [next(left) for _ in parts]
        known = any(one for _, one in mine)
        if known and not all(isinstance(part.size, int) for part, _ in mine):
            return None
        sizes = [_size(part) if known else 1 for part, _ in mine]
        whole += sizes
        shape.append(prod(sizes))
    return x.moved(lambda bound: np.broadcast_to(bound.reshape(flat), whole).reshape(shape))


def _size(dim: Dim) -> int:
    size = find(dim).size
    return size if isinstance(size, int) else 1


def _but(shape: Sequence[int], axis: int, n: int) -> tuple[int, ...]:
    return tuple(n if k == axis else one for k, one in enumerate(shape))


def _taken(x: Interval, axis: int, at: Any) -> Interval:
    where = tuple(at if k == axis else slice(None) for k in range(len(x.shape)))
    return x.moved(lambda bound: bound[where])
