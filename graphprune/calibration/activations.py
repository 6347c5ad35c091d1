"""A walk through a model, op by op, over all batches at once.

Between two stops only the values that are still to be read are kept, so that every op runs once per
batch however many stops there are. Beyond ``LIMIT_BYTES`` they are kept in temporary files, each as long as its value
is to be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import TracebackType

from ..ir.graph import Graph, Value
from ..ir.host import Array, Batch, Host
from ..ir.large import Room

LIMIT_BYTES = 3 << 25


class Values(Mapping[str, Array]):
    """Values by name, of which those that were put ``away`` are in files."""

    def __init__(self, held: Mapping[str, Array], away: AbstractSet[str] = frozenset()) -> None:
        self._held, self._away = dict(held), set(away)
        self.held_bytes = sum(array.nbytes for name, array in self._held.items() if name not in self._away)

    def __getitem__(self, name: str) -> Array:
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def only(self, names: Iterable[str], new: Mapping[str, Array]) -> Values:
        """Those of ``names``, the ``new`` ones among them."""
        held = {name: self._held[name] if name in self._held else new[name] for name in names}
        return Values(held, self._away & held.keys())

    def put_away(self, room: Room) -> None:
        """What is held goes into files."""
        for name in sorted(self._held.keys() - self._away):
            self._held[name] = room.put(self._held[name])
            self._away.add(name)
        self.held_bytes = 0


class Walk:
    """Values of ``host`` at any op, in order of execution; a later weight may be edited on the way.

    ``graph``: what was lifted from the host before any edit; it names the values. ``edited``: whether it will be on
    the way; where not, what was seen ahead of its op is not made again. A context manager.
    """

    def __init__(self, host: Host, graph: Graph, batches: Sequence[Batch], edited: bool = True) -> None:
        self.host, self.graph, self.batches, self.edited = host, graph, batches, edited
        self._live = [Values({}) for _ in batches]
        self._made: list[Value] = []
        self._at = 0
        self._ahead: list[str] = []
        self._values = {value.name: value for value in graph.values()}
        self._place = {op.name: position for position, op in enumerate(graph.ops)}
        self._room = Room()

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live = []

    def at(self, position: int, names: Sequence[str], last: bool = False) -> Iterator[dict[str, Array]]:
        """Per batch, the values ``names``, which the ops before ``position`` made, or which depend on what
        they made. Positions must not fall. ``last``: the walk ends there, and keeps nothing."""
        live = self._move(position) if not last else []
        if not (self.edited or last):
            live = sorted({*live, *(name for name in (*self._ahead, *names) if self._still_read(name, position))})
            self._ahead = live
        for number, batch in enumerate(self.batches):
            known = self._live[number]
            seen = self.host.watch(batch, sorted({*names, *(name for name in live if name not in known)}), known)
            self._live[number] = known.only(live, seen)
            self._spill(number)
            yield {name: seen[name] for name in names}

    def live(self, position: int) -> list[Mapping[str, Array]]:
        """Per batch, what the ops before ``position`` made and later ones read: ``known`` for Host.watch."""
        for _ in self.at(position, ()):
            pass
        return list(self._live)

    def _move(self, position: int) -> list[str]:
        self._made += [out for op in self.graph.ops[self._at : position] for out in op.outputs if not out.constant]
        self._made = [value for value in self._made if self._last_use(value) >= position]
        self._at = position
        return sorted(value.name for value in self._made)

    def _still_read(self, name: str, position: int) -> bool:
        value = self._values.get(name)
        return value is not None and not value.constant and self._last_use(value) >= position

    def _last_use(self, value: Value) -> int:
        """Where a value is read last: nowhere is before all ops, outside is behind them."""
        if self.graph.is_output(value):
            return len(self.graph.ops)
        return max((self._place[user.name] for user in self.graph.users(value)[-1:]), default=-1)

    def _spill(self, number: int) -> None:
        if sum(values.held_bytes for values in self._live) > LIMIT_BYTES:
            self._live[number].put_away(self._room)
