"""Latency tables as files: a header, then a line per point. Writers take turns, readers never see half a line, and
what is no point is skipped and counted."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ...errors import DataError
from ...ir.facts import Latency
from .workload import Family, Widths

Point = tuple[Family, Widths]
_KINDS = {"conv": lambda n: n % 3 == 2, "product": lambda n: n == 1, "stream": lambda n: n == 0}
_MOST = 1e12  # ms, repeats, a width: thirty years, and more than any tensor has


@dataclass(frozen=True)
class Contents:
    """What a file holds. ``damaged``: how many lines are no points (cut short by a crash, or edited)."""

    key: Mapping[str, Any] | None  # None: an empty file, or a header that cannot be read
    points: Sequence[tuple[Point, Latency]]
    damaged: int


def read(path: Path) -> Contents:
    """Raises OSError."""
    with path.open("rb") as file, _locked(file, fcntl.LOCK_SH):
        return _parsed(file.read())


def append(path: Path, key: Mapping[str, Any], found: Iterable[tuple[Point, Latency]], damaged: bool) -> None:
    """Points added to the file, which is made where there is none; a damaged one (known to be, cut short, or without
    its header) is put right first, whole or not at all. Raises OSError, DataError for a table of another key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = b"".join(map(_line, found))
    with _opened(path) as file:
        held = _parsed(file.readline())
        if held.key is not None and dict(held.key) != dict(key):
            raise other_key(path, held.key, key)
        if held.key is not None and not damaged and _ends(file):
            file.write(lines)
            file.flush()
            return
        file.seek(0)
        good = b"".join(map(_line, _parsed(file.read()).points))
        _replace(path, file, _header(key) + good + lines)


def _ends(file: IO[bytes]) -> bool:
    """With a whole line."""
    file.seek(-1, os.SEEK_END)
    return file.read() == b"\n"


def other_key(path: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> DataError:
    return DataError(
        f"{path}: recorded for {dict(recorded)}, wanted {dict(wanted)}", "record it anew, into another file"
    )


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, to read and append to, while nobody else does. Whoever waited may hold one that was replaced."""
    while True:
        with path.open("a+b") as file, _locked(file, fcntl.LOCK_EX):
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                yield file
                return


@contextmanager
def _locked(file: IO[bytes], how: int) -> Iterator[None]:
    fcntl.flock(file, how)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _replace(path: Path, old: IO[bytes], content: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), os.fstat(old.fileno()).st_mode & 0o777)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _header(key: Mapping[str, Any]) -> bytes:
    return json.dumps({"table": dict(key)}, sort_keys=True).encode() + b"\n"


def _line(one: tuple[Point, Latency]) -> bytes:
    (family, widths), latency = one
    return json.dumps({"op": family.text(), "widths": widths, **vars(latency)}).encode() + b"\n"


def _parsed(content: bytes) -> Contents:
    """Of lines that are cut short only the last is one that a reader may meet beside a crash; they count alike."""
    key: Mapping[str, Any] | None = None
    points: list[tuple[Point, Latency]] = []
    damaged = 0
    for number, line in enumerate(content.splitlines()):
        try:
            found = json.loads(line)
            if number == 0 and isinstance(found["table"], dict):
                key = found["table"]
            else:
                points.append(_point(found))
        except (ValueError, KeyError, TypeError, RecursionError):  # of whatever somebody wrote there
            damaged += 1
    return Contents(key, points, damaged)


def _point(at: Mapping[str, Any]) -> tuple[Point, Latency]:
    """Raises ValueError, KeyError or TypeError for what is none."""
    family = Family.parse(at["op"]) if isinstance(at["op"], str) else Family("")
    inner, outer = at["widths"]
    numbers = [at[name] for name in ("median_ms", "spread_ms", "repeats", "threads")]
    fits = _KINDS.get(family.kind)
    if fits is None or not fits(len(family.sizes)) or any(size < 0 for size in family.sizes) or not family.dtype:
        raise ValueError(f"no op: {at['op']!r}")
    if not all(_is(value, int) and value >= 1 for value in (inner, outer, *numbers[2:])):
        raise ValueError(f"no counts: {at!r}")
    if not all(_is(value, float) and value >= 0 for value in numbers[:2]) or not isinstance(at["target"], str):
        raise ValueError(f"no latency: {at!r}")
    return (family, (inner, outer)), Latency(float(numbers[0]), float(numbers[1]), numbers[2], numbers[3], at["target"])


def _is(value: Any, kind: type[float]) -> bool:
    """A number of a kind, none of NaN, infinity, and what is beyond all sense."""
    return isinstance(value, (int, kind)) and not isinstance(value, bool) and bool(abs(value) <= _MOST)
