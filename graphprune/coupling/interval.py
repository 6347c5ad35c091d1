"""Intervals of numpy arrays: what a tensor lies between, position by position, whatever it is computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from ..ir.host import Array

ROUNDING = 1e-5
"""How far a sum of products may come out of its interval, relative to the sum of their sizes: float32's."""


@dataclass(frozen=True)
class Interval:
    """``lo <= x <= hi`` at every position, float64. An axis of length one stands for all positions of an axis
    of any length: the bounds hold at each."""

    lo: Array
    hi: Array

    @classmethod
    def of(cls, array: Array) -> Self:
        """A tensor that is known."""
        exact: Array = np.asarray(array).astype(np.float64)
        return cls(exact, exact)

    @classmethod
    def between(cls, lo: float, hi: float, rank: int) -> Self:
        return cls(np.full((1,) * rank, lo), np.full((1,) * rank, hi))

    @classmethod
    def anything(cls, rank: int) -> Self:
        return cls.between(-np.inf, np.inf, rank)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.lo.shape

    @property
    def constant(self) -> Array:
        """Where it is one number."""
        found: Array = np.isfinite(self.lo) & (self.lo == self.hi)
        return found

    @property
    def zero(self) -> Array:
        found: Array = (self.lo == 0) & (self.hi == 0)
        return found

    def moved(self, move: Callable[[Array], Array]) -> Interval:
        """The same positions elsewhere."""
        return Interval(move(self.lo), move(self.hi))

    def collapsed(self, axes: Sequence[int]) -> Interval:
        """What holds at all positions of ``axes``."""
        axes = tuple(axis for axis in axes if self.shape[axis] > 1)
        return Interval(self.lo.min(axes, keepdims=True), self.hi.max(axes, keepdims=True)) if axes else self

    def along(self, axis: int, size: int) -> Interval:
        """What holds at each of the ``size`` positions of one axis, as vectors."""
        flat = self.collapsed([k for k in range(len(self.shape)) if k != axis])
        return flat.moved(lambda x: np.broadcast_to(x.ravel(), (size,)))

    def with_zero(self) -> Interval:
        """Or zero, as at the border of what is padded."""
        return Interval(np.minimum(self.lo, 0), np.maximum(self.hi, 0))

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.lo + other.lo, self.hi + other.hi)

    def __neg__(self) -> Interval:
        return Interval(-self.hi, -self.lo)

    def __mul__(self, other: Interval) -> Interval:
        corners = np.stack([times(a, b) for a in (self.lo, self.hi) for b in (other.lo, other.hi)])
        return Interval(corners.min(0), corners.max(0))

    def known(self) -> Interval:
        """Without what is not a number: nothing is known there."""
        lost = np.isnan(self.lo) | np.isnan(self.hi)
        return Interval(np.where(lost, -np.inf, self.lo), np.where(lost, np.inf, self.hi)) if lost.any() else self


def times(a: Array, b: Array) -> Array:
    """The product of bounds: no finite number times zero is anything but zero, so an infinite bound is not."""
    a, b = np.broadcast_arrays(a, b)
    out: Array = np.where((a == 0) | (b == 0), 0.0, np.multiply(a, b, where=(a != 0) & (b != 0), out=np.zeros(a.shape)))
    return out


def contracted(weight: Array, x: Interval) -> Interval:
    """Of sums over inputs and taps: weight (groups, outputs, inputs, taps), x (groups * inputs); the result
    (groups * outputs). Exact where all that reaches an output is zero, or one number."""
    groups, _, inputs, _ = weight.shape
    up, down = np.maximum(weight, 0).sum(-1), np.minimum(weight, 0).sum(-1)  # groups, outputs, inputs
    lo, hi = (bound.reshape(groups, inputs, 1) for bound in (x.lo, x.hi))
    low, low_slack = _sum(up, lo, down, hi)
    high, high_slack = _sum(up, hi, down, lo)
    same = low == high  # sums of floats never fall where a term rises: only the sum at the bound is rounded
    return Interval(
        np.where(same, low, np.where(np.isnan(low), -np.inf, low - low_slack)),
        np.where(same, high, np.where(np.isnan(high), np.inf, high + high_slack)),
    )


def _sum(up: Array, a: Array, down: Array, b: Array) -> tuple[Array, Array]:
    """up @ a + down @ b, not a number where a bound that counts is infinite, and what rounding makes of it."""
    finite = [np.where(np.isfinite(bound), bound, 0) for bound in (a, b)]
    total = up @ finite[0] + down @ finite[1]
    lost = (up > 0) @ np.isinf(a) | (down < 0) @ np.isinf(b)
    slack = ROUNDING * (up @ np.abs(finite[0]) - down @ np.abs(finite[1]))
    return np.where(lost, np.nan, total).ravel(), slack.ravel()


def ranked(x: Interval, rank: int) -> Interval:
    """With axes of length one before its own, as broadcasting has it."""
    return x.moved(lambda bound: bound.reshape((1,) * (rank - bound.ndim) + bound.shape))


def monotone(function: Callable[[Array], Array]) -> Callable[[Interval], Interval]:
    """A function that never falls, of an interval."""
    return lambda x: Interval(function(x.lo), function(x.hi))


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        out: Array = 1 / (1 + np.exp(-x))
    return out


def _abs(x: Interval) -> Interval:
    ends = np.abs(x.lo), np.abs(x.hi)
    return Interval(np.where((x.lo <= 0) & (x.hi >= 0), 0.0, np.minimum(*ends)), np.maximum(*ends))


FUNCTIONS: dict[str, Callable[[Interval], Interval]] = {
    "same": lambda x: x,
    "relu": monotone(lambda x: np.maximum(x, 0)),
    "sigmoid": monotone(_sigmoid),
    "tanh": monotone(np.tanh),
    "softplus": monotone(lambda x: np.logaddexp(x, 0)),
    "abs": _abs,
    "square": lambda x: Interval(*(np.square(bound) for bound in (_abs(x).lo, _abs(x).hi))),
    "neg": lambda x: -x,
}
"""Of one operand, by the attribute ``function`` of a pointwise op."""

BINARY: dict[str, Callable[[Interval, Interval], Interval]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a + -b,
    "mul": lambda a, b: a * b,
    "max": lambda a, b: Interval(np.maximum(a.lo, b.lo), np.maximum(a.hi, b.hi)),
    "min": lambda a, b: Interval(np.minimum(a.lo, b.lo), np.minimum(a.hi, b.hi)),
}
"""Of two."""
