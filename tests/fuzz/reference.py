"""What a network computes by itself, masked or not, outside of everything that graphprune read; and how far that
may be from what graphprune makes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper as nh
import torch
from numpy.typing import NDArray

from graphprune.errors import ModelError
from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.host import Host
from graphprune.pipeline.compare import relative

from .kinds import static
from .network import Module, Network, data

Outputs = list[NDArray[Any]]
EXACT = {"torch": 1e-12, "onnx": 1e-5}
NOISE = {"torch": 1e-15, "onnx": 1e-7}  # about one rounding error
STILL = {"torch": 1e-12, "onnx": 1e-4}  # less than this is rounding
MOVES = {"torch": 1e-9, "onnx": 1e-3}


Parameters = Mapping[str, Mapping[str, Any]]  # of a plan
Masked = Callable[[Parameters, Sequence[NDArray[Any]]], Outputs]  # what the user's own network computes, masked


class Broken(AssertionError):
    """A network that breaks the law or the oracle."""


def export(net: Network, module: Module) -> TorchHost:
    """With every open size left open, where torch.export can."""
    inputs = tuple(map(torch.from_numpy, data(net)))
    if net.opens:
        auto = torch.export.Dim.AUTO
        spec = {
            f"x{k}": {axis: auto for axis in range(len(shape)) if not static(shape, axis)}
            for k, (_, shape) in enumerate(net.inputs)
        }
        with suppress(ModelError):
            return TorchHost.export(copy.deepcopy(module), inputs, spec)
    return TorchHost.export(copy.deepcopy(module), inputs)


def run_module(module: Module, batch: Sequence[NDArray[Any]]) -> Outputs:
    with torch.no_grad():
        return [out.numpy() for out in module(*(torch.from_numpy(np.array(x)) for x in batch))]


def float32(batch: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    return [x.astype(np.float32) if x.dtype == np.float64 else x for x in batch]


# ---- masked ------------------------------------------------------------------------------------------


def zeroed(array: NDArray[Any], axes: Mapping[str, Any]) -> NDArray[Any]:
    out = np.array(array)
    for axis, entry in axes.items():
        if entry["role"] == "reader":
            drop = np.setdiff1d(np.arange(out.shape[int(axis)]), np.setdiff1d(entry["keep"], entry.get("blank", [])))
            out[(slice(None),) * int(axis) + (drop,)] = 0
    return out


def masked_module(module: Module, plan: Parameters, batch: Sequence[NDArray[Any]]) -> Outputs:
    masked = copy.deepcopy(module)
    tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    with torch.no_grad():
        for name, axes in plan.items():
            if name in tensors:
                tensors[name].copy_(torch.from_numpy(zeroed(tensors[name].numpy(), axes)))
    return run_module(masked, batch)


def masked_file(proto: onnx.ModelProto, plan: Parameters, batch: Sequence[NDArray[Any]]) -> Outputs:
    import onnxruntime as ort

    masked = copy.deepcopy(proto)
    for tensor in masked.graph.initializer:
        if tensor.name in plan:
            tensor.CopyFrom(nh.from_array(zeroed(nh.to_array(tensor), plan[tensor.name]), tensor.name))
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(masked.SerializeToString(), options, ["CPUExecutionProvider"])
    return list(session.run(None, {f"x{k}": x for k, x in enumerate(float32(batch))}))


# ---- comparing ---------------------------------------------------------------------------------------


def distance(a: Outputs, b: Outputs) -> float:
    """max |a - b| / max |a|, the worst of all outputs."""
    return max(relative(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in zip(a, b, strict=True))


def agree(net: Network, a: Outputs, b: Outputs, host: Host, what: str) -> None:
    """Raises Broken where the two differ by more than a badly conditioned network makes of rounding."""
    error = distance(a, b)
    if error <= EXACT[host.kind]:
        return
    amplified = 1e3 * _conditioning(host)
    if error > min(amplified, 1e-6 if host.kind == "torch" else 1e-2):
        raise Broken(f"{what}: {error:.3g} (rounding explains {amplified:.3g}){net!r}")


def _conditioning(host: Host) -> float:
    """How far the output moves when every weight moves by a rounding error."""
    rng, noisy = np.random.default_rng(0), host.copy()
    for name, value in host.lift().parameters.items():
        if value.dtype.startswith("float"):
            weight = np.asarray(host.parameter(name), np.float64)
            noise = NOISE[host.kind] * rng.choice([-1, 1], weight.shape)
            noisy.set_parameter(name, (weight * (1 + noise)).astype(value.dtype))
    return distance(host.run(host.example()), noisy.run(noisy.example()))
