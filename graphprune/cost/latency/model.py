"""The latency of a network at any widths, as a target's table says it, corrected by measurements of the whole."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

from numpy.typing import NDArray

from ...axes.dim import Dim
from ...ir.facts import Groups
from ...ir.graph import Graph, Rank
from ...ir.host import Host
from ..budget import amount
from ..static import gates
from .table import Point, Table, grid
from .tabulated import Counts, Sheet
from .workload import Family, Widths, Work, works

Array = NDArray[Any]
Menus = Mapping[str, Sequence[int]]
"""The counts that each group may keep."""


@dataclass(frozen=True)
class LatencyModel:
    """What the network takes when each group keeps so many channels. ``scale`` and ``offset_ms`` carry
    the sum over ops to the whole: measured = scale * sum + offset."""

    sheet: Sheet
    whole_ms: float  # the network as it was given, measured
    target: str
    scale: float = 1.0
    offset_ms: float = 0.0

    @classmethod
    def of(
        cls,
        graph: Graph,
        host: Host,
        groups: Groups,
        table: Table,
        whole_ms: float | None,
        target: str,
        ranks: Sequence[Rank] = (),
        given: Host | None = None,
    ) -> LatencyModel:
        """The model of a network whose points are all in ``table``, scaled to the whole as measured (None:
        it could not be, the sum stands). ``ranks``: of the layers that may be whole or factored. ``given``: the network
        that is the whole, where dims were opened in this one.
        Raises DataError where a family is missing."""

        def sheet(found: Sequence[Work], dims: Mapping[str, Dim], sizes: Mapping[str, int]) -> Sheet:
            return Sheet(found, {one.family: table.surface(one.family) for one in found}, dims, sizes)

        found = sheet(works(graph, host, gates(graph, groups), ranks), {g.name: g.dim for g in groups}, host.sizes())
        total = float((found if given is None else sheet(works(given.lift(), given), {}, given.sizes())).each({}).sum())
        whole = total if whole_ms is None else whole_ms
        return cls(found, whole, target, whole / total)

    def sum(self, counts: Counts, without: Container[str] = ()) -> float:
        each = self.sheet.each(counts)
        return float(each[[work.op not in without for work in self.sheet.works]].sum() if without else each.sum())

    def total_ms(self, counts: Counts) -> float:
        """The whole network's predicted latency."""
        return self.scale * self.sum(counts) + self.offset_ms

    def us(self, lengths: Mapping[Dim, float], without: Container[str] = ()) -> float:
        """Predicted microseconds when the groups' dims keep so many positions; ``without``: ops left out."""
        counts = {name: lengths[dim] for name, dim in self.sheet.dims.items() if dim in lengths}
        return 1e3 * (self.scale * self.sum(counts, without) + self.offset_ms)

    def whole_layers(self, counts: Counts) -> frozenset[str]:
        """See Keep.whole."""
        return self.sheet.whole_layers(counts)

    def per_op(self, counts: Counts) -> dict[str, float]:
        """Milliseconds of every op, scaled like the whole; an op's parts added up."""
        out: dict[str, float] = {}
        for work, ms in zip(self.sheet.works, self.sheet.each(counts).tolist(), strict=True):
            out[work.op] = out.get(work.op, 0.0) + self.scale * ms
        return out

    def prices(self, counts: Mapping[str, int], groups: Sequence[str], options: Array) -> Array:
        """allocation.choice.Prices: the whole at each of ``options`` of one group, or of some that keep as many."""
        return self.scale * self.sheet.sums(counts, groups, options) + self.offset_ms

    def corrected(self, seen: Sequence[tuple[Counts, float]], goal_ms: float) -> LatencyModel:
        """The same, through what was measured: the line through the two points next to the goal on either side,
        else through the last and the one farthest from it; where no line rises, the last sets the scale."""
        points = [(self.sum(counts), ms) for counts, ms in seen]
        last = points[-1]
        pairs = [(last, max(points, key=lambda point: abs(point[0] - last[0])))]
        above, below = ([p for p in points if (p[1] > goal_ms) == over] for over in (True, False))
        if above and below:
            pairs.insert(0, (max(below, key=itemgetter(1)), min(above, key=itemgetter(1))))
        for (at, have), (other, ms) in pairs:
            slope = (ms - have) / (other - at) if abs(other - at) > 0.02 * at else 0.0
            if slope > 0.2 * have / at:
                return replace(self, scale=slope, offset_ms=have - slope * at)
        return replace(self, scale=last[1] / last[0], offset_ms=0.0)

    def budget_ms(self, text: str) -> float:
        """``12ms``, or ``0.6x`` of the network as it was given. Raises BudgetError for neither."""
        asked = amount(text, "latency")
        return asked.number if asked.absolute else asked.number * self.whole_ms


def points(
    graph: Graph,
    host: Host,
    groups: Groups,
    menus: Menus,
    grain: int,
    ranks: Sequence[Rank] = (),
    given: Host | None = None,
) -> list[Point]:
    """What a table must hold for a search over ``menus``, see LatencyModel.of."""
    least = {group.dim: min(menus[group.name]) for group in groups}
    found = [(work, host.sizes()) for work in works(graph, host, ranks=ranks)]
    found += [(work, given.sizes()) for work in works(given.lift(), given)] if given is not None else []
    ranges: dict[Family, list[tuple[Widths, Widths]]] = {}
    for work, sizes in found:
        low, high = work.widths(least, sizes), work.widths({}, sizes)
        pair = ((int(low[0]), max(1, round(low[1]))), (int(high[0]), max(1, round(high[1]))))
        ranges.setdefault(work.family, []).append(pair)
    return [point for family, pairs in ranges.items() for point in _grid(family, pairs, grain)]


def _grid(family: Family, found: Sequence[tuple[Widths, Widths]], grain: int) -> Iterator[Point]:
    axes = [grid(min(low[k] for low, _ in found), [high[k] for _, high in found], grain) for k in (0, 1)]
    if family.kind == "stream":
        axes = [[1], [1, 10, 100, 1000]]
    groups = family.sizes[1] if family.kind == "conv" else 0
    step = max(groups, 1)
    for a in axes[0]:
        for b in axes[1]:
            widths = (-(-a // step) * step, -(-b // step) * step) if groups else (a, b)
            yield family, widths
