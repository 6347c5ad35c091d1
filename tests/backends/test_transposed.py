"""Transposed convolutions on targets that TVM compiles for: what the host computes, whatever the variant."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import graphprune as gp
from graphprune.backends import target
from graphprune.backends.onnxruntime.target import Onnx
from graphprune.backends.tvm.transposed import Axis
from graphprune.ir.host import Array
from graphprune.ir.program import Program

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SIZES = (17, 7, 4)
VARIANTS: Sequence[dict[str, Any]] = (
    {"stride": 2, "padding": 1},
    {"stride": 3, "bias": False},
    {"dilation": 2, "padding": 2},
    {"stride": 2, "dilation": 2, "output_padding": 1},
    {"stride": 3, "dilation": 2, "groups": 3, "padding": 3, "output_padding": 2},
    {"stride": 2, "groups": 12, "padding": 1, "output_padding": 1},
)


class Branches(nn.Module):
    """A convolution and, on its result, a transposed one for each of ``variants``."""

    def __init__(self, dim: int, variants: Sequence[dict[str, Any]], kernel: int = 4, outputs: int = 6) -> None:
        super().__init__()
        self.stem = CONV[dim - 1](3, 12, 1)
        self.branches = nn.ModuleList(
            TRANSPOSED[dim - 1](12, 12 if one.get("groups") == 12 else outputs, kernel, **one) for one in variants
        )
        self.heads = nn.ModuleList(CONV[dim - 1](one.out_channels, 2, 1) for one in self.branches)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = torch.relu(self.stem(x))
        return tuple(head(torch.relu(one(x))) for one, head in zip(self.branches, self.heads, strict=True))


def error(got: Sequence[Array], want: Sequence[Array]) -> float:
    assert [a.shape for a in got] == [a.shape for a in want]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, want, strict=True))


def branches(dim: int, variants: Sequence[dict[str, Any]] = VARIANTS, size: int = 0, **options: int) -> Program:
    torch.manual_seed(dim)
    x = torch.randn(2, 3, *[size or SIZES[dim - 1]] * dim)
    return gp.load(Branches(dim, variants, **options).eval(), x)


def by_tvm_alone(program: Program) -> list[Array]:
    """TVM's own transposed convolutions, loops as they come."""
    import tvm
    from tvm import relax

    from graphprune.backends.tvm.lower import imported

    module = relax.get_pipeline("zero")(relax.transform.DecomposeOpsForInference()(imported(program.host)[0]))
    machine = relax.VirtualMachine(tvm.compile(module, tvm.target.Target("llvm")), tvm.cpu())
    found = machine["main"](*map(tvm.runtime.tensor, program.host.example()))
    return [tensor.numpy() for tensor in found]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_every_variant_is_what_the_host_and_onnx_runtime_compute(dim: int) -> None:
    pytest.importorskip("tvm")
    program = branches(dim, VARIANTS[4:5] if dim == 1 else VARIANTS)  # one axis is unrolled most
    want = program.host.run(program.host.example())
    assert error(target("tvm").run(program, program.host.example()), want) < 1e-6
    assert error(Onnx().run(program, program.host.example()), want) < 1e-5


def test_what_tvm_computes_without_our_schedules_is_the_same() -> None:
    pytest.importorskip("tvm")
    program = branches(2, VARIANTS[:4], size=5)
    got = target("tvm{layout=NCHW}").run(program, program.host.example())
    assert error(got, by_tvm_alone(program)) < 1e-6


def test_mirrored_kernels_are_not_packed_wrongly() -> None:
    """TVM's own transposed convolution reads its weights backwards: our schedules must leave these as they are."""
    pytest.importorskip("tvm")
    import tvm
    from tvm import relax

    from graphprune.backends.tvm.lower import imported, scheduled_loops

    program = branches(1, [{"stride": 3}])
    code = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
    module = relax.transform.DecomposeOpsForInference()(imported(program.host)[0])
    machine = relax.VirtualMachine(tvm.compile(scheduled_loops(module, code), code), tvm.cpu())
    found = machine["main"](*map(tvm.runtime.tensor, program.host.example()))
    assert error([t.numpy() for t in found], program.host.run(program.host.example())) < 1e-6


