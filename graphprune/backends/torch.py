"""The torch target: PyTorch itself, eager, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..errors import TargetError
from ..ir import Array, Batch, Program
from .measure import Runnable
from .target import Target

if TYPE_CHECKING:
    from ..hosts.torch import TorchHost


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
        from ..hosts.torch import TorchHost

        return _TorchRunnable(TorchHost.load(path), threads, example)

    def runnable(self, program: Program, *, threads: int = 1) -> Runnable:
        """The program's own module: nothing has to be written to run it."""
        return _TorchRunnable(_torch_host(program), threads, None)


def _torch_host(program: Program) -> TorchHost:
    from ..hosts.torch import TorchHost

    if not isinstance(program.host, TorchHost):
        raise TargetError("target `torch`: the model is an ONNX model", "use the target `onnx` or `tvm`")
    return program.host


class _TorchRunnable(Runnable):
    def __init__(self, host: TorchHost, threads: int, example: Batch | None) -> None:
        super().__init__("torch", threads, host.example() if example is None else example)
        self._host = host

    def run(self, batch: Batch) -> list[Array]:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return self._host.run(batch)
        finally:
            torch.set_num_threads(before)

    def bind(self, batch: Batch) -> Callable[[], object]:
        import torch

        args, kwargs = self._host.call_arguments(batch)
        model, threads = self._host.model, self.threads

        def call() -> object:
            before = torch.get_num_threads()
            if before != threads:
                torch.set_num_threads(threads)
            try:
                with torch.inference_mode():
                    return model(*args, **kwargs)
            finally:
                if before != threads:
                    torch.set_num_threads(before)

        return call
