"""Half precision and eight bits after pruning: what ONNX Runtime and TVM make of them on this processor.

    python -m benchmarks.precisions [--network ResNet-18 ...] [--threads 1]

Networks pruned to half of their multiply-accumulates, random weights. Half precision as ONNX Runtime's converter
writes it, eight bits (QDQ, a scale per channel) as its static quantiser does, calibrated on the example; each file
is read back by graphprune, and its artifacts for both targets run in turns: medians, the share of the time in float32,
and the largest error relative to float32. The table goes to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import graphprune as gp
from graphprune.backends import interleave, target
from graphprune.errors import GraphpruneError
from graphprune.ir.program import Program

from .latency import MODELS, load
from .results import between
from .tvm_untuned import RECIPE

PAGE = Path("docs/benchmarks.md")
START, END = "<!-- precisions: written by python -m benchmarks.precisions -->", "<!-- end of precisions -->"
NETWORKS = ("ResNet-18", "ResNet-50")  # of MobileNetV2 the converter writes a Clip of two types
TARGETS = ("onnx", "tvm")
HEAD = ("network", "numbers", *(cell for on in TARGETS for cell in (f"{on} ms", "of float32", "error")))


def half(path: Path, made: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), made)


def eight_bits(path: Path, made: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Example(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            program = gp.load(path)
            names = [value.name for value in onnx.load(path).graph.input]
            self.left = [dict(zip(names, program.host.example(), strict=True))]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    whole = made.with_suffix(".whole.onnx")
    quant_pre_process(str(path), str(whole), skip_symbolic_shape=True)
    quantize_static(str(whole), str(made), Example(), quant_format=QuantFormat.QDQ, per_channel=True)


def forms(name: str, folder: Path) -> Iterator[tuple[str, Program]]:
    program = gp.run(RECIPE, load(name, folder))
    yield "float32", program
    path = target("onnx").emit(program, folder)
    for kind, make in (("float16", half), ("int8", eight_bits)):
        made = folder / f"{kind}.onnx"
        make(path, made)
        yield kind, gp.load(made)


def rows(name: str, threads: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        programs = dict(forms(name, Path(folder)))
        calls, refused = {}, {}
        for kind, program in programs.items():
            for on in TARGETS:
                try:
                    calls[kind, on] = target(on).runnable(program, threads=threads)
                except GraphpruneError as error:
                    refused[kind, on] = error.message
        example = programs["float32"].host.example()
        want = calls["float32", "onnx"].run(example)[0]
        times = interleave({f"{kind} {on}": call for (kind, on), call in calls.items()}, 40, seconds=15)
        for kind in programs:
            cells = [name, kind]
            for on in TARGETS:
                if (kind, on) in refused:
                    print(f"{name}, {kind}, {on}: {refused[kind, on]}", flush=True)
                    cells += ["refused", "", ""]
                    continue
                took, whole = times[f"{kind} {on}"], times[f"float32 {on}"]
                away = np.abs(calls[kind, on].run(example)[0] - want).max() / np.abs(want).max()
                cells += [f"{took.median_ms:.2f} ± {took.spread_ms:.2f}", f"{took.median_ms / whole.median_ms:.2f}x"]
                cells.append(f"{away:.0e}")
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", choices=list(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for name in options.network or NETWORKS:
        for line in rows(name, options.threads):
            lines.append(line)
            print(line, flush=True)
    if not options.network:
        between(PAGE, START, END, "\n".join(lines))


if __name__ == "__main__":
    main()
