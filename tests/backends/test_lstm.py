"""LSTM layers as kernels in what TVM compiles, beside torch and ONNX Runtime: whatever their sizes are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.backends import target
from graphprune.backends.boards import board
from graphprune.backends.target import Target
from graphprune.backends.tvm.lower import imported, lowered, toolchain
from graphprune.backends.tvm.target import Library, Tvm
from graphprune.errors import TargetError
from graphprune.ir.program import Program

pytest.importorskip("tvm")

TOLERANCE = 1e-5  # relative to the largest output


class Layers(nn.Module):
    """LSTM layers with what they end with (``lasts``), from given states or from none."""

    def __init__(self, inputs: int, hidden: int, lasts: bool = True, **options: Any) -> None:
        super().__init__()
        self.lasts = lasts
        self.layers = nn.LSTM(inputs, hidden, **options)
        self.head = nn.Linear((1 + self.layers.bidirectional) * (self.layers.proj_size or hidden), 3)

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out, last = self.layers(x, states or None)
        return (self.head(out), *last) if self.lasts else (self.head(out),)


def program(inputs: int, hidden: int, steps: int, batch: int, states: bool = False, **options: Any) -> Program:
    random = torch.Generator().manual_seed(1)
    shape = (batch, steps, inputs) if options.get("batch_first") else (steps, batch, inputs)
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    given = [torch.randn(count, batch, hidden, generator=random) for _ in range(2 * states)]
    module = nets.randomise(Layers(inputs, hidden, **options)).eval()
    return gp.load(module, (torch.randn(shape, generator=random), *given))


def compiled(made: Program, on: Target | None = None, threads: int = 1) -> int:
    """How many kernels of steps there are in code whose results are the host's."""
    code = (on or Tvm()).runnable(made, threads=threads)
    batch = made.host.example()
    for ours, theirs in zip(code.run(batch), made.host.run(batch), strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()
    return sum("lstm_steps" in name for name, *_ in code.kernel_times()) if isinstance(code, Library) else 0


CASES: dict[str, tuple[tuple[int, int, int, int], dict[str, Any]]] = {
    "whole vectors": ((8, 32, 6, 1), {}),
    "an odd hidden size, two layers": ((6, 37, 5, 1), {"num_layers": 2, "batch_first": True}),
    "one unit": ((3, 1, 4, 1), {}),
    "fewer units than a vector has lanes, three a batch": ((5, 7, 3, 3), {"batch_first": True}),
    "seven a batch: tiles that differ": ((4, 20, 3, 7), {}),
    "one step": ((6, 24, 1, 2), {}),
    "both directions, two layers": ((6, 17, 5, 2), {"bidirectional": True, "num_layers": 2}),
    "given states": ((6, 19, 4, 2), {"states": True, "num_layers": 2, "bidirectional": True, "batch_first": True}),
    "no bias": ((6, 16, 3, 1), {"bias": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_layers_of_torch_are_right(case: str) -> None:
    sizes, options = CASES[case]
    kernels = compiled(program(*sizes, **options))
    assert kernels == options.get("num_layers", 1) * (1 + options.get("bidirectional", False))


LONG = {
    "one a batch": ((6, 203, 5, 1), {"states": True, "bidirectional": True}),
    "three a batch": ((6, 171, 4, 3), {"states": True, "bidirectional": True}),
}
"""Whose steps are long enough for threads to share them, in blocks that no number of threads divides."""


@pytest.mark.parametrize("case", LONG)
def test_threads_share_long_steps_and_no_bit_depends_on_how_many_there_are(case: str, tmp_path: Path) -> None:
    sizes, options = LONG[case]
    made = program(*sizes, **options)
    assert shared(made)
    path, batch = Tvm().emit(made, tmp_path), made.host.example()
    one, *others = (Tvm().load(path, threads=threads).run(batch) for threads in (1, 2, 3))
    for ours, exact in zip(one, made.host.copy("float64").run(batch), strict=True):
        assert np.abs(ours - exact).max() <= 1e-6 * np.abs(exact).max()
    for other in others:
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(one, other, strict=True))


def test_steps_too_short_to_wake_threads_for_are_one_threads() -> None:
    assert not shared(program(6, 64, 5, 3))


def shared(made: Program) -> bool:
    """Whether kernels of steps ask how many threads there are."""
    toolchain()
    return "NumThreads" in lowered(imported(made.host)[0], Tvm()._llvm()).script()


@pytest.mark.parametrize("on", [Tvm(mcpu="haswell"), Tvm(schedule=False), Tvm(layout="NCHW")], ids=lambda on: on.text())
def test_other_registers_and_no_schedule(on: Tvm) -> None:
    assert compiled(program(6, 21, 3, 4, bidirectional=True), on, threads=2) == 2


def test_c_code_is_right() -> None:
    if not shutil.which(board("c").cc):
        pytest.skip(f"no {board('c').cc}")
    compiled(program(5, 11, 4, 2), target("c"))


def test_pruned_layers_are_right() -> None:
    given = program(6, 24, 5, 1, lasts=False, num_layers=2)
    made = gp.run("group,score{by=random},mask{macs=0.6x},propagate", given)
    assert made.host.parameter("head.weight").shape[1] < 24
    assert compiled(made) == 2


def test_layers_with_a_projection_stay_as_tvm_reads_them() -> None:
    assert compiled(program(3, 4, 2, 1, proj_size=2)) == 0


# ---- ONNX -------------------------------------------------------------------------------------------------

HIDDEN, INPUTS, STEPS, BATCH = 11, 6, 4, 2


def recurrent(path: Path, attributes: str = "", directions: int = 1, extra: dict[str, Any] | None = None) -> Path:
    """A file with an LSTM, whose inputs behind the weights ``extra`` has in order: arrays are constants, None is
    an input of the model, "" is left out."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((directions, 4 * HIDDEN, INPUTS)),
        "r": rng.standard_normal((directions, 4 * HIDDEN, HIDDEN)),
    }
    names, holes = ["x", "w", "r"], [f"float[{STEPS},{BATCH},{INPUTS}] x"]
    for name, value in (extra or {}).items():
        if isinstance(value, np.ndarray):
            constants[name] = value
        elif value is None:
            holes.append(f"float[{directions},{BATCH},{HIDDEN}] {name}")
        names.append("" if isinstance(value, str) else name)
    state = f"float[{directions},{BATCH},{HIDDEN}]"
    outs = f"float[{STEPS},{directions},{BATCH},{HIDDEN}] y, {state} last, {state} cell"
    made = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> net ({", ".join(holes)}) => ({outs})'
        f"{{ y, last, cell = LSTM <hidden_size = {HIDDEN}{attributes}> ({', '.join(names)}) }}"
    )
    for name, value in constants.items():
        array = value.astype(np.int32 if value.dtype.kind == "i" else np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(made, path)
    return path


BIAS = np.random.default_rng(1).standard_normal((2, 8 * HIDDEN))
FILES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "plain": ("", 1, {}),
    "from the end, a bias": (', direction = "reverse"', 1, {"b": BIAS[:1]}),
    "both ways, given states": (
        ', direction = "bidirectional"', 2, {"b": BIAS, "lengths": "", "first": None, "begun": None},
    ),
    "activations and lengths that are the usual ones": (
        ', activations = ["Sigmoid", "Tanh", "Tanh"]', 1, {"b": BIAS[:1], "lengths": np.full(BATCH, STEPS)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_layers_of_onnx_are_right(case: str, tmp_path: Path) -> None:
    attributes, directions, extra = FILES[case]
    made = gp.load(recurrent(tmp_path / "layers.onnx", attributes, directions, extra))
    assert compiled(made) == directions


def test_layers_that_torch_exports_are_right(tmp_path: Path) -> None:
    made = program(6, 13, 4, 2, num_layers=2, bidirectional=True, batch_first=True)
    made.host.save_onnx(tmp_path / "layers.onnx")
    assert compiled(gp.load(tmp_path / "layers.onnx")) == 4


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "peepholes": (
        "", {"b": "", "lengths": "", "first": "", "begun": "", "p": np.ones((1, 3 * HIDDEN))}, "peepholes",
    ),
    "a clip": (", clip = 3.0", {}, "clip"),
    "another activation": (', activations = ["Sigmoid", "Relu", "Tanh"]', {}, "activations"),
    "lengths": ("", {"b": BIAS[:1], "lengths": np.array([STEPS, 1])}, "lengths"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_kernel_computes_is_refused(case: str, tmp_path: Path) -> None:
    attributes, extra, says = REFUSED[case]
    made = gp.load(recurrent(tmp_path / "layers.onnx", attributes, 1, extra))
    with pytest.raises(TargetError, match=f"LSTM.*{says}") as caught:
        Tvm().admit(made)
    assert caught.value.hint


def test_cuda_has_no_such_kernels(tmp_path: Path) -> None:
    assert "graphprune.lstm" not in imported(program(3, 4, 2, 1).host, layers=False)[0].script()
    with pytest.raises(TargetError, match="LSTM"):
        imported(gp.load(recurrent(tmp_path / "layers.onnx")).host, "cuda", layers=False)
