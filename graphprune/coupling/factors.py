"""Two weights, one after the other, in the place of one; or one before several that read the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.host import Array
from ..ir.large import Room
from .contractions import Contraction

Within = tuple[bool, ...]
"""Of a convolution's spatial axes: whether the first of its two has the taps along each."""


@dataclass(frozen=True)
class Factors:
    """``outers``, by op name, times ``inner`` are the weights of these ops; all are laid out as those are, float64.
    ``values``: the singular value of each rank, falling: its square is what leaving the rank out costs, the mean
    squared change of the outputs."""

    inner: Array
    outers: Mapping[str, Array]
    values: Array

    def put(self, room: Room) -> Factors:
        """The same in temporary files."""
        return Factors(room.put(self.inner), {name: room.put(own) for name, own in self.outers.items()}, self.values)


def within(layer: Contraction, inner: Array) -> Within:
    """Where the taps are. See ``Within``."""
    spatial = zip(inner.shape[2:], layer.weight_shape[2:], strict=True)
    return tuple(mine == whole for mine, whole in spatial)


def matrix(weight: Array, first: Within) -> Array:
    """A weight (outputs, inputs, *taps) as (outputs and the taps of the second, inputs and the taps of the first)."""
    rows = [0, *(2 + k for k, own in enumerate(first) if not own)]
    columns = [1, *(2 + k for k, own in enumerate(first) if own)]
    made = weight.transpose(rows + columns)
    return made.reshape(int(np.prod([weight.shape[k] for k in rows])), -1)


def parts(
    outer: Array, inner: Array, layer: Contraction, first: Within, outputs: int, inputs: int
) -> tuple[Array, Array]:
    """Two matrices of which the product is ``matrix`` of a weight, as weights of two ops: outer, inner."""
    taps = layer.weight_shape[2:] if layer.op.kind == "conv" else ()
    rank = len(inner)
    mine = [n if own else 1 for n, own in zip(taps, first, strict=True)]
    theirs = [1 if own else n for n, own in zip(taps, first, strict=True)]
    second = np.moveaxis(outer.reshape(outputs, *theirs, rank), -1, 1)
    made = second, inner.reshape(rank, inputs, *mine)
    if layer.transposed:
        made = second.T, inner.T
    return np.ascontiguousarray(made[0]), np.ascontiguousarray(made[1])


def product(layer: Contraction, inner: Array, outer: Array) -> Array | None:
    """The weight that factors stand for, (outputs, inputs, *taps); None where their shapes are none of its."""
    shape = layer.weight_shape
    if layer.transposed:
        inner, outer, shape = inner.T, outer.T, shape[::-1]
    if not inner.ndim == outer.ndim == len(shape) or len(inner) != outer.shape[1]:
        return None
    if (outer.shape[0], inner.shape[1]) != shape[:2]:
        return None
    first = within(layer, inner)
    expected = [(n, 1) if own else (1, n) for n, own in zip(shape[2:], first, strict=True)]
    if expected != list(zip(inner.shape[2:], outer.shape[2:], strict=True)):
        return None
    made = np.moveaxis(outer, 1, -1).reshape(-1, len(inner)) @ inner.reshape(len(inner), -1)
    return _weight(made, shape, first)


def _weight(made: Array, shape: Sequence[int], first: Within) -> Array:
    """The inverse of ``matrix``."""
    axes = [0, *(2 + k for k, own in enumerate(first) if not own), 1, *(2 + k for k, own in enumerate(first) if own)]
    weight: Array = made.reshape([shape[k] for k in axes]).transpose(np.argsort(axes))
    return weight
