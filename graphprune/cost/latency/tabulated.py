"""What every op of a network takes at any widths, as arrays. A search asks thousands of times and moves one group
at a time: widths are polynomials of how many channels the groups keep, and only what a step touches is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...axes.dim import Dim
from .table import Surface
from .workload import Family, Work

Array = NDArray[Any]
Counts = Mapping[str, float]


class Sheet:
    """Milliseconds of ``works`` by the surfaces of their families. ``dims``: the groups' axes, by name;
    ``sizes``: of dynamic symbols. Groups that are not among the counts asked for keep everything. A layer that may be
    whole or two takes the lesser of both, whole where they are equal: the works of the other take nothing."""

    def __init__(
        self,
        works: Sequence[Work],
        surfaces: Mapping[Family, Surface],
        dims: Mapping[str, Dim],
        sizes: Mapping[str, int],
    ) -> None:
        self.works, self.dims = tuple(works), dict(dims)
        families = {family: k for k, family in enumerate(dict.fromkeys(work.family for work in works))}
        self._surfaces = [surfaces[family] for family in families]
        self._family = np.array([families[work.family] for work in works], int)
        self._layers = tuple(dict.fromkeys(work.layer for work in works if work.layer))
        numbers = {layer: k for k, layer in enumerate(self._layers)}
        self._layer = np.array([numbers.get(work.layer, -1) for work in works], int)
        self._whole = np.array([work.whole for work in works], int)
        self._number = {name: k for k, name in enumerate(dims)}
        variables = {dim: Polynomial({(k,): 1.0}) for k, dim in enumerate(dims.values())}
        widths = [Polynomial.of(width) for work in works for width in work.widths(variables, sizes)]
        self._tabulate(widths, len(dims))
        self._moves: dict[tuple[int, ...], tuple[Array, ...]] = {}
        self._full = np.array([*(float(dim.size) for dim in dims.values()), 1.0])
        self._at = self._full
        everything = np.arange(len(self.works))
        self._widths = self._evaluated(everything)
        self._ms = self._taken(everything, self._widths)

    def each(self, counts: Counts) -> Array:
        """Milliseconds of every work."""
        self._move(counts)
        return self._ms

    def whole_layers(self, counts: Counts) -> frozenset[str]:
        """The layers that are whole, of those that may be two."""
        self._move(counts)
        everything = np.arange(len(self.works))
        taken = self._whole_less(everything, self._priced(everything, self._widths))
        return frozenset(layer for layer, whole in zip(self._layers, taken, strict=True) if whole)

    def sums(self, counts: Counts, groups: Sequence[str], options: Array) -> Array:
        """Milliseconds of all works with each of ``groups`` at each of ``options``."""
        self._move(counts)
        works, terms, mine, power, row = self._moving(tuple(self._number[name] for name in groups))
        at = self._at[self._factors[terms]]
        others, own = self._scale[terms] * np.where(mine, 1.0, at).prod(1), np.where(mine, at, 1.0).prod(1)
        change = others[:, None] * (np.asarray(options, float) ** power[:, None] - own[:, None])
        widths = np.repeat(self._widths[works].reshape(-1, 1), change.shape[1], 1)
        np.add.at(widths, row, change)
        moved = self._taken(works, widths.reshape(len(works), 3, -1))
        return np.asarray(self._ms.sum() - self._ms[works].sum() + moved.sum(0))

    def _moving(self, groups: tuple[int, ...]) -> tuple[Array, ...]:
        """What moves with some groups, whatever the counts: the works, the terms, which factors of these are theirs and
        how many, and the rows among the widths of those works."""
        if groups not in self._moves:
            both = (self._touched, self._holding)
            works, terms = (np.unique(np.concatenate([held[g] for g in groups])) for held in both)
            mine = np.isin(self._factors[terms], groups)
            row = np.searchsorted(works, self._row[terms] // 3) * 3 + self._row[terms] % 3
            self._moves[groups] = works, terms, mine, mine.sum(1), row
        return self._moves[groups]

    def _tabulate(self, widths: Sequence[Polynomial], groups: int) -> None:
        """The terms of all polynomials: scale, factors (of as many as the most have, filled up with a variable
        that is 1) and row; and by group the works that it touches and the terms that hold it."""
        terms = [(row, product, scale) for row, width in enumerate(widths) for product, scale in width.terms.items()]
        most = max((len(product) for _, product, _ in terms), default=0)
        self._row = np.array([row for row, _, _ in terms], int)
        self._scale = np.array([scale for _, _, scale in terms])
        filled = [[*product, *[groups] * (most - len(product))] for _, product, _ in terms]
        self._factors = np.array(filled, int).reshape(len(terms), most)
        self._holding = [np.flatnonzero((self._factors == g).any(1)) for g in range(groups)]
        self._touched = [self._with_others(np.unique(self._row[terms] // 3)) for terms in self._holding]

    def _move(self, counts: Counts) -> None:
        """To other counts: the works that they touch are priced anew."""
        at = self._full.copy()
        for name, count in counts.items():
            if name in self._number:
                at[self._number[name]] = count
        changed = np.flatnonzero(at != self._at)
        if not len(changed):
            return
        self._at = at
        works = np.unique(np.concatenate([self._touched[g] for g in changed]))
        self._widths[works] = self._evaluated(works)
        self._ms = self._ms.copy()  # whoever asked before may hold it
        self._ms[works] = self._taken(works, self._widths[works])

    def _evaluated(self, works: Array) -> Array:
        """Inner width, outer width and repetitions of some works."""
        chosen = np.zeros(len(self.works), bool)
        chosen[works] = True
        terms = np.flatnonzero(chosen[self._row // 3])
        values = self._scale[terms] * self._at[self._factors[terms]].prod(1)
        return np.bincount(self._row[terms], values, 3 * len(self.works)).reshape(-1, 3)[works]

    def _with_others(self, works: Array) -> Array:
        """Some works with all of the layers that they are of."""
        layers = self._layer[works]
        return np.union1d(works, np.flatnonzero(np.isin(self._layer, layers[layers >= 0])))

    def _taken(self, works: Array, widths: Array) -> Array:
        """As ``_priced``, nothing of what is not chosen. Of a layer all works are there, or none."""
        ms, layer = self._priced(works, widths), self._layer[works]
        own = layer >= 0
        if own.any():
            chosen = self._whole[works][own].reshape(-1, *[1] * (ms.ndim - 1))
            ms[own] *= self._whole_less(works, ms)[layer[own]] == chosen
        return ms

    def _whole_less(self, works: Array, ms: Array) -> Array:
        """Of every layer whether it takes no longer whole."""
        own = self._layer[works] >= 0
        sums = np.zeros((len(self._layers), 2, *ms.shape[1:]))
        np.add.at(sums, (self._layer[works][own], self._whole[works][own]), ms[own])
        return np.asarray(sums[:, 1] <= sums[:, 0])

    def _priced(self, works: Array, widths: Array) -> Array:
        """Milliseconds of works at ``widths``: one of each, or one for each option."""
        out = np.zeros((len(works), *widths.shape[2:]))
        family = self._family[works]
        for k in np.unique(family):
            own = np.flatnonzero(family == k)
            inner, outer, times = np.moveaxis(widths[own], 1, 0)
            out[own] = self._surfaces[k](inner, outer) * times
        return out


@dataclass(frozen=True)
class Polynomial:
    """The scale of every product of variables (their numbers, rising; a number twice is a square)."""

    terms: Mapping[tuple[int, ...], float]

    @classmethod
    def of(cls, value: float | Polynomial) -> Polynomial:
        return value if isinstance(value, Polynomial) else cls({(): float(value)})

    def __add__(self, other: float | Polynomial) -> Polynomial:
        out = dict(self.terms)
        for product, scale in Polynomial.of(other).terms.items():
            out[product] = out.get(product, 0.0) + scale
        return Polynomial(out)

    def __mul__(self, other: float | Polynomial) -> Polynomial:
        out: dict[tuple[int, ...], float] = {}
        for first, scale in self.terms.items():
            for second, more in Polynomial.of(other).terms.items():
                product = tuple(sorted(first + second))
                out[product] = out.get(product, 0.0) + scale * more
        return Polynomial(out)

    def __truediv__(self, number: float) -> Polynomial:
        return Polynomial({product: scale / number for product, scale in self.terms.items()})

    __radd__, __rmul__ = __add__, __mul__
