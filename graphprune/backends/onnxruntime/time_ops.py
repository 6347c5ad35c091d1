"""What single ops take in ONNX Runtime: many of them in one graph, timed by its profiler.

A run visits every op of the graph in turn, so that what else the machine does hits all of them alike.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...cost.latency.table import Point
from ...errors import TargetError, raised
from ...ir.facts import Latency
from ...ir.graph import Graph, Op
from ...ops.traits import traits
from ..measure import settled

RUNS = 15  # timed visits of every op; the first two runs more are warm-up
BATCH_BYTES = 128 << 20  # of weights and activations in one graph
BATCH_POINTS = 60


def time_ops(points: Sequence[Point], threads: int, target: str) -> Iterator[dict[Point, Latency]]:
    """The latency of each op, a batch at a time."""
    for batch in _batches(points):
        samples = _profile(batch, threads)
        yield {point: settled(samples[k], threads, target) for k, point in enumerate(batch)}


def _batches(points: Sequence[Point]) -> Iterator[list[Point]]:
    batch: list[Point] = []
    size = 0
    for point in points:
        if batch and (size + _bytes(point) > BATCH_BYTES or len(batch) == BATCH_POINTS):
            yield batch
            batch, size = [], 0
        batch.append(point)
        size += _bytes(point)
    if batch:
        yield batch


def _bytes(point: Point) -> int:
    x, weight, y = shapes(point)
    return 4 * sum(int(np.prod(shape)) for shape in (x, weight, y))


def shapes(point: Point) -> tuple[list[int], list[int], list[int]]:
    """Input, weight (as ONNX has it) and output of an op."""
    family, (inner, outer) = point
    if family.kind == "stream":
        return [1, 16, max(1, outer * 1000 // 32)], [], [1, 16, max(1, outer * 1000 // 32)]  # half read, half written
    if family.kind == "product":
        return [family.sizes[0], inner], [inner, outer], [family.sizes[0], outer]
    batch, groups, *axes = family.sizes
    sizes, kernels, strides = axes[0::3], axes[1::3], axes[2::3]
    after = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
    if groups == 0:
        return [batch, inner, *sizes], [inner * outer, 1, *kernels], [batch, inner * outer, *after]
    return [batch, inner, *sizes], [outer, inner // groups, *kernels], [batch, outer, *after]


def _profile(batch: Sequence[Point], threads: int) -> list[list[float]]:
    """Milliseconds of every visit of every op. Ops are told apart by the names of their outputs, which
    survive what ONNX Runtime makes of the graph."""
    model, feeds = _model(batch)
    samples: list[dict[int, float]] = [{} for _ in batch]
    for name, times in _node_times(model, feeds, threads).items():
        found = re.search(r"op(\d+)_", name)
        if found is not None:  # else a layout change at the border of the graph, which a network has not
            own = samples[int(found[1])]
            for visit, ms in enumerate(times):
                own[visit] = own.get(visit, 0.0) + ms
    return [list(own.values()) for own in samples]


def session_options(threads: int) -> Any:
    """Of a session that is timed. Its threads sleep between runs: by default they wait for the next run in a busy
    loop, and take the cores from what is timed in turns with it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _node_times(model: bytes | str, feeds: Mapping[str, Any], threads: int) -> dict[str, list[float]]:
    """By node of what ONNX Runtime makes of the model, the milliseconds of RUNS runs."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        options = session_options(threads)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS + 2):
            session.run(None, feeds)
        written = Path(session.end_profiling())
        try:
            events = json.loads(written.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TargetError(
                f"{written}: ONNX Runtime's times of single ops were not written whole ({raised(error)})",
                f"make room in {tempfile.gettempdir()}, or set TMPDIR to a folder that has some",
            ) from error
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            times.setdefault(str(event["name"]).removesuffix("_kernel_time"), []).append(event["dur"] / 1e3)
    return {name: own[2 * len(own) // (RUNS + 2) :] for name, own in times.items()}


def profile(path: Path, feeds: Mapping[str, Any], graph: Graph, threads: int) -> dict[str, float]:
    """Milliseconds by op of ``graph``, from a model file made of it. A node that ONNX Runtime fused is
    named after a value that it makes; the work is that of the conv or product it began with."""
    named = {op.name: op for op in graph.ops} | {value.name: op for op in graph.ops for value in op.outputs}
    out: dict[str, float] = {}
    for name, times in _node_times(str(path), feeds, threads).items():
        op = named.get(name.removesuffix("_nchwc").removeprefix("node_").removeprefix("fused ")) or named.get(name)
        while op is not None and traits(op).elementwise and (head := _head(op, graph)) is not None:
            op = head
        if op is not None:
            out[op.name] = out.get(op.name, 0.0) + settled(times, threads, "").median_ms
    return out


def _head(op: Op, graph: Graph) -> Op | None:
    """What makes the first operand of an element-wise op."""
    return next((maker for value in op.inputs if value is not None and (maker := graph.maker(value))), None)


def _model(batch: Sequence[Point]) -> tuple[bytes, dict[str, Any]]:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    inputs: dict[str, list[int]] = {}
    outputs, weights = [], []
    for k, (family, _) in enumerate(batch):
        x, weight, y = shapes(batch[k])
        hole = "x_" + "_".join(map(str, x))
        inputs[hole] = x
        out = f"op{k}_out"
        if family.kind == "stream":
            nodes.append(helper.make_node("Sigmoid", [hole], [out], f"op{k}_stream"))
        else:
            weights.append(numpy_helper.from_array(rng.standard_normal(weight, np.float32), f"w{k}"))
            made = f"op{k}_made"
            if family.kind == "product":
                nodes.append(helper.make_node("MatMul", [hole, f"w{k}"], [made], f"op{k}_product"))
            else:
                nodes.append(helper.make_node("Conv", [hole, f"w{k}"], [made], f"op{k}_conv", **geometry(batch[k])))
            nodes.append(helper.make_node("Relu", [made], [out], f"op{k}_relu"))
        outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, y))
    holes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    graph = helper.make_graph(nodes, "ops", holes, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {name: rng.standard_normal(shape, np.float32) for name, shape in inputs.items()}
    return model.SerializeToString(), feeds


def geometry(point: Point) -> dict[str, Any]:
    """The attributes of a convolution whose output is its input's size divided by the stride."""
    family, (inner, _) = point
    _, groups, *axes = family.sizes
    sizes, kernels, strides = axes[0::3], axes[1::3], axes[2::3]
    total = [
        max(0, (-(-size // stride) - 1) * stride + kernel - size)
        for size, kernel, stride in zip(sizes, kernels, strides, strict=True)
    ]
    pads = [t // 2 for t in total] + [t - t // 2 for t in total]
    return {"group": groups or inner, "kernel_shape": kernels, "strides": strides, "pads": pads}
