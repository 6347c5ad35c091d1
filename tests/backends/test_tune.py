"""Tuning: candidates in a process of their own, records that survive, code that computes the same."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import limits
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.backends import target
from graphprune.backends.effort import Budget
from graphprune.backends.tvm.records import Records, alone, fingerprint
from graphprune.backends.tvm.target import Tvm
from graphprune.backends.tvm.worker import Workers
from graphprune.errors import TargetError
from graphprune.ir.program import Program

pytest.importorskip("tvm")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2), nn.Flatten(2)
    ).eval()
    return gp.load(net, torch.randn(1, 16, 14, 14))


@pytest.fixture(scope="module")
def loops(program: Program) -> tuple[Any, dict[str, Any]]:
    """The TVM target, and the scheduled loops of every op."""
    from graphprune.backends.tvm.lower import imported, lowered

    code = target("tvm")._llvm()  # type: ignore[attr-defined]
    module = lowered(imported(program.host)[0], code)
    return code, {name.name_hint: f for name, f in module.functions_items() if name.name_hint != "main"}


def test_a_candidate_that_crashes_or_hangs_takes_nothing_down(
    loops: tuple[Any, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, functions = loops
    conv = alone(next(f for name, f in functions.items() if "conv2d" in name)).script()
    monkeypatch.setattr("graphprune.backends.tvm.worker.BUILD_SECONDS", limits.BACKSTOP_S)
    monkeypatch.setattr("graphprune.backends.tvm.worker.START_SECONDS", limits.BACKSTOP_S)
    with Workers() as workers:
        (worker,) = workers.each
        assert 0 < worker.timed(conv, str(code)) < math.inf
        first = worker._process.pid
        os.kill(first, signal.SIGSEGV)  # as a bad candidate does
        assert worker.timed(conv, str(code)) == math.inf
        assert worker.failures[-1].startswith("the process that ran it died (exit code -")
        good, bad = workers.timed([(conv, str(code)), ("not a module", str(code))], math.inf)
        assert 0 < good < math.inf and bad == math.inf and worker._process.pid != first
        os.kill(worker._process.pid, signal.SIGSTOP)  # as one that never ends
        monkeypatch.setattr("graphprune.backends.tvm.worker.BUILD_SECONDS", 0.1)
        monkeypatch.setattr("graphprune.backends.tvm.worker.RUN_SECONDS", 0.1)
        assert worker.timed(conv, str(code)) == math.inf and "took longer" in worker.failures[-1]


def test_a_script_without_a_main_guard_is_told_of_it(tmp_path: Path) -> None:
    """The process that times candidates imports the script, which would tune in it."""
    script = tmp_path / "script.py"
    script.write_text("from graphprune.backends.tvm.worker import Worker\n\nWorker().timed('', 'llvm')\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    told = done.stderr[done.stderr.index("errors.TargetError: ") :]
    assert done.stderr.count("Traceback") == 1
    assert told.startswith(
        "errors.TargetError: tuning: the process that times candidates does not start: it ended with exit"
    )
    assert told.endswith("""which has to call it below `if __name__ == "__main__":`\n""")


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


def test_a_schedule_that_takes_no_less_inside_the_network_is_forgotten(
    loops: tuple[Any, dict[str, Any]], tmp_path: Path
) -> None:
    from tvm import IRModule

    from graphprune.backends.tvm.tune import settle

    ops = dict(zip(("one", "two"), loops[1].values(), strict=False))
    records = Records(tmp_path / "records.jsonl")
    for op in ops.values():
        records.add(op, 1.0, "schedule")
    before = [(f"{name}_prepacked", 1, [2.0, 2.0, 9.0]) for name in ops]
    after = [*(("one", 1, [1.5, 0.5, 1.0]) for _ in range(2)), ("two", 1, [1.9, 1.8, 9.0])]  # two calls of the first
    assert settle(IRModule(ops), lambda: (before, after), records) == 1
    for kept in (records, Records(records.path)):
        assert kept.get(ops["one"]) is None and kept.get(ops["two"]) is not None
    records.add(ops["one"], 3.0, "another")
    assert Records(records.path).get(ops["one"]) == (3.0, "another")


def test_a_record_goes_on_a_line_of_its_own(loops: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"op": "cut sh')
    Records(path).add(next(iter(loops[1].values())), 1.0, "schedule")
    assert len(Records(path).best) == 1


def _searched(code: Any, functions: dict[str, Any], path: Path) -> None:
    """Records of two ops, and a search's own: a trial of the first op and two of the second."""
    from tvm.s_tir import Schedule
    from tvm.s_tir import meta_schedule as ms

    records = Records(path)
    database = records.database()
    for number, function in enumerate(list(functions.values())[:2], 1):
        records.add(function, 1.0, "schedule")
        workload = database.commit_workload(alone(function))
        for _ in range(number):
            trace = Schedule(alone(function)).trace
            info = ms.arg_info.ArgInfo.from_prim_func(alone(function)["main"])
            database.commit_tuning_record(ms.database.TuningRecord(trace, workload, [1.0 / number], code, info))


BINARY = b"\x00\xff\n" * 9


