"""The edge target: a network as a small library of its own for a device that has neither Python nor TVM."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...cost.latency.table import Point
from ...errors import ModelError, TargetError, first_line, nearest
from ...ir.facts import Latency
from ...ir.host import HALVES, Array, Batch
from ...ir.program import Program
from ..boards import Board, board
from ..effort import Budget
from ..measure import Progress, Runnable
from ..target import Target, fits
from ..tvm.lower import imported, interface, last_line, lowered, toolchain
from ..tvm.records import Records
from ..tvm.sources import schedules
from ..tvm.tune import best_loops, search
from ..tvm.worker import Device, Workers
from . import c_writer as standalone
from . import lanes
from .call_sequence import Plan, plan
from .workspace import Workspace

_INTERFACE = "model.json"


@dataclass(frozen=True)
class Edge(Target):
    """``libmodel.so`` with ``weights.bin`` and ``run``, a program that uses them, cross-compiled for a
    board; the sources, and the line that builds them. No runtime is needed but libc."""

    name: ClassVar[str] = "edge"
    summary: ClassVar[str] = "libmodel.so and weights.bin for a board, compiled by TVM and LLVM; needs libc alone"
    tolerance: ClassVar[float] = 1e-4
    grain: ClassVar[int] = 8  # lanes of two NEON registers
    packages: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi")
    remark: ClassVar[str] = "untuned: loops follow a fixed schedule and were not tuned on the device"

    board: str = "aarch64"  # a name that `graphprune targets` lists, or a .toml file
    link: bool = True  # False: write the sources and the object; build.sh links on the device
    rpc: str = ""  # where the device answers, to measure on it: host:port, or host:port/key for a tracker
    layout: str = "NHWC"  # of convolutions: NHWC vectorises over channels; NCHW as imported
    tuned: int = 0  # with the schedules that a search on so many threads recorded; 0: the fixed ones alone

    def __post_init__(self) -> None:
        if self.layout not in ("NHWC", "NCHW"):
            hint = nearest(self.layout, ["NHWC", "NCHW"])
            raise TargetError(f"`edge`: option `layout` is NHWC or NCHW, not `{self.layout}`", hint)
        board(self.board)

    @property
    def label(self) -> str:
        return Path(self.board).stem

    def admit(self, program: Program) -> None:
        self._device()
        if self.rpc:
            from ..tvm import rpc

            rpc.sessions(self.rpc, most=1)
        _imported(self, program)

    def _device(self) -> Board:
        """The board. Raises TargetError where what links for it is missing."""
        device = board(self.board)
        if self.link and not shutil.which(device.cc):
            raise standalone.no_compiler(self.label, device)
        return device

    def emit(self, program: Program, folder: Path) -> Path:
        device = self._device()
        names, made = _compile(self, device, program, folder)
        example = program.host.example()
        facts = {
            "target": self.text(),
            "board": device.name,
            "triple": device.triple,
            "weights_bytes": made.weights_bytes,
            "arena_bytes": made.arena_bytes,
            "live_bytes": made.live_bytes,
            "workspace_bytes": made.workspace_bytes,
            **interface(names, example, program.host.run(example)),
        }
        (folder / _INTERFACE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if not self.link:
            return folder / "build.sh"
        done = subprocess.run(["sh", "build.sh"], cwd=folder, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise TargetError(f"target `{self.label}`: build.sh failed: {_complaint(done.stderr)}")
        return folder / ("libmodel.a" if device.bare else "libmodel.so")

    def found(self, path: Path) -> dict[str, Any]:
        """What the weights take, the scratch that gp_run asks for, the most that is alive in it at once, and the most
        that kernels ask malloc for beside it."""
        facts = json.loads(path.with_name(_INTERFACE).read_text(encoding="utf-8"))
        return {key: facts[key] for key in ("weights_bytes", "arena_bytes", "live_bytes", "workspace_bytes")}

    def load(self, path: Path, *, threads: int = 1, example: Batch | None = None) -> Runnable:
        return _Emulated(path, board(self.board), threads, example)

    def unable(self) -> str | None:
        if not self.link:
            return "not linked here"
        try:
            board(self.board).runner()
        except TargetError as error:
            return error.message
        return None

    def unmeasured(self) -> str | None:
        return None if self.rpc else "an emulator's time says nothing about the device's; --rpc measures on it"

    def runnable(self, program: Program, *, threads: int = 1) -> Runnable:
        """On the device, where one answers: in TVM's virtual machine, with the kernels that `emit` writes."""
        if not self.rpc:
            return super().runnable(program, threads=threads)
        from ..tvm import rpc

        device, tvm = board(self.board), toolchain()
        code = _code(device)
        module, _ = _imported(self, program)
        executable = tvm.compile(self.loops(module, code), code)
        return rpc.Remote(executable, device, self.rpc, self.label, threads, program.host.example())

    def time_ops(self, points: Sequence[Point], *, threads: int = 1) -> Iterator[dict[Point, Latency]]:
        if not self.rpc:
            raise TargetError(
                f"target `{self.label}`: no device to time ops on",
                "--rpc HOST:PORT, or --table with one that `graphprune record` wrote",
            )
        from ..tvm import rpc

        return rpc.time_ops(points, threads, self.label, board(self.board), self.rpc)

    def tune(
        self, program: Program, budget: Budget, *, threads: int = 1, seed: int = 0, progress: Progress | None = None
    ) -> tuple[Target, dict[str, Any]]:
        device = board(self.board)
        if not self.rpc or device.code != "object":
            said = "no device to tune on" if not self.rpc else "only machine code can be tuned, not C"
            raise TargetError(f"target `{self.label}`: {said}", "--rpc HOST:PORT, with a board that LLVM compiles for")
        code = _code(device)
        plain = lowered(_imported(self, program)[0], code, self.layout, False, device.growth)
        records, workers = self.records(threads), Workers(threads, Device(device, self.rpc))
        found = search(plain, code, budget, records, workers, cores=threads, seed=seed, progress=progress)
        return replace(self, tuned=threads), found

    def records(self, threads: int) -> Records:
        """The schedules recorded for the board."""
        return Records.of(replace(self, tuned=0).key(threads))

    def loops(self, module: Any, code: Any) -> Any:
        """An imported module's loops, scheduled."""
        loops = lowered(module, code, self.layout, not self.tuned, board(self.board).growth)
        return best_loops(loops, code, self.records(self.tuned))[0] if self.tuned else loops

    def code(self) -> str:
        return schedules()

    def key(self, threads: int) -> dict[str, Any]:
        """The device is the machine; where it answers is not what it is."""
        return {**super().key(threads), "target": replace(self, rpc="").text(), "machine": self.label}

    def describe(self) -> dict[str, Any]:
        device = board(self.board)
        return {**super().describe(), "tuned": self.tuned > 0, "mcpu": device.mcpu, "triple": device.triple}


