"""The best-cpu target: the same network by several code generators, measured in turns; the fastest is kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ..ir.host import Batch
from ..ir.program import Program
from .effort import Budget
from .measure import Progress, Runnable, interleave
from .onnxruntime.target import Onnx
from .target import Target
from .tvm.target import Tvm

_FOUND = "best.json"


@dataclass(frozen=True)
class Best(Target):
    """ONNX Runtime and TVM side by side on this CPU; the faster one's code, and both latencies."""

    name: ClassVar[str] = "best-cpu"
    summary: ClassVar[str] = "whichever of onnx and tvm is faster on this CPU, measured side by side"
    grain: ClassVar[int] = 16
    tolerance: ClassVar[float] = Tvm.tolerance
    packages: ClassVar[tuple[str, ...]] = (*Onnx.packages, *Tvm.packages)

    threads: int = 1  # to measure with
    tuned: int = 0  # as of the target tvm

    def admit(self, program: Program) -> None:
        for one in self._each():
            one.admit(program)

    def emit(self, program: Program, folder: Path) -> Path:
        files, calls = {}, {}
        for one in self._each():
            place = folder / one.label
            place.mkdir()
            files[one.label] = one.emit(program, place)
            calls[one.label] = one.load(files[one.label], threads=self.threads, example=program.host.example())
        found = interleave(calls)
        winner = min(found, key=lambda name: found[name].median_ms)
        for name in files:
            if name != winner:
                shutil.rmtree(folder / name)
        facts = {
            "winner": winner,
            "of_the_winner": {n: one.median_ms / found[winner].median_ms for n, one in found.items()},
        }
        (folder / _FOUND).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return files[winner]

    def searched(self, program: Program, *, threads: int = 1) -> Target:
        each = {one.label: one for one in self._each()}
        found = interleave({label: one.runnable(program, threads=threads) for label, one in each.items()})
        return each[min(found, key=lambda label: found[label].median_ms)]

    def _each(self) -> tuple[Target, ...]:
        return Onnx(), Tvm(tuned=self.tuned)

    def tune(
        self, program: Program, budget: Budget, *, threads: int = 1, seed: int = 0, progress: Progress | None = None
    ) -> tuple[Target, dict[str, Any]]:
        _, found = Tvm().tune(program, budget, threads=threads, seed=seed, progress=progress)
        return replace(self, tuned=threads), found

    def load(self, path: Path, *, threads: int = 1, example: Batch | None = None) -> Runnable:
        one = Onnx() if path.suffix == ".onnx" else Tvm()
        return one.load(path, threads=threads, example=example)

    def found(self, path: Path) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((path.parent.parent / _FOUND).read_text(encoding="utf-8"))
        return facts