@pytest.mark.parametrize(
    ("kind", "damage", "left", "told"),
    [
        ("workloads.json", lambda _: b"", 0, "3 of 3 lines of .*trials.json"),
        ("workloads.json", lambda _: BINARY, 0, "9 of 9 lines of .*workloads.json"),
        ("workloads.json", lambda text: text[:-99], 1, "2 of 3 lines of .*trials.json"),
        ("workloads.json", lambda text: b"?" + text, 2, "1 of 2 lines of .*workloads.json"),
        ("trials.json", lambda text: text[:9] + b"\n" + text, 3, "1 of 4 lines of .*trials.json"),
        ("trials.json", lambda _: BINARY, 0, "9 of 9 lines of .*trials.json"),
        ("jsonl", lambda text: BINARY + text, 3, "9 of 11 lines of .*records.jsonl"),
    ],
)
def test_of_damaged_records_is_kept_what_can_be_read(
    loops: tuple[Any, dict[str, Any]],
    tmp_path: Path,
    kind: str,
    damage: Callable[[bytes], bytes],
    left: int,
    told: str,
) -> None:
    path = tmp_path / "records.jsonl"
    _searched(*loops, path)
    file, aside = path.with_suffix(f".{kind}"), path.with_suffix(f".{kind}.damaged")
    there = damage(file.read_bytes())
    file.write_bytes(there)
    with pytest.warns(UserWarning, match=told):
        records = Records(path)
        database = records.database()
    assert len(records.best) == 2 and len(database) == left
    assert not aside.exists() or aside.read_bytes() == there
    for function in list(loops[1].values())[:2]:
        database.commit_workload(alone(function))
    assert len(Records(path).database()) == left, "the search can go on"


def test_a_schedule_that_cannot_be_read_is_left_out(program: Program, cache: Path) -> None:
    from graphprune.backends.tvm.lower import imported, lowered
    from graphprune.backends.tvm.tune import best_loops

    on = Tvm()
    code, module = on._llvm(), imported(program.host)[0]
    records = on.records(code, 1)
    plain = lowered(module, code, on.layout, False)
    name = next(name for name, _ in plain.functions_items() if "conv2d" in name.name_hint)
    records.add(plain[name], 1.0, "not a schedule")
    with pytest.warns(UserWarning, match=f"`{name.name_hint}` in .*{records.path.name} cannot be read"):
        _, found = best_loops(plain, code, records)
    assert found == 0


@pytest.mark.parametrize(
    ("text", "budget"),
    [("10min", Budget(minutes=10)), ("90s", Budget(minutes=1.5)), ("1h", Budget(minutes=60)), ("2000", Budget(2000))],
)
def test_a_budget_is_time_or_trials(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "0", "0min", "-3", "1.5", "10 parsecs"])
def test_a_budget_that_is_none(text: str) -> None:
    with pytest.raises(TargetError, match="10min, 90s, 1h, or a number of trials"):
        Budget.parse(text)


def test_targets_without_schedules_have_nothing_to_tune(program: Program) -> None:
    with pytest.raises(TargetError, match="target `onnx` has nothing to tune\n  hint: give a target that has"):
        gp.compile(program, macs="0.5x", targets=["ort"], tune="16")


@pytest.mark.slow
def test_a_search_ends_early_goes_on_and_serves_the_compiler(
    program: Program, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphprune.backends.tvm.target.settle", lambda *_: 0)  # what it forgets is up to the machine
    said: list[tuple[str, int, int]] = []

    def interrupting(what: str, done: int, total: int) -> None:
        said.append((what, done, total))
        if what.startswith("tune") and done >= 48:
            raise KeyboardInterrupt

    on = Tvm()
    _, found = on.tune(program, Budget(200), progress=interrupting)
    assert 48 <= found["trials"] == said[-1][1] < 100 and said[-1][2] == 200
    (trials,) = cache.glob("tuning/*.trials.json")
    measured = len(trials.read_text().splitlines())
    assert 0 < measured <= found["trials"]
    with trials.open("a") as file:
        file.write("[0, [[], [1.0")  # as a crash leaves it
    records = on.records(on._llvm(), 1)
    before = dict(records.best)
    tuned, found = on.tune(program, Budget(16))
    assert found["trials"] == 16 and tuned == Tvm(tuned=1)
    assert len(trials.read_text().splitlines()) > measured, "it went on from what was measured"
    after = on.records(on._llvm(), 1).best
    assert before and all(after[op][0] <= ms for op, (ms, _) in before.items())
    artifact = gp.compile(program, macs="0.99x", targets=["tvm"], tune="4")
    assert artifact.report["targets"]["tvm"]["tuned"] and artifact.report["tuning"]["trials"] == 4
    assert tuned.run(program, program.host.example())[0] == pytest.approx(
        program.host.run(program.host.example())[0], abs=1e-4
    )


@pytest.mark.slow
def test_weights_are_packed_as_the_schedule_reads_them(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphprune.backends.tvm.target.settle", lambda *_: 0)
    from graphprune.backends.tvm.lower import imported, lowered
    from graphprune.backends.tvm.tune import best_loops

    on = Tvm()
    on.tune(program, Budget(32))
    target = on._llvm()
    plain = lowered(imported(program.host)[0], target, on.layout, False)
    loops, found = best_loops(plain, target, on.records(target, 1))
    assert found > 0
    names = [name.name_hint for name, _ in loops.functions_items()]
    assert not any("weight_prepack" in name for name in names), "what packs constants ran at compile time"
    weights = sum(program.host.parameter(name).nbytes for name in program.graph.parameters)
    assert Tvm(tuned=1).emit(program, tmp_path).stat().st_size <= 1.1 * weights + 2**20, "packed, not kept twice"
