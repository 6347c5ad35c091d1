"""Latency tables know which schedules they are of."""

from __future__ import annotations

from pathlib import Path

from graphprune.backends import tvm
from graphprune.backends.tvm.records import Records
from graphprune.backends.tvm.sources import OTHERS, SHAPING, fingerprint, schedules


def test_every_module_either_shapes_code_or_does_not() -> None:
    assert sorted(SHAPING + OTHERS) == sorted(path.stem for path in Path(tvm.__path__[0]).glob("*.py"))
    assert len(schedules()) == 16


def test_comments_are_no_schedules() -> None:
    source = 'def tile() -> int:\n    """Four."""\n    return 4\n'
    assert fingerprint(source) == fingerprint("def tile() -> int:\n    return 4  # as before\n")
    assert fingerprint(source) != fingerprint(source.replace("return 4", "return 8"))


def test_what_a_search_found_outlives_the_fixed_schedules() -> None:
    assert Records.of({"target": "tvm", "code": "a"}).path == Records.of({"target": "tvm", "code": "b"}).path
