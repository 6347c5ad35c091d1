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
from .workload import Family, Widths

Array = NDArray[Any]
Point = tuple[Family, Widths]


def cache_folder() -> Path:
    """``$GRAPHPRUNE_CACHE``, or ``graphprune`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GRAPHPRUNE_CACHE") or Path(base) / "graphprune")


class Table:
    """Points and their latencies. With a path every point added is on disk before ``add`` returns, so
    that an interrupted recording goes on where it was."""

    def __init__(self, key: Mapping[str, Any], path: Path | None = None) -> None:
        self.key, self.path = dict(key), path
        self.points: dict[Family, dict[Widths, Latency]] = {}

    @classmethod
    def cached(cls, key: Mapping[str, Any]) -> Table:
        """The table of this key in the cache folder, as far as it was recorded."""
        name = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        path = cache_folder() / "latency" / f"{name}.jsonl"
        return cls.read(path, key) if path.is_file() else cls(key, path)

    @classmethod
    def read(cls, path: Path, key: Mapping[str, Any] | None = None) -> Table:
        """A recorded table. With ``key`` it must be that one's. Raises DataError for what is no table; a
        last line cut short, as a crash leaves it, is dropped."""
        try:
            first, *lines = path.read_text().splitlines()
            made = cls(json.loads(first)["table"], path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a latency table ({error})", "`graphprune record` writes one") from error
        if key is not None and made.key != dict(key):
            raise DataError(f"{path}: recorded for {made.key}, wanted {dict(key)}")
        for number, line in enumerate(lines, 2):
            try:
                at = json.loads(line)
                inner, outer = at["widths"]
                found = Latency(at["median_ms"], at["spread_ms"], at["repeats"], at["threads"], at["target"])
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) + 1:
                    path.write_text("\n".join([first, *lines[:-1]]) + "\n")
                    break
                raise DataError(f"{path}, line {number}: not a point of a latency table ({error})") from error
            made.points.setdefault(Family.parse(at["op"]), {})[inner, outer] = found
        return made

    def missing(self, points: Iterable[Point]) -> list[Point]:
        """Those that were not measured yet, each once."""
        return [p for p in dict.fromkeys(points) if p[1] not in self.points.get(p[0], {})]

    def add(self, found: Mapping[Point, Latency]) -> None:
        lines = []
        for (family, widths), one in found.items():
            self.points.setdefault(family, {})[widths] = one
            lines.append(json.dumps({"op": family.text(), "widths": widths, **vars(one)}))
        if self.path is None or not lines:
            return
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines.insert(0, json.dumps({"table": self.key}, sort_keys=True))
        with self.path.open("a") as file:
            file.write("\n".join(lines) + "\n")

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
