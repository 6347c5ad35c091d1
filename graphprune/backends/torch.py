"""The torch target: PyTorch itself, eager or through torch.compile, on the CPU or a GPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import TargetError, first_line
from ..ir.host import Array, Batch
from ..ir.program import Program
from .measure import Runnable
from .target import Target

if TYPE_CHECKING:
    from ..hosts.torch.host import TorchHost


@dataclass(frozen=True)
class Torch(Target):
    """A ``.pt2`` file, and eager PyTorch to run it."""

    name: ClassVar[str] = "torch"
    summary: ClassVar[str] = "model.pt2, run by PyTorch (eager, CPU)"
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    remark: ClassVar[str] = "eager PyTorch: small networks are dominated by the cost of calling operators"

    def emit(self, program: Program, folder: Path) -> Path:
        _torch_host(program)
        path = folder / "model.pt2"
        program.host.save(path)
        return path

    def load(self, path: Path, *, threads: int = 1, example: Batch | None = None) -> Runnable:
        from ..hosts.torch.host import TorchHost

        return self._ready(TorchHost.load(path), threads, example)

    def runnable(self, program: Program, *, threads: int = 1) -> Runnable:
        """The program's own module: nothing has to be written to run it."""
        return self._ready(_torch_host(program), threads, None)

    def _ready(self, host: TorchHost, threads: int, example: Batch | None) -> Runnable:
        self.require()
        host = self._placed(host)
        return _TorchRunnable(self.label, host, self._callable(host), threads, example)

    def _placed(self, host: TorchHost) -> TorchHost:
        """The network where it is to run."""
        return host

    def _callable(self, host: TorchHost) -> Any:
        """What runs it."""
        return host.model


@dataclass(frozen=True)
class TorchCompile(Torch):
    """The same through torch.compile, which generates C++ on the first run."""

    name: ClassVar[str] = "torch-compile"
    summary: ClassVar[str] = "model.pt2, run through torch.compile (CPU); needs a C++ compiler"
    grain: ClassVar[int] = 16
    remark: ClassVar[str] = "through torch.compile, compiled for the shapes of the example inputs"

    def unable(self) -> str | None:
        return None if any(map(shutil.which, ("g++", "clang++", "c++"))) else "no C++ compiler (g++) on the PATH"

    def _callable(self, host: TorchHost) -> Any:
        import torch

        return torch.compile(host.model, dynamic=False)


@dataclass(frozen=True)
class TorchCuda(TorchCompile):
    """The same on an NVIDIA GPU; torch.compile generates Triton kernels."""

    name: ClassVar[str] = "torch-cuda"
    summary: ClassVar[str] = "model.pt2, run through torch.compile on an NVIDIA GPU"
    grain: ClassVar[int] = 8  # what tensor cores take in fp16
    tolerance: ClassVar[float] = 1e-3  # convolutions in TF32

    def unable(self) -> str | None:
        import torch

        return None if torch.cuda.is_available() else "this PyTorch sees no CUDA GPU"

    def _placed(self, host: TorchHost) -> TorchHost:
        from torch.export.passes import move_to_device_pass

        from ..hosts.torch.host import TorchHost

        return TorchHost.from_exported(move_to_device_pass(host.exported(), "cuda"))


def _torch_host(program: Program) -> TorchHost:
    from ..hosts.torch.host import TorchHost

    if not isinstance(program.host, TorchHost):
        raise TargetError("target `torch`: the model is an ONNX model", "use the target `onnx` or `tvm`")
    return program.host


class _TorchRunnable(Runnable):
    """``model`` is that of ``host``, compiled or as it is."""

    def __init__(self, label: str, host: TorchHost, model: Any, threads: int, example: Batch | None) -> None:
        super().__init__(label, threads, host.example() if example is None else example)
        self._host, self._model = host, model

    def run(self, batch: Batch) -> list[Array]:
        from torch.utils import _pytree as pytree

        from ..hosts.torch.run import to_numpy

        return [to_numpy(leaf) for leaf in pytree.tree_leaves(self.bind(batch)()) if hasattr(leaf, "detach")]

    def bind(self, batch: Batch) -> Callable[[], object]:
        import torch

        args, kwargs = self._host.call_arguments(batch)
        model, threads = self._model, self.threads
        wait = torch.cuda.synchronize if any(x.is_cuda for x in args if isinstance(x, torch.Tensor)) else None

        def call() -> object:
            before = torch.get_num_threads()
            if before != threads:
                torch.set_num_threads(threads)
            try:
                with torch.inference_mode():
                    out = model(*args, **kwargs)
                    if wait is not None:
                        wait()
                    return out
            except Exception as error:  # torch.compile raises whatever its code generator does
                raise TargetError(f"target `{self.target}`: cannot run the model: {first_line(error)}") from error
            finally:
                if before != threads:
                    torch.set_num_threads(before)

        return call
