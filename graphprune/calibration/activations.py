"""A walk through a model, op by op, over all batches at once.

Between two stops only the values that are still to be read are kept, so that every op runs once per
batch however many stops there are. Beyond ``LIMIT_BYTES`` they are kept in temporary files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from ..ir.graph import Graph, Value
from ..ir.host import Array, Batch, Host

LIMIT_BYTES = 3 << 25


class Values(Mapping[str, Array]):
    """Values by name; those that are in files are read whenever they are asked for."""

    def __init__(self, held: Mapping[str, Array | Path]) -> None:
        self._held = dict(held)

    def __getitem__(self, name: str) -> Array:
        held = self._held[name]
        found: Array = np.load(held) if isinstance(held, Path) else held
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def only(self, names: Iterable[str], new: Mapping[str, Array]) -> Values:
        """Those of ``names``, the ``new`` ones among them."""
        return Values({name: self._held[name] if name in self._held else new[name] for name in names})

    def held_bytes(self) -> int:
        return sum(held.nbytes for held in self._held.values() if not isinstance(held, Path))

    def put_away(self, folder: Path, number: int) -> None:
        """What is held goes into files that are numbered from ``number`` on."""
        for k, (name, held) in enumerate(self._held.items()):
            if not isinstance(held, Path):
                self._held[name] = path = folder / f"{number + k}.npy"
                np.save(path, held)


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
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._folder is not None:
            self._live = []
            self._folder.cleanup()

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
        if sum(values.held_bytes() for values in self._live) > LIMIT_BYTES:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="graphprune-")
            self._live[number].put_away(Path(self._folder.name), self._files)
            self._files += len(self._live[number])
