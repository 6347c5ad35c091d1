"""What a target is, and which there are."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from ..cost.latency.table import Point
from ..errors import TargetError, absent, nearest, shown
from ..ir.facts import Latency
from ..ir.host import Array, Batch
from ..ir.program import Program
from ..pipeline.base import plug_in_classes
from ..pipeline.contract import hold, place
from ..pipeline.options import Named, Reader, pattern
from .boards import boards
from .effort import Budget
from .measure import Progress, Runnable, interleave

_RETURNS = {
    "__post_init__": object,
    "unable": str | None,
    "unmeasured": str | None,
    "admit": type(None),
    "emit": Path,
    "load": Runnable,
    "runnable": Runnable,
    "run": Sequence,
    "measure": Latency,
    "time_ops": Iterator,
    "tune": tuple,
    "profile": dict,
    "found": dict,
    "code": str,
    "key": dict,
    "describe": dict,
}
"""What methods of a target give: held where another package writes them."""


@dataclass(frozen=True)
class Target(Named):
    """Where code goes: a frozen dataclass whose fields, each with a default, are its options.

    A target of one's own subclasses this, sets ``name``, writes ``emit``, and ``load`` where its code runs on this
    machine, and is declared as an entry point of the group ``graphprune.targets``; `graphprune new target NAME`
    writes such a package.
    """

    summary: ClassVar[str] = ""  # one line for `graphprune targets`
    grain: ClassVar[int] = 1  # a channel count the target likes is a multiple of it; 1: any
    tolerance: ClassVar[float] = 1e-5  # of the code against the model, max |a - b| / max |a| in float32
    profiles: ClassVar[bool] = False  # `profile` takes no more than running the program does
    packages: ClassVar[tuple[str, ...]] = ()  # distributions whose versions matter
    remark: ClassVar[str] = ""  # what a reader of the numbers has to know

    def __init_subclass__(cls) -> None:
        hold(cls, "target", _RETURNS, TargetError)

    @property
    def label(self) -> str:
        """What reports and folders call it: the name, where options do not say it better."""
        return self.name

    def unable(self) -> str | None:
        """Why its code cannot be run on this machine, or None; without a ``load`` of its own it cannot."""
        return "it cannot be run here (the target has no `load`)" if type(self).load is Target.load else None

    def require(self, hint: str | None = None) -> None:
        """Raises TargetError where the target's code cannot be run on this machine."""
        if reason := self.unable():
            raise TargetError(f"target `{self.label}`: {reason}", hint)

    def unmeasured(self) -> str | None:
        """Why its code cannot be timed from this machine, or None."""
        return self.unable()

    def admit(self, program: Program) -> None:
        """Raises TargetError where the target cannot express the program, as far as that can be told before it is
        pruned and compiled: asked before any work is done."""

    def emit(self, program: Program, folder: Path) -> Path:
        """Write the program's code into an existing folder; return the main file. Raises TargetError
        where the target cannot express the program."""
        raise self._unwritten("emit")

    def load(self, path: Path, *, threads: int = 1, example: Batch | None = None) -> Runnable:
        """What ``emit`` wrote, ready to run: a Runnable, which says how. By default it cannot be run here: the code is
        written, and the report says that nothing checked and timed it.

        ``path``: what ``emit`` returned. ``threads``: CPU threads that it may use. ``example``: the arrays that calls
        run on, one per input of the model, in its order; None: those that the code itself holds, where it does."""
        raise self._unwritten("load")

    def runnable(self, program: Program, *, threads: int = 1) -> Runnable:
        """The program, emitted and loaded, on the host's example inputs."""
        folder = tempfile.TemporaryDirectory(prefix="graphprune-")
        loaded = self.load(self.emit(program, Path(folder.name)), threads=threads, example=program.host.example())
        loaded.folder = folder
        return loaded

    def run(self, program: Program, batch: Batch) -> list[Array]:
        """The outputs the target computes for one batch."""
        return self.runnable(program).run(batch)

    def measure(
        self,
        program: Program,
        *,
        repeats: int = 20,
        threads: int = 1,
        seconds: float = 5.0,
        progress: Progress | None = None,
    ) -> Latency:
        """The latency of one run on the host's example inputs. See measure.interleave."""
        call = self.runnable(program, threads=threads)
        return interleave({self.label: call}, repeats, seconds=seconds, progress=progress)[self.label]

    def searched(self, program: Program, *, threads: int = 1) -> Target:
        """The target that a latency budget is met on: this one, or of several the fastest for the program."""
        return self

    def time_ops(self, points: Sequence[Point], *, threads: int = 1) -> Iterator[dict[Point, Latency]]:
        """What each op takes alone, a batch at a time: the points of a latency table. Raises TargetError
        where the target cannot time single ops."""
        raise TargetError(
            f"target `{self.label}` does not time single ops, which a latency budget needs",
            "name one that does first, for a network of torch or ONNX: --target ort (ONNX Runtime), --target cpu (TVM)",
        )

    def tune(
        self, program: Program, budget: Budget, *, threads: int = 1, seed: int = 0, progress: Progress | None = None
    ) -> tuple[Target, dict[str, Any]]:
        """The same target with schedules searched for the program's ops, where ``measure`` would measure
        it, and what the search found, for the report. Raises TargetError where there is nothing to tune."""
        raise TargetError(f"target `{self.label}` has nothing to tune", "give a target that has first: cpu, best-cpu")

    def profile(self, program: Program, *, threads: int = 1) -> dict[str, float]:
        """What ops take inside the program, in ms by op name, as far as the target can tell."""
        return {}

    def found(self, path: Path) -> dict[str, Any]:
        """What ``emit`` found out when it wrote ``path``, for the report."""
        return {}

    def code(self) -> str:
        """What shapes its code beyond options and versions: a build, schedules of graphprune's own. Empty: nothing."""
        return ""

    def key(self, threads: int) -> dict[str, Any]:
        """What a latency table is of: two tables of equal key hold the same numbers."""
        return {
            **({"code": code} if (code := self.code()) else {}),
            "target": self.text(),
            "versions": {name: _version(name) for name in self.packages},
            "machine": host_cpu(),
            "threads": threads,
        }

    def describe(self) -> dict[str, Any]:
        """What a report needs to make sense of the numbers: options, versions, the CPU, a remark."""
        return {
            "name": self.name,
            "target": self.text(),
            "options": self.options(),
            "grain": self.grain,
            "versions": {name: _version(name) for name in self.packages},
            "cpu": host_cpu(),
            "remark": self.remark,
        }

    def _unwritten(self, name: str) -> TargetError:
        hint = "write it, or have `unable` say why its code does not run" if name == "load" else "write it"
        return TargetError(f"{place('target', type(self))} has no `{name}`", hint)


