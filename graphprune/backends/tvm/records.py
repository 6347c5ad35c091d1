"""Schedules that a search found, on disk: they survive it, and serve every network that has the op."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                at = json.loads(line)
                self._keep(at["op"], float(at["ms"]), at["schedule"])
            except (ValueError, KeyError, TypeError):
                continue  # cut short by a crash

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
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"op": key, "ms": ms, "schedule": schedule}) + "\n")

    def get(self, function: Any) -> tuple[float, str] | None:
        return self.best.get(fingerprint(function))

    def database(self) -> Any:
        """MetaSchedule's own database of everything it measured, beside the file: the evolution goes on
        from it."""
        from tvm.s_tir import meta_schedule as ms

        paths = [self.path.with_suffix(f".{part}.json") for part in ("workloads", "trials")]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path in paths:
            _drop_cut_line(path)
        return ms.database.JSONDatabase(*map(str, paths))

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


def _drop_cut_line(path: Path) -> None:
    """A crash may have left half a line, which the database would refuse to read."""
    text = path.read_bytes() if path.is_file() else b""
    if text and not text.endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])
