"""The onnx target: an ONNX file, and ONNX Runtime to run it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...cost.latency.table import Point
from ...errors import ModelError, TargetError, first_line
from ...ir.atomic import spelt
from ...ir.facts import Latency
from ...ir.host import Array, Batch
from ...ir.program import Program
from ...pipeline.provenance import provenance
from ..measure import Runnable
from ..target import Target
from . import time_ops as ort_ops


@dataclass(frozen=True)
class Onnx(Target):
    """One ``.onnx`` file with the weights inside (beside it above protobuf's 2 GB). An ONNX user's
    model keeps its names and opset; a torch model keeps its parameter names, nothing folded away,
    its open sizes open."""

    name: ClassVar[str] = "onnx"
    summary: ClassVar[str] = "model.onnx, run by ONNX Runtime (CPU)"
    profiles: ClassVar[bool] = True
    grain: ClassVar[int] = 16  # ONNX Runtime's blocked convolutions: 16 channels with AVX-512, else 8
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "torch")
    providers: ClassVar[tuple[str, ...]] = ("CPUExecutionProvider",)  # the first does what it can

    def emit(self, program: Program, folder: Path) -> Path:
        path = folder / "model.onnx"
        try:
            program.host.save_onnx(path, about=provenance(program))
        except ModelError as error:
            raise TargetError(f"target `{self.label}`: {error.message}", error.hint) from error
        return path

    def load(self, path: Path, *, threads: int = 1, example: Batch | None = None) -> Runnable:
        if example is None:
            from ...hosts.onnx.host import OnnxHost

            example = OnnxHost.load(path).example()
        self.require("it is in the package onnxruntime-gpu")
        return _Session(self.label, path, threads, example, self.providers)

    def code(self) -> str:
        """A build's commit and options: versions are the same for what was built from source."""
        try:
            import onnxruntime as ort
        except ImportError:
            return "not installed"
        return str(ort.get_build_info())

    def time_ops(self, points: Sequence[Point], *, threads: int = 1) -> Iterator[dict[Point, Latency]]:
        return ort_ops.time_ops(points, threads, self.label)

    def profile(self, program: Program, *, threads: int = 1) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            path = self.emit(program, Path(folder))
            return ort_ops.profile(
                path, _Session(self.label, path, 1, program.host.example()).feed(), program.graph, threads
            )


@dataclass(frozen=True)
class OrtCuda(Onnx):
    """The same file, run by ONNX Runtime on an NVIDIA GPU."""

    name: ClassVar[str] = "ort-cuda"
    summary: ClassVar[str] = "model.onnx, run by ONNX Runtime's CUDA provider; needs onnxruntime-gpu"
    profiles: ClassVar[bool] = False
    grain: ClassVar[int] = 8  # what tensor cores take in fp16
    tolerance: ClassVar[float] = 1e-3  # convolutions in TF32
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime-gpu", "torch")
    remark: ClassVar[str] = "the time holds the copies of inputs and outputs to and from the GPU"
    providers: ClassVar[tuple[str, ...]] = ("CUDAExecutionProvider",)

    def unable(self) -> str | None:
        import onnxruntime

        wanted, there = self.providers[0], onnxruntime.get_available_providers()
        return None if wanted in there else f"this ONNX Runtime has no {wanted}, only {', '.join(there)}"

    def time_ops(self, points: Sequence[Point], *, threads: int = 1) -> Iterator[dict[Point, Latency]]:
        return Target.time_ops(self, points, threads=threads)

    def profile(self, program: Program, *, threads: int = 1) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class OrtTensorrt(OrtCuda):
    """The same file, run by TensorRT within ONNX Runtime; what TensorRT does not take runs in CUDA."""

    name: ClassVar[str] = "ort-tensorrt"
    summary: ClassVar[str] = "model.onnx, run by ONNX Runtime's TensorRT provider; needs onnxruntime-gpu and TensorRT"
    providers: ClassVar[tuple[str, ...]] = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


class _Session(Runnable):
    def __init__(
        self, label: str, path: Path, threads: int, example: Batch, providers: Sequence[str] = Onnx.providers
    ) -> None:
        super().__init__(label, threads, example)
        import onnxruntime as ort

        try:
            self._session: Any = ort.InferenceSession(
                spelt(path), ort_ops.session_options(threads), providers=list(providers)
            )
        except Exception as error:  # ONNX Runtime has no common base for what it raises
            raise ModelError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}") from error
        if (used := self._session.get_providers()[0]) != providers[0]:  # it falls back without an error
            raise TargetError(f"{path}: ONNX Runtime could not start {providers[0]} and fell back to {used}")

    def run(self, batch: Batch) -> list[Array]:
        return [np.asarray(array) for array in self._session.run(None, self.feed(batch))]

    def bind(self, batch: Batch) -> Callable[[], object]:
        session, feed = self._session, self.feed(batch)
        return lambda: session.run(None, feed)

    def feed(self, batch: Batch | None = None) -> dict[str, Any]:
        batch = self.example if batch is None else batch
        wanted = self._session.get_inputs()
        if len(wanted) != len(batch):
            raise TargetError(f"{len(batch)} arrays for {len(wanted)} inputs ({', '.join(i.name for i in wanted)})")
        return {hole.name: _given(hole.type, array) for hole, array in zip(wanted, batch, strict=True)}


def _given(kind: str, array: Array) -> Any:
    """An array as ONNX Runtime takes it for an input of that type; numpy has no bfloat16 of its own."""
    if kind != "tensor(bfloat16)":
        return np.asarray(array, _DTYPES.get(kind, array.dtype), order="C")
    import onnxruntime as ort
    from onnx import TensorProto

    from ...hosts.onnx.inputs import bfloat16_bits

    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bfloat16_bits(array), TensorProto.BFLOAT16)


_DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
           "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}  # fmt: skip