ALIASES = {"ort": "onnx", "cpu": "tvm"}
_BUILT_IN = {
    "torch": "torch:Torch",
    "torch-compile": "torch:TorchCompile",
    "torch-cuda": "torch:TorchCuda",
    "onnx": "onnxruntime.target:Onnx",
    "ort-cuda": "onnxruntime.target:OrtCuda",
    "ort-tensorrt": "onnxruntime.target:OrtTensorrt",
    "tvm": "tvm.target:Tvm",
    "edge": "edge.target:Edge",
    "best-cpu": "best:Best",
    "cuda": "tvm.cuda:Cuda",
}
_SPEC = pattern(r"[A-Za-z_./~][\w./~-]*")


@cache
def targets() -> Mapping[str, type[Target]]:
    """Every target by name: the built-in ones and those of the entry-point group ``graphprune.targets``.
    A plug-in cannot replace a built-in target. Raises TargetError for a plug-in that is no target."""
    found = plug_in_classes("graphprune.targets", "target", Target, TargetError)
    for name, where in _BUILT_IN.items():
        module, _, kind = where.partition(":")
        found[name] = getattr(import_module(f"{__package__}.{module}"), kind)
    return found


def target(spec: str) -> Target:
    """The target that a text such as ``tvm`` or ``tvm{mcpu=znver4 layout=NCHW}`` means. ``ort`` is
    ``onnx``; ``cpu`` is ``tvm``; a board (``aarch64``, ``raspberry-pi-4``, a .toml file) is ``edge`` for
    it. Raises TargetError for an unknown name, option or value."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        hint = "write it as tvm or tvm{option=value option=value}"
        raise TargetError(f"cannot read the target `{shown(spec)}`", hint)
    name, body = match.groups()
    kind, values = _named(name)
    reader = Reader(name, TargetError, "target ")
    return kind(**{**values, **reader.values(kind, reader.split(body))})


def names() -> list[str]:
    """All that ``target`` takes as a name: targets, aliases, boards."""
    return [*targets(), *ALIASES, *boards()]


def on_devices(every: Sequence[Target], address: str) -> list[Target]:
    """Those of the targets that are of devices, measured on the one at an RPC address; the others as they are. Raises
    TargetError where none is."""
    if not any("rpc" in one.options() for one in every):
        raise TargetError(
            f"rpc={shown(address)} names a device, and no target is of one",
            "give a board: --target raspberry-pi-4 (`graphprune targets` lists them)",
        )
    return [on_device(one, address) for one in every]


def on_device(one: Target, address: str) -> Target:
    """The same target, measured on the device at an RPC address, where it is one of devices."""
    options = {"rpc": address} if "rpc" in one.options() else {}
    return replace(one, **options)


def _named(name: str) -> tuple[type[Target], dict[str, Any]]:
    """The target that a name means, and the options that go with the name."""
    kind = targets().get(ALIASES.get(name, name))
    if kind is not None:
        return kind, {}
    if name in boards() or name.endswith(".toml"):
        return targets()["edge"], {"board": name}
    raise TargetError(f"unknown target `{shown(name)}`", nearest(name, names()))


def runnable(
    what: str | Path | Program, *, threads: int = 1, example: Batch | None = None, inputs: Any = None
) -> Runnable:
    """Anything that can be measured, ready to run on fixed inputs.

    A Program runs on its host's own framework; a ``.onnx`` file in ONNX Runtime, a ``.pt2`` file in
    torch, a ``.so`` (or its folder) that the tvm target wrote in TVM; an output folder through the
    model in it. ``example`` replaces the inputs (to give two models the same); ``inputs`` says them or their
    sizes, as ``api.load`` takes them. Raises TargetError for anything else, ModelError for a broken model.
    """
    if isinstance(what, Program):
        return target(what.host.native_target).runnable(what, threads=threads)
    path = Path(what)
    if path.is_dir():
        inside = [path / name for name in ("model.so", "model.onnx", "model.pt2") if (path / name).is_file()]
        if not inside:
            raise TargetError(
                f"{path}: no model.so, model.onnx or model.pt2 in this folder",
                "give one that `graphprune compile` wrote",
            )
        path = inside[0]
    names = {".onnx": "onnx", ".pt2": "torch", ".so": "tvm"}
    if ":" in path.name and not path.exists():
        raise TargetError(
            f"{path}: a function, and files are measured", "`graphprune compile` writes one, so does torch.export.save"
        )
    if not path.exists():
        raise TargetError(f"{path}: no such file", absent(path))
    if path.suffix not in names:
        raise TargetError(
            f"{path}: nothing known runs `{path.suffix or path.name}`",
            f"give a file that ends in {', '.join(names)}, or a folder",
        )
    if inputs is not None:
        example = _example(path, inputs)
    return target(names[path.suffix]).load(path, threads=threads, example=example)


def _example(path: Path, inputs: Any) -> Batch:
    """The inputs that are given, of a model file."""
    if path.suffix == ".so":
        raise TargetError(f"{path}: compiled for inputs of one size", "leave out --input, or compile it at these sizes")
    if path.suffix == ".onnx":
        from ..hosts.onnx.host import OnnxHost

        return OnnxHost.load(path, inputs).example()
    from ..hosts.torch.host import TorchHost

    host = TorchHost.load(path)
    host.resize(inputs)
    return host.example()


@cache
def host_cpu() -> str:
    """The CPU's name as the system gives it, and how many cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"


def fits(example: Batch, batch: Batch, where: str) -> None:
    """Raises TargetError unless ``batch`` has the shapes that code was compiled for."""
    want, got = [tuple(a.shape) for a in example], [tuple(a.shape) for a in batch]
    if want != got:
        message = f"{where}: compiled for inputs of shape {want}, the batch has {got}"
        raise TargetError(message, "compile it with an example of that shape")


def _version(name: str) -> str:
    """Of a distribution; where a package was installed without one (built from source, or for a GPU), its own word."""
    try:
        return version(name)
    except PackageNotFoundError:
        module = _MODULES.get(name)
    if module is None or find_spec(module) is None:
        return "not installed"
    return str(getattr(import_module(module), "__version__", "not known"))


_MODULES = {
    "onnxruntime": "onnxruntime",
    "onnxruntime-gpu": "onnxruntime",
    "apache-tvm": "tvm",
    "apache-tvm-ffi": "tvm_ffi",
}