def _imported(target: Edge, program: Program) -> tuple[Any, list[str]]:
    """See lower.imported. Raises TargetError for numbers that C does not have, too."""
    for op in program.graph.ops if board(target.board).code == "c" else ():
        half = next((value for value in (*op.inputs, *op.outputs) if value and value.dtype in HALVES), None)
        if half is not None:
            raise TargetError(
                f"target `{target.label}`: {op.origin} ({op.kind}): {half} is {half.dtype}, which C does not have",
                "convert the model to float32 (torch: `.float()`, before it is exported), or take the target `onnx`",
            )
    return imported(program.host, target.label)


def _compile(target: Edge, device: Board, program: Program, folder: Path) -> tuple[list[str], Plan]:
    """Everything but the linking; the names of the inputs, and where things lie."""
    tvm = toolchain()
    module, names = _imported(target, program)
    # Nobody catches an assertion on the device, and every caller of these kernels is a table of ours.
    config = {"tirx.disable_assert": True, "tirx.disable_vectorize": device.code == "c"}
    with tvm.transform.PassContext(opt_level=3, config=config):
        try:
            code = _code(device)
            made, kernels = plan(target.loops(module, code), target.label)
            standalone.check(made, target.label)
            if device.code == "c":
                kernels = lanes.named(kernels)
            workspace = Workspace()
            with tvm.transform.PassContext(opt_level=3, config=config, instruments=[workspace.instrument]):
                built = tvm.tirx.build(kernels, target=code)
            made.workspace_bytes = workspace.bytes
        except TargetError:
            raise
        except Exception as error:  # TVM's passes share no base class for what they raise
            raise TargetError(f"target `{target.label}`: cannot compile the model: {last_line(error)}") from error
    standalone.write(made, built, device, folder)
    return names, made


def _code(device: Board) -> Any:
    """What TVM makes for a board: its own word for it."""
    tvm = toolchain()
    standalone.functions()
    return tvm.target.Target(device.llvm())


def _complaint(said: str) -> str:
    lines = [line for line in said.splitlines() if "error" in line] or said.splitlines()
    return lines[0][:300] if lines else "it said nothing"


class _Emulated(Runnable):
    """The program ``run``: as it is where this machine can, else in qemu's user mode."""

    def __init__(self, path: Path, device: Board, threads: int, example: Batch | None) -> None:
        self._program = path.with_name("run")
        described = path.with_name(_INTERFACE)
        try:
            facts: Mapping[str, Any] = json.loads(described.read_text(encoding="utf-8"))
            self._inputs: Sequence[Mapping[str, Any]] = facts["inputs"]
            self._outputs: Sequence[Mapping[str, Any]] = facts["outputs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{described}: not what the edge target writes beside a library ({first_line(error)})"
            raise ModelError(message) from error
        self._command = device.runner()
        self._holes = [np.zeros(hole["shape"], hole["dtype"]) for hole in self._inputs]
        super().__init__("edge", threads, self._holes if example is None else example)

    def run(self, batch: Batch) -> list[Array]:
        fits(self._holes, batch, f"{self._program}")
        with tempfile.TemporaryDirectory(prefix="graphprune-") as name:
            folder = Path(name)
            self._call(folder, batch)
            return [
                np.fromfile(folder / f"output{k}.bin", out["dtype"]).reshape(out["shape"])
                for k, out in enumerate(self._outputs)
            ]

    def bind(self, batch: Batch) -> Callable[[], object]:
        return lambda: self.run(batch)

    def _call(self, folder: Path, batch: Batch) -> None:
        files = []
        for k, (array, hole) in enumerate(zip(batch, self._holes, strict=True)):
            np.asarray(array, hole.dtype, order="C").tofile(folder / f"input{k}.bin")
            files.append(str(folder / f"input{k}.bin"))
        command = [*self._command, str(self._program.resolve()), str(folder), "-t", str(self.threads), *files]
        try:
            done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        except OSError as error:
            raise TargetError(f"{self._program}: cannot be run: {error}") from error
        if done.returncode:
            said = _complaint(done.stderr) if done.stderr else f"exit code {done.returncode}"
            raise TargetError(f"{self._program}: {shlex.join(command[:2])} failed: {said}")
