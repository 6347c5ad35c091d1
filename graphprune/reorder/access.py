"""The menu: in how many ways a reader can get its channels, and what each costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from ..axes.dim import Dim
from ..axes.index import Indices
from ..cost.latency.model import LatencyModel
from ..cost.static import macs
from ..ir.facts import Group, Groups
from ..ir.program import Program
from .copy_costs import Prices
from .reindex import ends, is_run, located, reindexes, runs, sources
from .segments import Lists, Segments, Taker

MENU = ("view", "gather", "widen", "duplicate", "sink", "constrain")
WIDER = ("widen", "constrain")


@dataclass(frozen=True)
class Choice:
    """How one taker gets its channels. ``moved_bytes``: what is copied for it. ``own``: its list where it
    takes more than it asked for, ``blank`` the channels of it that count for nothing."""

    how: str  # all, view, load, gather, widen, constrain, sink, pad, scatter
    us: float
    moved_bytes: float
    own: Indices | None = None
    blank: Indices | None = None
    runs: int = 1  # of a sink: see facts.Order


@dataclass(frozen=True)
class Layout:
    """An order of every block, and a choice for every taker."""

    keep: Mapping[str, Indices]
    choices: Mapping[str, Choice]
    concat_bytes: Mapping[str, float]  # written by each op that concatenates
    concat_us: Mapping[str, float]

    def us(self, takers: Sequence[Taker], concats: Sequence[str]) -> float:
        own = sum(self.choices[taker.op.name].us for taker in takers)
        return own + sum(self.concat_us.get(name, 0.0) for name in concats)


@dataclass(frozen=True)
class Pricing:
    """What choices cost for one set of segments on one target."""

    segments: Segments
    prices: Prices
    computing: Callable[[Mapping[Dim, float]], float]  # microseconds at so many positions of every leaf

    @classmethod
    def of(cls, program: Program, lists: Lists, prices: Prices) -> Pricing:
        """Computing is priced by the target's latency table where the program knows one, else by
        multiply-accumulates; what selections cost is the choice's own, and in neither."""
        segments = Segments(program, program.fact(Groups), lists)
        if program.knows(LatencyModel):
            moves = frozenset(op.name for op in reindexes(program.graph))
            return cls(segments, prices, partial(program.fact(LatencyModel).us, without=moves))
        cost = macs(program.graph, program.host)
        return cls(segments, prices, lambda lengths: cost(lengths) * segments.batch / 1e6 * prices.mac)

    def lengths(self, keep: Lists) -> dict[Dim, float]:
        return {group.dim: float(len(keep[group.name])) for group in self.segments.by_leaf.values()}

    def compute_us(self, keep: Lists) -> float:
        """Microseconds of computing when groups keep those lists."""
        return self.computing(self.lengths(keep))

    def layout(
        self,
        order: Mapping[str, Sequence[int]],
        menu: Sequence[str],
        sinks: frozenset[str],
        tight: frozenset[str] = frozenset(),
    ) -> Layout:
        """The cheapest choice for every taker; those in ``tight`` take no more than they asked for."""
        keep = self.segments.ordered(order)
        index, choices = self.segments.index(keep), dict[str, Choice]()
        for taker in self.segments.takers:
            before, after = ends(taker.op)
            given, wanted = index(before), index(after)
            allowed = [item for item in menu if item not in WIDER] if taker.op.name in tight else menu
            options = self._options(taker, given, wanted, allowed, taker.op.name in sinks)
            choices[taker.op.name] = min(options, key=lambda choice: choice.us)
        kept = {**keep, **dict(self._widened(choices))}
        concat = dict(self._concats(kept, sinks))
        price = {name: self.prices.moved("concat", size) for name, size in concat.items()}
        return Layout(kept, choices, concat, price)

    def _widened(self, choices: Mapping[str, Choice]) -> Iterator[tuple[str, Indices]]:
        for taker in self.segments.takers:
            own = choices[taker.op.name].own
            if taker.own is not None and own is not None:
                yield taker.own.name, own

    def _options(self, taker: Taker, given: Indices, wanted: Indices, menu: Sequence[str], sunk: bool) -> list[Choice]:
        at = located(given, wanted)
        if len(at) == len(given) and is_run(at):
            return [Choice("all", 0.0, 0.0)]
        if taker.fills:
            return list(self._fill(taker, given, wanted, menu))
        if sunk:
            return [self._sink(taker, at)]
        if self.prices.loads and taker.loads and taker.inner == 1:
            return [Choice("load", 0.0, 0.0)]
        options, size = list[Choice](), len(at) * taker.bytes_each
        if is_run(at) and "view" in menu:
            options.append(Choice("view", *self._run(taker, size)))
        if taker.own is not None and not self._shared(taker) and len(np.unique(given)) == len(given):
            spans = {"widen": (int(at.min()), int(at.max()) + 1), "constrain": (0, len(given))}
            options += [self._widen(taker, given, at, *span) for item, span in spans.items() if item in menu]
        if "gather" in menu or not options:
            options.append(Choice("gather", self.prices.moved("gather", size), size))
        return options

    def _widen(self, taker: Taker, given: Indices, at: Indices, start: int, stop: int) -> Choice:
        assert taker.own is not None
        extra = (stop - start - len(at)) // taker.inner
        whole = stop - start == len(given)
        size = (stop - start) * taker.bytes_each
        run, copied = (0.0, 0.0) if whole else self._run(taker, size)
        own = given[start : stop : taker.inner] // taker.inner
        blank = np.setdiff1d(own, self.segments.keep[taker.own.name])
        return Choice("constrain" if whole else "widen", run + self.more(taker.own, extra), copied, own, blank)

    def _run(self, taker: Taker, size_bytes: float) -> tuple[float, float]:
        """What a run costs, and the bytes of it that are copied."""
        free = self.prices.free(self.segments.batch, taker.fuses)
        return self.prices.run(size_bytes, self.segments.batch, taker.fuses), 0.0 if free else size_bytes

    def _sink(self, taker: Taker, at: Indices) -> Choice:
        """Runs go into the concatenation as they are, or what is taken of one part is gathered first."""
        cut, start = [], 0
        for size in self.parts(taker):
            mine = at[(at >= start) & (at < start + size)]
            if 0 < len(mine) < size:
                cut.append((len(runs(mine)), len(mine) * taker.bytes_each))
            start += size
        options = sorted({1, *(count for count, _ in cut)})
        return min((self._sunk(cut, most) for most in options), key=lambda choice: choice.us)

    def _sunk(self, cut: Sequence[tuple[int, float]], most: int) -> Choice:
        us = moved = 0.0
        for count, size_bytes in cut:
            if count > most:
                us += self.prices.moved("gather", size_bytes)
                moved += size_bytes
            else:  # a view need not be contiguous to be concatenated
                us += count * self.prices.run(size_bytes / count, 1, True)
                moved += 0.0 if self.prices.free(1, True) else size_bytes
        return Choice("sink", us, moved, runs=most)

    def parts(self, taker: Taker) -> list[int]:
        """The lengths of what a concatenation before a taker is made of."""
        found = []
        for op, operand in sources(taker.op.inputs[0], taker.op.attrs["axis"], self.segments.program.graph):
            value = op.inputs[operand]
            assert value is not None
            found.append(len(self._lengths(value.dims[taker.op.attrs["axis"]])))
        return found

    @cached_property
    def _lengths(self) -> Callable[..., Indices]:
        return self.segments.index(self.segments.keep)

    def _fill(self, taker: Taker, given: Indices, wanted: Indices, menu: Sequence[str]) -> Iterator[Choice]:
        at = located(given, wanted)
        kept = np.flatnonzero(at >= 0)
        size = len(wanted) * taker.bytes_each
        if is_run(at[kept]) and is_run(kept):
            yield Choice("pad", self.prices.moved("pad", size), size)
        else:
            us = self.prices.moved("pad", (len(given) + 1) * taker.bytes_each) + self.prices.moved("gather", size)
            yield Choice("scatter", us, 2 * size)
        if "widen" in menu and taker.own is not None and taker.inner == 1:
            blank = np.setdiff1d(wanted, given)
            yield Choice("widen", self.more(taker.own, len(blank)), 0.0, wanted, blank)

    def _shared(self, taker: Taker) -> bool:
        return sum(other.own is taker.own for other in self.segments.takers) > 1

    def more(self, group: Group, channels: int) -> float:
        """Microseconds of so many channels more of a group; never less than none, as a table that was measured
        may say."""
        key = (group.name, channels)
        if key not in self._more:
            kept = self.lengths(self.segments.keep)
            wider = {**kept, group.dim: kept[group.dim] + channels}
            self._more[key] = max(0.0, self.computing(wider) - self.computing(kept))
        return self._more[key]

    @cached_property
    def _more(self) -> dict[tuple[str, int], float]:
        return {}

    def _concats(self, keep: Lists, sinks: frozenset[str]) -> Iterator[tuple[str, float]]:
        """The bytes that each concatenation of a segment writes: one that only sinks read is not made, and
        each of these makes its own."""
        graph, index = self.segments.program.graph, self.segments.index(keep)
        mine = {name for names in self.segments.concats.values() for name in names}
        needed = {value.name for value in graph.outputs}
        each = {}
        for op in reversed(graph.ops):
            alive = any(out.name in needed for out in op.outputs)
            if op.name not in mine or alive:
                if op.name not in sinks:
                    needed |= {value.name for value in op.inputs if value is not None}
                else:
                    needed |= {s.inputs[k].name for s, k in sources(op.inputs[0], op.attrs["axis"], graph)}  # type: ignore[union-attr]
            if op.name in mine and alive:
                each[op.name] = op
        by_name = {taker.op.name: taker for taker in self.segments.takers}
        width = {name: by_name[taker].bytes_each for taker, names in self.segments.concats.items() for name in names}
        for name, op in each.items():
            yield name, len(index(op.outputs[0].dims[op.attrs["axis"]])) * width[name]
        for name in sorted(sinks):
            yield name, len(index(ends(by_name[name].op)[1])) * by_name[name].bytes_each