def onnx_program(path: Path, attributes: dict[str, Any], constant: bool = True) -> Program:
    """One transposed convolution; ``constant``: its weights are, else they come from an input."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 4, 3)).astype(np.float32)
    x = helper.make_tensor_value_info("x", 1, [1, 4, 5, 6])
    nodes = [helper.make_node("ConvTranspose", ["x", "v"], ["h"], name="up", **attributes)]
    nodes += [helper.make_node("Relu", ["h"], ["y"], name="r")]
    if constant:
        nodes[0].input[1] = "w"
        inputs = [x]
    else:
        nodes.insert(0, helper.make_node("Mul", ["w", "s"], ["v"], name="scaled"))
        inputs = [x, helper.make_tensor_value_info("s", 1, [4, 1, 1, 1])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, None)],
                              [numpy_helper.from_array(weight, "w")])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return gp.load(path)


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 3], "output_shape": [10, 17]},
        {"strides": [2, 2], "output_shape": [9, 12], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [3, 1], "pads": [0, 1, 2, 0], "dilations": [1, 2], "output_padding": [2, 0]},
    ],
    ids=str,
)
def test_onnx_says_pads_in_many_ways(attributes: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    program = onnx_program(tmp_path / "m.onnx", attributes)
    batch = program.host.example()
    assert error(target("tvm").run(program, batch), program.host.run(batch)) < 1e-6


def test_an_output_padding_may_be_wider_than_the_stride() -> None:
    """torch allows it up to the dilation, ONNX Runtime and TVM's own op do not."""
    pytest.importorskip("tvm")
    program = branches(2, [{"stride": 1, "dilation": 3, "output_padding": 2}])
    batch = program.host.example()
    assert error(target("tvm").run(program, batch), program.host.run(batch)) < 1e-6


def test_weights_may_be_computed(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    program = onnx_program(tmp_path / "m.onnx", {"strides": [2, 3], "dilations": [2, 1]}, constant=False)
    batch = program.host.example()
    assert error(target("tvm").run(program, batch), program.host.run(batch)) < 1e-6


def test_the_phases_cover_every_position_once() -> None:
    for size, kernel, stride, dilation, before in itertools.product((1, 5), (1, 4), (1, 2, 5), (1, 2, 3), (0, 1, 9)):
        full = (size - 1) * stride + dilation * (kernel - 1) + 1
        out = full - before
        if out < 1:
            continue
        axis = Axis(size, kernel, out, stride, dilation, before)
        assert axis.start >= 0 and axis.start + out <= axis.results * stride
        used = [k for k in axis.read().reshape(-1) if k != kernel]
        assert sorted(used) == list(range(kernel))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_any_transposed_convolution(seed: int) -> None:
    """Drawn over sizes, kernels, strides, dilations, groups and paddings; scheduled, unscheduled and TVM's own."""
    pytest.importorskip("tvm")
    draw = random.Random(seed)
    dim, kernel, variants = draw.choice([1, 1, 2, 2, 3]), draw.randint(1, 5), list[dict[str, Any]]()
    size = draw.randint(3, 9)
    while len(variants) < 4:
        stride, dilation = draw.randint(1, 4), draw.randint(1, 3)
        one = {"stride": stride, "dilation": dilation, "groups": draw.choice([1, 1, 2, 3, 6, 12]),
               "padding": draw.randint(0, dilation * (kernel - 1)), "bias": draw.random() < 0.5,
               "output_padding": draw.randint(0, max(stride, dilation) - 1)}  # fmt: skip
        if (size - 1) * stride + dilation * (kernel - 1) + 1 > 2 * one["padding"]:
            variants.append(one)
    outputs = 12 if any(one["groups"] > 6 for one in variants) else draw.choice([6, 24, 48])
    program = branches(dim, variants, size=size, kernel=kernel, outputs=outputs)
    batch = program.host.example()
    want = program.host.run(batch)
    for spec in ("tvm", "tvm{layout=NCHW}", "tvm{mcpu=x86-64-v3}", "tvm{schedule=false}"):
        assert error(target(spec).run(program, batch), want) < 1e-5, (spec, variants)
    if dim < 3:
        assert error(by_tvm_alone(program), want) < 1e-5
