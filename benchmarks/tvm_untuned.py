"""TVM untuned beside ONNX Runtime, in one run, on networks as they are and pruned to half their multiply-accumulates.

    python -m benchmarks.tvm_untuned [--network ResNet-18 ...] [--threads 1] [--out docs/tvm_untuned.json] [--again]

Samples are taken in turns, each after a pause and a call that is not timed; medians over the rounds with their
quartiles' distance, and the median of the ratios within a round with its standard error. On one thread by the
processor's time, which other programs' turns do not count in; on more by the clock on the wall. Errors are both sides'
distance from the same network in float64, the largest over an output relative to the largest output, medians over a few
inputs; of ONNX files, without float64 kernels, the distance from each other alone. Resumable: what ``--out`` holds
is not run again unless ``--again`` says so. The table goes to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import graphprune as gp
from graphprune.backends.measure import OF_RANGE, Runnable
from graphprune.backends.onnxruntime.target import Onnx
from graphprune.backends.tvm.target import Tvm
from graphprune.ir.program import Program
from graphprune.pipeline.compare import relative

from . import latency
from .cifar import DATA
from .networks import Sample
from .results import Results, between

PAGE = Path("docs/benchmarks.md")
START, END = "<!-- tvm untuned: written by python -m benchmarks.tvm_untuned -->", "<!-- end of tvm untuned -->"
RECIPE = "group,score,mask{macs=0.5x allocate=global grain=16},propagate"
ROUNDS, SAMPLE = 41, 0.02  # seconds
PAUSE = 0.02  # seconds before each sample: the threads of the one before wait for work in a busy loop first
DRAWS = 5  # inputs that errors are the median of


class CharLM(nn.Module):
    """The next character after each of a text, by two LSTM layers."""

    def __init__(self, characters: int = 96, width: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, width)
        self.layers = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, characters)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.layers(self.embed(text))[0])
        return logits


def _efficientnet() -> Sample:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    sizes: dict[str, Any] = dict(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, image_size=224)
    return EfficientNetForImageClassification(EfficientNetConfig(**sizes)), (torch.randn(1, 3, 224, 224),)


def _vit() -> Sample:
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = dict(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
    return ViTForImageClassification(ViTConfig(**sizes)), (torch.randn(1, 3, 224, 224),)


def _char_lm() -> Sample:
    return CharLM(), (torch.randint(0, 96, (1, 64)),)


MODELS: dict[str, Callable[[], Sample] | Path] = {
    **{name: latency.MODELS[name] for name in ("ResNet-18", "ResNet-50", "MobileNetV2")},
    "EfficientNet-B0": _efficientnet,
    "RFB-320": DATA / "onnx" / "version-RFB-320.onnx",
    "ViT-small": _vit,
    "char LM, 2 LSTM layers": _char_lm,
}


def load(name: str) -> Program:
    made = MODELS[name]
    if isinstance(made, Path):
        return gp.load(made)
    torch.manual_seed(0)
    module, inputs = made()
    module.eval()
    for layer in module.modules():  # as if trained: else deep networks end in numbers too small to be normal, and slow
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
            layer.train().momentum = None
    with torch.no_grad():
        module(*inputs)
    return gp.load(module.eval(), inputs)


def row(program: Program, threads: int) -> dict[str, Any]:
    sides = {"onnx": Onnx().runnable(program, threads=threads), "tvm": Tvm().runnable(program, threads=threads)}
    samples = turns(sides, time.process_time if threads == 1 else time.perf_counter)
    ratio = samples["tvm"] / samples["onnx"]
    low, high = np.percentile(ratio, [25, 75])
    return {
        **{f"{name}_ms": float(np.median(own)) for name, own in samples.items()},
        **{f"{name}_spread_ms": float(np.subtract(*np.percentile(own, [75, 25]))) for name, own in samples.items()},
        "ratio": float(np.median(ratio)),
        "ratio_error": float(OF_RANGE * (high - low) / len(ratio) ** 0.5),
        **errors(program, sides),
    }


def errors(program: Program, sides: Mapping[str, Runnable]) -> dict[str, float]:
    """Of the first output: from each other, and each from float64."""
    rng, example = np.random.default_rng(0), program.host.example()
    exact = program.host.copy("float64") if program.host.proof_dtype == "float64" else None
    found: dict[str, list[float]] = {}
    for _ in range(DRAWS):
        batch = [rng.permuted(array.ravel()).reshape(array.shape) for array in example]
        outputs = {name: side.run(batch)[0] for name, side in sides.items()}
        found.setdefault("error", []).append(relative(outputs["onnx"], outputs["tvm"]))
        if exact is not None:
            for name, output in outputs.items():
                found.setdefault(f"{name}_error", []).append(relative(exact.run(batch)[0], output))
    return {name: float(np.median(own)) for name, own in found.items()}


def turns(sides: Mapping[str, Callable[[], object]], clock: Callable[[], float]) -> dict[str, Any]:
    """Milliseconds per call of each side, one sample a round."""
    counts = {}
    for name, call in sides.items():
        for _ in range(4):
            began = clock()
            call()
            counts[name] = max(1, int(SAMPLE / max(clock() - began, 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(ROUNDS):
        for name in sorted(sides, reverse=k % 2 == 1):
            time.sleep(PAUSE)
            sides[name]()
            began = clock()
            for _ in range(counts[name]):
                sides[name]()
            found[name].append((clock() - began) / counts[name] * 1e3)
    return {name: np.array(own) for name, own in found.items()}


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| network, threads | | ONNX Runtime ms | TVM untuned ms | TVM / ONNX Runtime | apart | ONNX Runtime, TVM from "
        "float64 |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, one in rows.items():
        name, _, which = key.rpartition(", ")
        times = (f"{one[f'{side}_ms']:.2f} ± {one[f'{side}_spread_ms']:.2f}" for side in ("onnx", "tvm"))
        ratio = f"{one['ratio']:.2f} ± {one['ratio_error']:.2f}"
        exact = ", ".join(f"{one[f'{side}_error']:.0e}" for side in ("onnx", "tvm") if f"{side}_error" in one)
        lines.append(f"| {name} | {which} | {' | '.join(times)} | {ratio} | {one['error']:.0e} | {exact} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/tvm_untuned.json"))
    parser.add_argument("--network", action="append", choices=list(MODELS))
    parser.add_argument("--threads", action="append", type=int)
    parser.add_argument("--again", action="store_true", help="measure what is there anew")
    given = parser.parse_args()
    results = Results(given.out)
    for name in given.network or MODELS:
        for threads in given.threads or [1]:
            wanted = {f"{name}, {threads}, {which}": which for which in ("whole", "pruned")}
            if not given.again and all(key in results for key in wanted):
                continue
            program = load(name)
            for key, which in wanted.items():
                results.add(key, row(program if which == "whole" else gp.run(RECIPE, program), threads))
    print(table(results.known))
    if START in PAGE.read_text(encoding="utf-8"):
        between(PAGE, START, END, table(results.known))


if __name__ == "__main__":
    main()
