"""Devices behind RPC, the winner of several code generators, and targets that are not here."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.api import record
from graphprune.backends import target
from graphprune.backends.boards import board
from graphprune.backends.target import on_device
from graphprune.cost.latency.table import Table
from graphprune.cost.latency.workload import Family
from graphprune.errors import TargetError
from graphprune.ir.program import Program

pytest.importorskip("tvm")

CONV = Family("conv", (1, 1, 8, 3, 1, 8, 3, 1))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(512, 4))
    return gp.load(nn.Sequential(*layers).eval(), torch.randn(1, 3, 8, 8))


@pytest.fixture(scope="module")
def tracker() -> Iterator[str]:
    """A tracker of this machine with two servers, each standing for a board, as a user starts them."""
    pytest.importorskip("tornado")
    if platform.machine() != "x86_64" or not shutil.which(board("x86_64").cc):
        pytest.skip("the servers stand for x86_64 boards")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    at = ["--host", "127.0.0.1"]
    lines = [["rpc_tracker", *at, "--port", str(port), "--port-end", str(port + 1)]]
    lines += [
        [
            "rpc_server",
            *at,
            "--port",
            "9300",
            "--port-end",
            "9400",
            "--tracker",
            f"127.0.0.1:{port}",
            "--key",
            "board",
            "--no-fork",
        ]
    ] * 2
    environment = {**os.environ, "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", f"tvm.exec.{line[0]}", *line[1:]], env=environment, start_new_session=True
        )
        for line in lines
    ]
    address = f"127.0.0.1:{port}/board"
    try:
        _wait(address, 2)
        yield address
    finally:
        for one in running:
            os.killpg(one.pid, signal.SIGKILL)
            one.wait()


def _wait(address: str, count: int) -> None:
    """Until so many devices have reported to the tracker."""
    from tvm import rpc

    host, _, port = address.partition("/")[0].rpartition(":")
    for _ in range(600):
        with contextlib.suppress(RuntimeError, OSError, ConnectionError):
            if rpc.connect_tracker(host, int(port)).summary()["queue_info"].get("board", {}).get("free", 0) >= count:
                return
        time.sleep(0.5)
    pytest.skip("the RPC servers did not start")


@pytest.mark.slow
def test_two_devices_share_the_work(tracker: str) -> None:
    from graphprune.backends.tvm.rpc import sessions

    found = sessions(tracker)
    assert len(found) == 2
    del found
    _wait(tracker, 2)
    on = on_device(target("x86_64"), tracker)
    wanted = [(CONV, (16, 16 * k)) for k in range(1, 43)]  # two batches
    times = {point: one for batch in on.time_ops(wanted) for point, one in batch.items()}
    assert set(times) == set(wanted) and all(one.median_ms > 0 for one in times.values())


@pytest.mark.slow
def test_a_network_is_measured_and_recorded_on_a_device(program: Program, tracker: str, tmp_path: Path) -> None:
    on = on_device(target("x86_64"), tracker)
    batch = program.host.example()
    assert np.abs(on.runnable(program).run(batch)[0] - program.host.run(batch)[0]).max() < 1e-4
    table = record(program, "x86_64", rpc=tracker, out=tmp_path / "board.jsonl")
    again = Table.read(tmp_path / "board.jsonl", target("x86_64").key(1))
    assert again.points == table.points and sum(map(len, table.points.values())) > 3
    artifact = gp.compile(program, latency="0.8x", targets=["x86_64"], table=tmp_path / "board.jsonl")
    facts = artifact.report["latency"]
    assert facts["measured_ms"] is None and 0 < facts["predicted_ms"] <= 0.8 * facts["whole_ms"]


@pytest.mark.slow
def test_devices_share_a_search_and_the_board_gets_what_it_found(
    program: Program, tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphprune.backends.effort import Budget
    from graphprune.backends.tvm.worker import Device, Workers

    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))
    _wait(tracker, 2)
    assert len(Workers(1, Device(board("x86_64"), tracker)).each) == 2
    on = on_device(target("x86_64"), tracker)
    tuned, found = on.tune(program, Budget(24))
    assert found["trials"] == 24 and all(op["tuned_ms"] <= op["untuned_ms"] for op in found["ops"])
    batch = program.host.example()
    folder = tmp_path / "out"
    folder.mkdir()
    code = tuned.load(tuned.emit(program, folder), example=batch)  # as a program of its own, tuned
    assert np.abs(code.run(batch)[0] - program.host.run(batch)[0]).max() < 1e-4


def test_a_board_is_tuned_on_the_device_and_in_machine_code(program: Program) -> None:
    from graphprune.backends.effort import Budget

    with pytest.raises(TargetError, match="target `aarch64`: no device to tune on"):
        target("aarch64").tune(program, Budget(1))
    with pytest.raises(TargetError, match="target `c`: only machine code can be tuned, not C"):
        on_device(target("c"), "127.0.0.1:1").tune(program, Budget(1))


def test_addresses_that_do_not_answer(program: Program) -> None:
    from graphprune.backends.tvm.rpc import sessions

    with pytest.raises(TargetError, match="is not an RPC address"):
        sessions("nowhere")
    with pytest.raises(TargetError, match="no RPC device answers"):
        sessions("127.0.0.1:1")
    done: list[str] = []
    with pytest.raises(TargetError, match="no RPC device answers"):
        gp.compile(program, targets=["aarch64{link=false}"], rpc="127.0.0.1:1", progress=lambda *a: done.append(a[0]))
    assert done == ["load"]


def test_without_a_device_a_board_times_nothing() -> None:
    with pytest.raises(TargetError, match="no device to time ops on\n  hint: --rpc HOST:PORT"):
        target("raspberry-pi-4").time_ops([(CONV, (16, 16))])
    assert on_device(target("ort"), "host:1") == target("ort")


def test_the_winner_is_kept_and_both_are_reported(program: Program, tmp_path: Path) -> None:
    artifact = gp.compile(program, macs="0.6x", targets=["best-cpu"], out=tmp_path / "out")
    facts = artifact.report["targets"]["best-cpu"]
    times = facts["of_the_winner"]  # its milliseconds are those of the report
    assert set(times) == {"onnx", "tvm"} and min(times.values()) == times[facts["winner"]] == 1
    places = {path.name for path in (tmp_path / "out" / "best-cpu").iterdir()}
    assert places == {facts["winner"], "best.json"}
    assert json.loads((tmp_path / "out" / "best-cpu" / "best.json").read_text())["winner"] == facts["winner"]
    checks = [check["what"] for check in artifact.report["verification"]["checks"]]
    assert "code for best-cpu = model, float32" in checks


def test_cuda_says_what_is_missing(program: Program, tmp_path: Path) -> None:
    on = target("cuda")
    if (reason := on.unable()) is None:
        pytest.skip("there is a GPU here")
    assert "CUDA" in reason
    with pytest.raises(TargetError, match="target `cuda`: "):
        on.emit(program, tmp_path)
    assert list(tmp_path.iterdir()) == [] and on.grain == 8
    done: list[str] = []
    with pytest.raises(TargetError, match="target `cuda`: "):
        gp.compile(program, targets=[on], progress=lambda what, *_: done.append(what))
    assert done == ["load"]


@pytest.mark.parametrize("name", ["ort-cuda", "ort-tensorrt", "torch-cuda"])
def test_a_gpu_target_says_what_is_missing(program: Program, name: str) -> None:
    on = target(name)
    if (reason := on.unable()) is None:
        pytest.skip("there is a GPU here")
    assert "CUDA" in reason or "Tensorrt" in reason
    with pytest.raises(TargetError, match=f"target `{name}`: "):
        on.runnable(program)
    assert on.grain == 8


def test_a_gpu_that_is_not_there_leaves_the_rest_of_an_artifact(program: Program, tmp_path: Path) -> None:
    if target("ort-cuda").unable() is None:
        pytest.skip("there is a GPU here")
    artifact = gp.compile(program, macs="0.6x", targets=["onnx", "ort-cuda"], out=tmp_path / "out")
    assert set(artifact.report["after"]["per_target"]) == {"onnx"}
    assert any(note.startswith("ort-cuda: not run, ") for note in artifact.report["notes"])
    assert (tmp_path / "out" / "ort-cuda" / "model.onnx").is_file()


@pytest.mark.slow
def test_torch_compile_runs_the_pruned_model(program: Program) -> None:
    on = target("torch-compile")
    if on.unable():
        pytest.skip("no C++ compiler")
    artifact = gp.compile(program, macs="0.6x", targets=["torch-compile"])
    (check,) = [one for one in artifact.report["verification"]["checks"] if "code for" in one["what"]]
    assert check["what"] == "code for torch-compile = model, float32" and check["max_relative_error"] <= 1e-5
    assert artifact.report["after"]["latency_ms"]["target"] == "torch-compile"
