"""Which positions of an axis survive, in which order, and which leaves have part in a position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dim import LEAF, SUM, Dim, Size, _factors, _fold, _terms, find

Indices = NDArray[np.intp]


class Index:
    """Which old positions of an axis survive, and in which order: mask, slice and reorder in one.

    ``keep`` gives an ordered list per leaf; a subset is a prune, a permutation a reorder. ``number`` tells what an
    open size comes to, where an axis that has one among its factors is asked for.
    """

    def __init__(self, keep: Mapping[Dim, Indices], number: Callable[[Size], int] | None = None) -> None:
        self._keep = {find(dim): np.ascontiguousarray(kept, dtype=np.intp) for dim, kept in keep.items()}
        self._number = number
        self._done: dict[int, Indices] = {}
        self._touched: dict[int, bool] = {}

    def __call__(self, dim: Dim) -> Indices:
        """Ordered indices into the original axis. Its size must be static, or told."""
        return _fold(dim, self._compute, self._done)

    def touches(self, dim: Dim) -> bool:
        """Whether any leaf of ``dim`` is listed."""
        return _fold(dim, lambda part, kids: part in self._keep if part.kind == LEAF else any(kids), self._touched)

    def cut(self, array: NDArray[Any], dims: Sequence[Dim], but: int | None = None) -> NDArray[Any]:
        """What of an array survives that has ``dims`` as its axes; axis ``but`` stays whole."""
        for axis, dim in enumerate(dims):
            if axis != but and self.touches(dim):
                array = array.take(self(dim), axis)
        return array

    def length(self, dim: Dim) -> Size:
        """The new size of the axis; a dynamic one keeps its symbol."""
        dim = find(dim)
        return dim.size if isinstance(dim.size, str) else len(self(dim))

    def _compute(self, dim: Dim, parts: list[Indices]) -> Indices:
        if dim.kind == LEAF:
            return self._keep[dim] if dim in self._keep else np.arange(self._size(dim))
        sizes = [self._size(kid) for kid in dim.kids]
        if dim.kind == SUM:
            offsets = accumulate(sizes[:-1], initial=0)
            return np.concatenate([part + offset for offset, part in zip(offsets, parts, strict=True)])
        out = parts[0]
        for size, part in zip(sizes[1:], parts[1:], strict=True):
            out = (out[:, None] * size + part[None, :]).ravel()
        return out

    def _size(self, dim: Dim) -> int:
        return self._number(find(dim).size) if self._number else _static(dim)


def _static(dim: Dim) -> int:
    size = find(dim).size
    assert isinstance(size, int), size
    return size


def coordinates(dim: Dim, leaf: Dim) -> Indices:
    """For each position of ``dim`` its index in ``leaf``, or -1 where ``leaf`` has no part in it.

    A leaf that occurs more than once in a product (a diagonal) reports its first occurrence.
    """
    out = np.full(_static(dim), -1)
    at, index = shares(dim).get(find(leaf), (np.arange(0), np.arange(0)))
    out[at] = index
    return out


def shares(dim: Dim) -> dict[Dim, tuple[Indices, Indices]]:
    """For each leaf of ``dim`` the positions that it has part in, and its index at each; all leaves at
    once, as a wide concat has many. See ``coordinates``."""
    dim = find(dim)
    if dim.kind == LEAF:
        return {dim: (np.arange(_static(dim)), np.arange(_static(dim)))}
    found: dict[Dim, list[tuple[Indices, Indices]]] = {}
    if dim.kind == SUM:
        offset = 0
        for term in _terms([dim]):
            for leaf, (at, index) in shares(term).items():
                found.setdefault(leaf, []).append((at + offset, index))
            offset += _static(term)
        return {leaf: _joined(each) for leaf, each in found.items()}
    factors = _factors([dim])
    whole = np.arange(_static(dim)).reshape([_static(factor) for factor in factors])
    out: dict[Dim, tuple[Indices, Indices]] = {}
    for axis, factor in enumerate(factors):
        for leaf, (at, index) in shares(factor).items():
            taken = np.moveaxis(whole.take(at, axis), axis, -1)
            pair = (taken.ravel(), np.broadcast_to(index, taken.shape).ravel())
            out[leaf] = _either(out[leaf], pair) if leaf in out else pair
    return out


def _joined(pairs: Sequence[tuple[Indices, Indices]]) -> tuple[Indices, Indices]:
    return np.concatenate([at for at, _ in pairs]), np.concatenate([index for _, index in pairs])


def _either(first: tuple[Indices, Indices], second: tuple[Indices, Indices]) -> tuple[Indices, Indices]:
    """Both, and where both speak of a position, the first."""
    more = ~np.isin(second[0], first[0])
    return _joined([first, (second[0][more], second[1][more])])
