"""Latency tables on disk: many writers, crashes and nonsense cost no point that was measured."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from graphprune.backends import target
from graphprune.cost.latency.table import Table
from graphprune.cost.latency.workload import Family
from graphprune.errors import DataError
from graphprune.ir.facts import Latency

KEY = {"target": "x", "threads": 1}
FAMILY = Family("conv", (1, 1, 8, 3, 1))
HEADER = json.dumps({"table": KEY}) + "\n"
MS = Latency(1.0, 0.1, 9, 1, "x")


def line(**changes: object) -> str:
    """A point's line, some of it changed."""
    one = {"op": FAMILY.text(), "widths": [2, 8], **vars(MS), **changes}
    return json.dumps({name: value for name, value in one.items() if value is not ...}) + "\n"


def count(path: Path) -> int:
    return sum(map(len, Table.read(path, KEY).points.values()))


def _write(path: Path, points: int, barrier: Barrier, who: int) -> None:
    table = Table(KEY, path)
    barrier.wait()
    for k in range(points):
        table.add({(FAMILY, (k + 1, who)): MS})
        assert count(path) > k  # who reads beside the writers sees whole lines


@pytest.mark.parametrize("start", ["", HEADER + line(widths=[9, 9])[:40], "\x00nonsense\n" + line(widths=[1, 1])])
def test_writers_beside_each_other_lose_nothing(start: str, tmp_path: Path) -> None:
    """Into a table that is new, was cut short, or lost its header: whoever is first repairs it for all."""
    path = tmp_path / "t.jsonl"
    if start:
        path.write_text(start)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    writers = [context.Process(target=_write, args=(path, 15, barrier, who), daemon=True) for who in (1, 2, 3)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert [one.exitcode for one in writers] == [0, 0, 0]
    assert count(path) == 45 and Table.read(path).damaged == 0
    assert path.read_text().count('"table"') == 1
    assert [one.name for one in tmp_path.iterdir()] == ["t.jsonl"]


def _killed(path: Path, barrier: Barrier) -> None:
    table = Table(KEY, path)
    barrier.wait()
    for k in range(10**6):
        table.add({(FAMILY, (k + 1, 1)): MS})


def test_a_writer_that_is_killed_leaves_a_table(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path, barrier, held = tmp_path / "t.jsonl", context.Barrier(2), 0
    for _ in range(5):
        one = context.Process(target=_killed, args=(path, barrier), daemon=True)
        one.start()
        barrier.wait()
        while not path.exists() or count(path) <= held:
            pass
        os.kill(one.pid or 0, signal.SIGKILL)
        one.join()
        Table.read(path).add({(FAMILY, (1, 2)): MS})
        assert Table.read(path).damaged == 0
        held = count(path)  # the next is killed once it has written: never while it leaves the barrier


@pytest.mark.parametrize(
    "damaged",
    [
        "[1]\n",
        "null\n",
        "\n",
        "[" * 100_000 + "\n",
        "\x00\x01\n",
        line(op=...),
        line(op=5),
        line(op=""),
        line(op="conv"),
        line(op="conv a b float32"),
        line(op="conv 1 1 -8 3 1 float32"),
        line(op="conv 1 1 8 float32"),
        line(op="product float32"),
        line(op="dance 1 float32"),
        line(median_ms="fast"),
        line(median_ms=float("nan")),
        line(median_ms=float("inf")),
        line(median_ms=-5),
        line(median_ms=10**400),
        line(median_ms=True),
        line(spread_ms=None),
        line(repeats=0),
        line(threads=1.5),
        line(target=3),
        line(widths=["a", "b"]),
        line(widths=[0, 0]),
        line(widths=[2.5, 8]),
        line(widths=[1, 2, 3]),
        line(widths=7),
        line()[:60] + "\n",
        line()[:60],
    ],
)
def test_a_damaged_line_is_left_out_counted_and_repaired(damaged: str, tmp_path: Path) -> None:
    path, good = tmp_path / "t.jsonl", line(widths=[3, 8])
    path.write_text(HEADER + good + damaged)
    path.chmod(0o640)
    table = Table.read(path, KEY)
    assert table.points == {FAMILY: {(3, 8): MS}} and table.damaged == 1
    assert table.remark() == f"latency table {path}: 1 line is damaged and left out"
    assert path.read_text() == HEADER + good + damaged  # who reads changes nothing
    table.add({(FAMILY, (4, 8)): MS})
    assert path.read_text() == HEADER + good + line(widths=[4, 8]) and path.stat().st_mode & 0o777 == 0o640
    assert Table.read(path).remark() is None


def test_what_later_versions_add_to_a_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(HEADER + line(v=2, median_ms=3))
    assert Table.read(path, KEY).points == {FAMILY: {(2, 8): Latency(3.0, 0.1, 9, 1, "x")}}


@pytest.mark.parametrize("content", [b"\x00\xff\xfe" * 20, HEADER[:12].encode(), b'{"table":5}\n', b"[1]\n"])
def test_without_a_header_a_file_is_no_table_but_the_cache_goes_on(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path))
    path = Table.cached(KEY).path
    assert path is not None
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a latency table"):
        Table.read(path, KEY)
    Table.cached(KEY).add({(FAMILY, (2, 8)): MS})
    assert path.read_text() == HEADER + line()


def test_an_empty_file_is_a_table_that_begins(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.touch()
    with pytest.raises(DataError, match="not a latency table"):
        Table.read(path)
    Table.read(path, KEY).add({(FAMILY, (2, 8)): MS})
    assert path.read_text() == HEADER + line()


def test_a_table_of_another_key_is_neither_read_nor_written(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    Table(KEY, path).add({(FAMILY, (2, 8)): MS})
    before = path.read_bytes()
    with pytest.raises(DataError, match="recorded for"):
        Table({"target": "y"}, path).add({(FAMILY, (2, 8)): MS})
    assert path.read_bytes() == before


# ---- what a table is of ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["onnx", "tvm", "aarch64"])
def test_another_version_or_other_schedules_are_another_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = target(name).key(1)
    assert key["code"] and key == target(name).key(1)
    monkeypatch.setattr(type(target(name)), "code", lambda self: "others")
    assert target(name).key(1) != key
    monkeypatch.undo()
    monkeypatch.setattr(sys.modules["graphprune.backends.target"], "version", lambda name: "0.0.1")
    assert target(name).key(1) != key
