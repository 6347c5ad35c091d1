"""Segments: producers, the readers that choose among their channels, and the order that suits most of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..axes.dim import PRODUCT, Dim, find, terms
from ..axes.index import Index, Indices
from ..cost.static import evaluate, item_bytes, samples
from ..ir.facts import Group, Groups
from ..ir.graph import Op, Value
from ..ir.program import Program
from ..ops.traits import traits
from .channel_order import Ordering, Reader, Row, arrange
from .copy_costs import Prices
from .reindex import ends, located, reindexes, sources

Lists = Mapping[str, Indices]
"""Per group, an ordered list of channels."""


@dataclass(frozen=True)
class Slot:
    """One part of an axis that a taker takes from. ``block``: the group whose order it has; none where
    nothing may be moved."""

    block: str | None
    takes: frozenset[int]
    given: tuple[int, ...]

    def row(self, end: str) -> Row | bool | None:
        """What has to hold for a run; None where nothing has to, False where it cannot be."""
        if len(self.takes) == len(self.given):
            return None
        if self.block is not None:
            return Row(self.block, self.takes, end)  # type: ignore[arg-type]
        at = [k for k, channel in enumerate(self.given) if channel in self.takes]
        together = at[-1] - at[0] + 1 == len(at)
        placed = not end or (at[0] == 0 if end == "first" else at[-1] == len(self.given) - 1)
        return None if together and placed else False


@dataclass(frozen=True)
class Taker:
    """A ``reindex`` op: a reader that takes some channels, or (``fills``) a writer that makes some."""

    op: Op
    own: Group | None  # the group of its own axis, where that can be put in order
    slots: tuple[Slot, ...]
    inner: int
    bytes_each: float  # of one position of the axis
    fuses: bool  # an element-wise op comes next
    loads: bool  # convolutions that may load by index come next, and nothing else

    @property
    def fills(self) -> bool:
        return bool(self.op.attrs["fills"])

    def rows(self) -> tuple[Row, ...] | None:
        """What has to hold for all that it takes to be one run; None where that cannot be."""
        live = [slot for slot in self.slots if slot.given]
        taking = [k for k, slot in enumerate(live) if slot.takes]
        if self.own is None or not taking:
            return None
        first, last = taking[0], taking[-1]
        if any(len(slot.takes) < len(slot.given) for slot in live[first + 1 : last]):
            return None
        asked = [(live[first], "")] if first == last else [(live[first], "last"), (live[last], "first")]
        rows = [slot.row(end) for slot, end in asked]
        return None if False in rows else tuple(row for row in rows if isinstance(row, Row))


@dataclass(frozen=True)
class Segments:
    """The takers of a program whose groups keep ``keep`` (in channel order)."""

    program: Program
    groups: Groups
    keep: Lists

    @cached_property
    def by_leaf(self) -> dict[Dim, Group]:
        return {group.dim: group for group in self.groups if group.name in self.keep}

    @cached_property
    def batch(self) -> float:
        return float(samples(self.program.graph, self.program.host))

    @cached_property
    def takers(self) -> tuple[Taker, ...]:
        sizes = self.program.host.sizes()
        return tuple(self._taker(op, sizes) for op in reindexes(self.program.graph))

    def _taker(self, op: Op, sizes: Mapping[str, int]) -> Taker:
        before, after = ends(op)
        shared, own = (after, before) if op.attrs["fills"] else (before, after)
        wanted = self.index(self.keep)(own)
        value, axis = op.outputs[0], op.attrs["axis"]
        each = item_bytes(value.dtype) * float(
            np.prod([evaluate(n, sizes) for k, n in enumerate(value.shape or ()) if k != axis])
        )
        slots = tuple(self._slots(shared, wanted))
        users = self.program.graph.users(value)
        fuses = any(traits(user).elementwise for user in users)
        return Taker(op, self._own(own), slots, op.attrs["inner"], each, fuses, self._loads(value))

    def _loads(self, value: Value) -> bool:
        """Whether nothing but convolutions of one group read an image."""
        graph = self.program.graph
        users = graph.users(value)
        return bool(users) and not graph.is_output(value) and all(_loads_image(user, value) for user in users)

    def _own(self, dim: Dim) -> Group | None:
        dim = find(dim)
        leaf = find(dim.kids[0]) if dim.kind == PRODUCT else dim
        return self.by_leaf.get(leaf)

    def _slots(self, dim: Dim, wanted: Indices) -> Iterator[Slot]:
        dim = find(dim)
        inner = 1
        if dim.kind == PRODUCT:
            size, dim = dim.size, find(dim.kids[0])
            inner = int(size) // int(dim.size)
        start = 0
        for part in terms(dim):
            size = int(part.size)
            mine = wanted[(wanted >= start * inner) & (wanted < (start + size) * inner)] // inner - start
            group = self.by_leaf.get(part)
            given = range(size) if group is None else sorted(map(int, self.keep[group.name]))
            name = None if group is None or part.frozen else group.name
            yield Slot(name, frozenset(map(int, mine)), tuple(given))
            start += size

    def index(self, keep: Lists) -> Index:
        return Index({group.dim: keep[group.name] for group in self.groups if group.name in keep})

    def at(self, taker: Taker, keep: Lists) -> tuple[Indices, int]:
        """Where a taker finds what it takes, and how long the axis is that it takes it from."""
        index, (before, after) = self.index(keep), ends(taker.op)
        return located(index(before), index(after)), len(index(before))

    # ---- the order -------------------------------------------------------------------------------

    def arrange(self, sinks: frozenset[str], prices: Prices) -> Ordering:
        """The order of every block that costs least, when the takers in ``sinks`` take from each part of a
        concatenation by itself."""
        blocks: dict[str, tuple[int, ...]] = {}
        readers: list[Reader] = []
        for taker in self.takers:
            blocks.update({slot.block: slot.given for slot in taker.slots if slot.block is not None})
            if taker.op.name in sinks:
                for k, slot in enumerate(taker.slots):
                    row = slot.row("") if slot.takes else None
                    if isinstance(row, Row):
                        cost = prices.moved("gather", len(slot.takes) * taker.inner * taker.bytes_each)
                        readers.append(Reader(f"{taker.op.name}/{k}", (row,), cost))
                continue
            rows, count = taker.rows(), sum(len(slot.takes) for slot in taker.slots)
            if rows:
                gather = prices.moved("gather", count * taker.inner * taker.bytes_each)
                readers.append(Reader(taker.op.name, rows, gather))
        return arrange(blocks, readers)

    def ordered(self, order: Mapping[str, Sequence[int]]) -> dict[str, Indices]:
        """``keep`` with every block in its order, and every taker's own list in the order in which it finds
        its channels there."""
        keep = {**self.keep, **{name: np.array(channels, dtype=np.intp) for name, channels in order.items()}}
        for taker in self.takers:
            if taker.own is not None and taker.own.name not in order:
                before, after = ends(taker.op)
                shared = after if taker.fills else before
                given, own = self.index(keep)(shared), self.keep[taker.own.name]
                if taker.inner > 1:
                    given = given[:: taker.inner] // taker.inner
                keep[taker.own.name] = _in_order(given, own)
        return keep

    @cached_property
    def concats(self) -> dict[str, frozenset[str]]:
        """Per taker that takes from a concatenation, the ops that make it."""
        found: dict[str, frozenset[str]] = {}
        for taker in self.takers:
            parts = [] if taker.fills else sources(taker.op.inputs[0], taker.op.attrs["axis"], self.program.graph)
            if parts:
                found[taker.op.name] = frozenset(op.name for op, _ in parts)
        return found

    def parts(self) -> list[list[Taker]]:
        """Takers that share blocks, directly or through others."""
        home: dict[str, int] = {}
        found: dict[int, list[Taker]] = {}
        for number, taker in enumerate(self.takers):
            names = sorted({slot.block for slot in taker.slots if slot.block is not None})
            touched = sorted({home[name] for name in names if name in home})
            first = touched[0] if touched else number
            mine = found.setdefault(first, [])
            for other in touched[1:]:
                mine += found.pop(other)
                home.update({name: first for name, where in home.items() if where == other})
            mine.append(taker)
            home.update(dict.fromkeys(names, first))
        return list(found.values())


def _loads_image(op: Op, value: Value) -> bool:
    dense = op.kind == "conv" and op.attrs.get("groups", 1) == 1 and len(op.outputs[0].dims) == 4
    return dense and op.inputs[0] is value and op.inputs.count(value) == 1


def _in_order(given: Indices, own: Indices) -> Indices:
    """The channels ``own`` as they stand in ``given``: where some stand there twice, as a run if there is one."""
    found = given[np.isin(given, own)]
    if len(found) == len(own):
        return found
    for start in range(len(given) - len(own), -1, -1):
        run = given[start : start + len(own)]
        if np.array_equal(np.sort(run), np.sort(own)):
            return run
    _, first = np.unique(found, return_index=True)
    return found[np.sort(first)]
