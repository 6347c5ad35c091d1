"""Tables on disk: one file per target, machine, versions and thread count, a line per measured point."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...ir.facts import Latency
from . import table_file
from .table_file import Point as Point
from .workload import Family, Widths

Array = NDArray[Any]


def cache_folder() -> Path:
    """``$GRAPHPRUNE_CACHE``, or ``graphprune`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GRAPHPRUNE_CACHE") or Path(base) / "graphprune")


class Table:
    """Points and their latencies. With a path every point added is on disk before ``add`` returns, so
    that an interrupted recording goes on where it was; several processes may add to one file."""

    def __init__(self, key: Mapping[str, Any], path: Path | None = None) -> None:
        self.key, self.path = json.loads(json.dumps(dict(key))), path
        self.points: dict[Family, dict[Widths, Latency]] = {}
        self.damaged = 0  # lines of the file that were no points when it was read, and are left out
        self._torn = False  # some are still there

    @classmethod
    def cached(cls, key: Mapping[str, Any]) -> Table:
        """The table of this key in the cache folder, as far as it was recorded. Where its header was lost the
        file's name says what it is of."""
        name = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        path = cache_folder() / "latency" / f"{name}.jsonl"
        return cls._of(path, key, named=True) if path.is_file() else cls(key, path)

    @classmethod
    def read(cls, path: Path, key: Mapping[str, Any] | None = None) -> Table:
        """A recorded table. With ``key`` it must be that one's. Raises DataError for what is no table; lines that
        are no points, as a crash leaves the last, are left out and counted (``damaged``)."""
        return cls._of(path, key)

    @classmethod
    def _of(cls, path: Path, key: Mapping[str, Any] | None, named: bool = False) -> Table:
        try:
            held = table_file.read(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})", "`graphprune record` writes one") from error
        empty = not (held.points or held.damaged)  # somebody is about to write the header, or was
        found = key if held.key is None and (named or empty) else held.key
        if found is None:
            raise DataError(
                f"{path}: not a latency table (its first line names none)", "`graphprune record` writes one"
            )
        if key is not None and cls(found).key != cls(key).key:
            raise table_file.other_key(path, found, key)
        made = cls(found, path)
        made.damaged, made._torn = held.damaged, held.damaged > 0
        for (family, widths), one in held.points:
            made.points.setdefault(family, {})[widths] = one
        return made

    def remark(self) -> str | None:
        """What a user has to know of the file, in one sentence."""
        lines = f"{self.damaged} line{' is' if self.damaged == 1 else 's are'}"
        return f"latency table {self.path}: {lines} damaged and left out" if self.damaged else None

    def missing(self, points: Iterable[Point]) -> list[Point]:
        """Those that were not measured yet, each once."""
        return [p for p in dict.fromkeys(points) if p[1] not in self.points.get(p[0], {})]

    def add(self, found: Mapping[Point, Latency]) -> None:
        for (family, widths), one in found.items():
            self.points.setdefault(family, {})[widths] = one
        if self.path is None or not found:
            return
        try:
            table_file.append(self.path, self.key, found.items(), self._torn)
            self._torn = False
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})", "choose another path") from error

    def surface(self, family: Family) -> Surface:
        """Milliseconds at any widths. Raises DataError where the family was not measured."""
        if family not in self.points:
            raise DataError(
                f"the latency table has no `{family.text()}`", "record it for this model, with `graphprune record`"
            )
        return Surface({widths: one.median_ms for widths, one in self.points[family].items()})


class Surface:
    """Milliseconds over both widths: exact where measured, bilinear between the points of the grid, and
    beyond it as the last cell goes on. Where a corner of a cell was not measured the nearest that was,
    scaled by the products, stands in."""

    def __init__(self, points: Mapping[Widths, float]) -> None:
        self.inner = np.array(sorted({widths[0] for widths in points}), float)
        self.outer = np.array(sorted({widths[1] for widths in points}), float)
        self.grid = np.array([[_at(points, (int(a), int(b))) for b in self.outer] for a in self.inner])

    def __call__(self, inner: Any, outer: Any) -> Array:
        i, x = _cell(self.inner, inner)
        j, y = _cell(self.outer, outer)
        i1, j1 = np.minimum(i + 1, len(self.inner) - 1), np.minimum(j + 1, len(self.outer) - 1)
        low = self.grid[i, j] * (1 - y) + self.grid[i, j1] * y
        high = self.grid[i1, j] * (1 - y) + self.grid[i1, j1] * y
        return np.asarray(np.maximum(low * (1 - x) + high * x, 0.0))


def _cell(axis: Array, value: Any) -> tuple[Array, Array]:
    """The cell that holds ``value`` and where in it; an axis of one point has no slope."""
    value = np.asarray(value, float)
    if len(axis) == 1:
        return np.zeros(value.shape, int), np.zeros(value.shape)
    at = np.clip(np.searchsorted(axis, value, side="right") - 1, 0, len(axis) - 2)
    return at, (value - axis[at]) / (axis[at + 1] - axis[at])


def _at(points: Mapping[Widths, float], widths: Widths) -> float:
    if widths in points:
        return points[widths]
    near = min(points, key=lambda p: abs(np.log(p[0] / widths[0])) + abs(np.log(p[1] / widths[1])))
    return points[near] * (widths[0] * widths[1]) / (near[0] * near[1])


def grid(lowest: int, sizes: Sequence[int], grain: int) -> list[int]:
    """The widths to measure from ``lowest`` to the largest of ``sizes``: both ends, the octaves and halves of
    the grain between them, and the sizes themselves while they are few."""
    highest, octave, out = max(sizes), max(grain, 8), {lowest, max(sizes)}
    while octave > lowest and octave % 2 == 0:
        octave //= 2
    while octave < highest:
        if octave > lowest:
            out.add(octave)
        octave *= 2
    return sorted(out | set(sizes if len(set(sizes)) <= 4 else ()))
