"""Tuning: candidates in a process of their own, records that survive, code that computes the same."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.backends import target
from graphprune.backends.candidate import Worker
from graphprune.backends.tune import Budget, Records, fingerprint
from graphprune.errors import TargetError
from graphprune.ir import Program

pytest.importorskip("tvm")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(2)).eval()
    return gp.load(net, torch.randn(1, 16, 14, 14))


@pytest.fixture(scope="module")
def loops(program: Program) -> tuple[Any, dict[str, Any]]:
    """The TVM target, and the scheduled loops of every op."""
    from graphprune.backends.relax import imported, lowered

    code = target("tvm")._llvm()  # type: ignore[attr-defined]
    module = lowered(imported(program.host)[0], code)
    return code, {name.name_hint: f for name, f in module.functions_items() if name.name_hint != "main"}


def alone(function: Any) -> Any:
    import tvm

    return tvm.IRModule({"main": function.with_attr("global_symbol", "main")})


def test_a_candidate_that_crashes_or_hangs_takes_nothing_down(
    loops: tuple[Any, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, functions = loops
    conv = alone(next(f for name, f in functions.items() if "conv2d" in name))
    with Worker() as worker:
        assert 0 < worker.time(conv, code) < 1000
        first = worker._process.pid
        os.kill(first, signal.SIGSEGV)  # as a bad candidate does
        assert worker.time(conv, code) == math.inf
        assert worker.failures[-1].startswith("the process that ran it died (exit code -")
        assert 0 < worker.time(conv, code) < 1000 and worker._process.pid != first
        assert worker.timed("not a module", str(code), math.inf) == math.inf
        os.kill(worker._process.pid, signal.SIGSTOP)  # as one that never ends
        monkeypatch.setattr("graphprune.backends.candidate.BUILD_SECONDS", 0.1)
        monkeypatch.setattr("graphprune.backends.candidate.RUN_SECONDS", 0.1)
        assert worker.time(conv, code) == math.inf and "took longer" in worker.failures[-1]


def test_records_survive_and_keep_the_best(loops: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    one, two = list(loops[1].values())[:2]
    path = tmp_path / "records.jsonl"
    records = Records(path)
    records.add(one, 2.0, "first")
    records.add(one, 3.0, "worse")
    records.add(one, 1.0, "best")
    records.add(two, 5.0, "other")
    with path.open("a") as file:
        file.write('{"op": "cut sh')
    again = Records(path)
    assert again.get(one) == (1.0, "best") and again.get(two) == (5.0, "other")
    assert len(path.read_text().splitlines()) == 4, "what is not better is not written"
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(one) == fingerprint(one.with_attr("global_symbol", "another_name"))


@pytest.mark.parametrize("options", [{"trials": -1}, {"minutes": -0.5}])
def test_a_budget_that_is_none(options: dict[str, Any]) -> None:
    with pytest.raises(TargetError, match="is not one"):
        Budget(**options)
