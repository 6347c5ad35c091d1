"""A walk through a model, op by op, over all batches at once.

Between two stops only the values that are still to be read are kept, so that every op runs once per
batch however many stops there are. Beyond ``LIMIT_BYTES`` they are kept in temporary files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from ..ir.graph import Graph, Value
from ..ir.host import Array, Batch, Host

LIMIT_BYTES = 1 << 30


class Walk:
    """Values of ``host`` at any op, in order of execution; a later weight may be edited on the way.

    ``graph``: what was lifted from the host before any edit; it names the values. A context manager.
    """

    def __init__(self, host: Host, graph: Graph, batches: Sequence[Batch]) -> None:
        self.host, self.graph, self.batches = host, graph, batches
        self._live: list[dict[str, Array]] = [{} for _ in batches]
        self._made: list[Value] = []
        self._at = 0
        self._place = {op.name: position for position, op in enumerate(graph.ops)}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._folder is not None:
            self._live = []
            self._folder.cleanup()

    def at(self, position: int, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Per batch, the values ``names``, which the ops before ``position`` made, or which depend on what
        they made. Positions must not fall."""
        live = self._move(position)
        for number, batch in enumerate(self.batches):
            known = self._live[number]
            seen = self.host.watch(batch, sorted({*names, *live}), known)
            self._live[number] = {name: known[name] if name in known else seen[name] for name in live}
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

    def _last_use(self, value: Value) -> int:
        """Where a value is read last: nowhere is before all ops, outside is behind them."""
        if self.graph.is_output(value):
            return len(self.graph.ops)
        return max((self._place[user.name] for user in self.graph.users(value)[-1:]), default=-1)

    def _spill(self, number: int) -> None:
        held = sum(a.nbytes for values in self._live for a in values.values() if not isinstance(a, np.memmap))
        if held <= LIMIT_BYTES:
            return
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="graphprune-")
        for name, array in self._live[number].items():
            if not isinstance(array, np.memmap):
                path = Path(self._folder.name) / f"{self._files}.npy"
                self._files += 1
                np.save(path, array)
                self._live[number][name] = np.load(path, mmap_mode="r")
