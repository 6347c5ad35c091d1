"""Multiply-accumulates of an ONNX file, from the shapes that ONNX Runtime saw when it ran: nothing of graphprune.

    python -m benchmarks.ort_macs model.onnx

The profile has every node that ran, those of the branches that were taken and of every turn of a loop too. Without
graph optimisations its nodes are those of the file. A convolution has for every output the numbers of one filter, a
product for every output the length that it sums over, a recurrent layer for every step its two matrices.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Shapes = list[list[int]]

NUMPY = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(bool)": np.bool_,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8,
}  # fmt: skip
UNKNOWN = ("Einsum", "Attention", "MultiHeadAttention", "GroupQueryAttention")
"""Products whose shapes do not say how many: refused, never left out."""


def session(model: Path | bytes, *, optimised: bool = True, profile: Path | None = None) -> Any:
    """The model in ONNX Runtime on one thread, without its warnings; ``profile``: a folder for what it saw."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        options.add_session_config_entry("session.disable_prepacking", "1")  # or a packed weight has no shape
        options.enable_profiling, options.profile_file_prefix = True, str(profile / "profile")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def macs(path: Path, feeds: Feeds) -> int:
    """Multiply-accumulates of one run on ``feeds``. Raises ValueError for an op that is not known here."""
    return sum(_of(op, inputs, outputs) for op, inputs, outputs in ran(path, feeds))


def ran(path: Path, feeds: Feeds) -> list[tuple[str, Shapes, Shapes]]:
    """Op type, shapes in and shapes out of every node that ran."""
    with tempfile.TemporaryDirectory() as folder:
        seen = session(path, optimised=False, profile=Path(folder))
        seen.run(None, dict(feeds))
        events = json.loads(Path(seen.end_profiling()).read_text())
    return [
        (args["op_name"], _shapes(args["input_type_shape"]), _shapes(args["output_type_shape"]))
        for event in events
        if event["cat"] == "Node" and "input_type_shape" in (args := event["args"])
    ]


def _shapes(entries: list[dict[str, list[int]]]) -> Shapes:
    return [shape for entry in entries for shape in entry.values()]


def _of(op: str, inputs: Shapes, outputs: Shapes) -> int:
    if op in ("Conv", "ConvInteger", "FusedConv", "DeformConv"):
        return prod(outputs[0]) * prod(inputs[1][1:])
    if op == "QLinearConv":
        return prod(outputs[0]) * prod(inputs[3][1:])
    if op == "ConvTranspose":  # every input is spread over one filter
        return prod(inputs[0]) * prod(inputs[1][1:])
    if op == "Gemm":  # whichever way its operands lie
        return prod(inputs[0]) * outputs[0][1]
    if op in ("MatMul", "MatMulInteger"):
        return prod(outputs[0]) * inputs[0][-1]
    if op in ("LSTM", "GRU", "RNN"):  # the sequence, both matrices of all directions
        return prod(inputs[0][:2]) * (prod(inputs[1]) + prod(inputs[2]))
    if op in UNKNOWN:
        raise ValueError(f"the shapes of {op} do not say how many multiply-accumulates it does")
    return 0


def random_feeds(path: Path, sizes: Mapping[str, Any] = {}, seed: int = 0) -> dict[str, Any]:
    """Noise for every input; ``sizes`` has by name the shape of an input, or its one value. What is open is 1."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    for value in session(path).get_inputs():
        given, dtype = sizes.get(value.name), np.dtype(NUMPY[value.type])
        if given is not None and not isinstance(given, tuple):
            feeds[value.name] = np.asarray(given, dtype)
            continue
        shape = given or [size if isinstance(size, int) and size > 0 else 1 for size in value.shape]
        noise = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        feeds[value.name] = np.asarray(noise, dtype)
    return feeds


if __name__ == "__main__":
    print(macs(file := Path(sys.argv[1]), random_feeds(file)))
