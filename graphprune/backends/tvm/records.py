"""Schedules that a search found, on disk: they survive it, and serve every network that has the op."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...cost.latency.table import cache_folder


class Records:
    """The best schedule of every op: a line of JSON each time one is beaten. Schedules are kept as
    TVMScript, ops known by theirs, so that records outlive versions of TVM's own formats."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best: dict[str, tuple[float, str]] = {}
        lines, damaged = _lines(path), 0
        for line in lines:
            try:
                at = json.loads(line)
                if at["schedule"]:
                    self._keep(str(at["op"]), float(at["ms"]), str(at["schedule"]))
                else:
                    self.best.pop(at["op"], None)
            except (ValueError, KeyError, TypeError, RecursionError):  # of whatever somebody wrote there
                damaged += line.endswith(b"\n")  # what has no end was cut short by a crash
        if damaged:
            told = f"tuning: {damaged} of {len(lines)} lines of {path} cannot be read and are left out"
            warnings.warn(told, stacklevel=2)

    @classmethod
    def of(cls, key: Mapping[str, Any]) -> Records:
        """The records of this user for what ``key`` says: a target, versions, a machine, threads. Not for what
        graphprune's own schedules are: records know their ops by the loops before any schedule."""
        key = {name: value for name, value in key.items() if name != "code"}
        name = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return cls(cache_folder() / "tuning" / f"{name}.jsonl")

    def add(self, function: Any, ms: float, schedule: str) -> None:
        key = fingerprint(function)
        if self._keep(key, ms, schedule):
            self._write({"op": key, "ms": ms, "schedule": schedule})

    def forget(self, function: Any) -> None:
        """The schedule of an op, for which the fixed one is the best."""
        key = fingerprint(function)
        if self.best.pop(key, None) is not None:
            self._write({"op": key, "schedule": ""})

    def _write(self, line: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_cut_line(self.path)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def get(self, function: Any) -> tuple[float, str] | None:
        return self.best.get(fingerprint(function))

    def database(self) -> Any:
        """MetaSchedule's own database of everything it measured, beside the file: the evolution goes on
        from it. Of damaged files what can be read is left, and the files themselves are put beside it."""
        from tvm.s_tir.meta_schedule.database import JSONDatabase

        workloads, trials = (self.path.with_suffix(f".{part}.json") for part in ("workloads", "trials"))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path in (workloads, trials):
            _drop_cut_line(path)
        try:
            return JSONDatabase(str(workloads), str(trials))
        except Exception:  # what TVM raises shares no base class
            for path, lines in zip((workloads, trials), _readable(workloads, trials), strict=True):
                _put_right(path, lines)
            return JSONDatabase(str(workloads), str(trials))

    def _keep(self, key: str, ms: float, schedule: str) -> bool:
        better = ms < self.best.get(key, (math.inf, ""))[0]
        if better:
            self.best[key] = (ms, schedule)
        return better


def fingerprint(function: Any) -> str:
    """What an op's loops are, whatever its name is in the network."""
    return sha256(alone(function).script().encode()).hexdigest()[:24]


def alone(function: Any) -> Any:
    """A module of that one function, as ``main``."""
    import tvm

    return tvm.IRModule({"main": function.with_attr("global_symbol", "main")})


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


def _drop_cut_line(path: Path) -> None:
    """A crash may have left half a line, which the database would refuse to read, and the next one would go on. Of a
    file that ends in a whole one only the last byte is read, as this comes before every record."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, 2)
            if file.read(1) == b"\n":
                return
        path.write_bytes(b"".join(_lines(path)[:-1]))


def _readable(workloads: Path, trials: Path) -> tuple[list[bytes], list[bytes]]:
    """The lines of a database's two files that TVM can read: trials know their workload by the number of its line."""
    from tvm.s_tir.meta_schedule.database import TuningRecord, Workload

    known: dict[int, tuple[bytes, Any]] = {}
    for number, line in enumerate(_lines(workloads)):
        with contextlib.suppress(Exception):  # it is left out, and _put_right says so
            known[number] = line, Workload.from_json(json.loads(line))
    places, found = {number: place for place, number in enumerate(known)}, []
    for line in _lines(trials):
        with contextlib.suppress(Exception):
            number, record = json.loads(line)
            TuningRecord.from_json(record, known[number][1])
            found.append(json.dumps([places[number], record]).encode() + b"\n")
    return [line for line, _ in known.values()], found


def _put_right(path: Path, lines: Sequence[bytes]) -> None:
    """Leaves these lines in a file; what was there is put aside where it had more."""
    there = len(_lines(path))
    if len(lines) < there:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        told = f"tuning: {there - len(lines)} of {there} lines of {path} cannot be read and are left out"
        warnings.warn(f"{told} (the file as it was: {aside.name})", stacklevel=3)
    path.write_bytes(b"".join(lines))  # trials of workloads that moved are others too
