"""Recurrent layers in what TVM compiles: right on torch; of ONNX files GRU and RNN are refused before any work."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.backends.tvm.target import Tvm
from graphprune.errors import TargetError

pytest.importorskip("tvm")


class Layers(nn.Module):
    """A recurrent layer, what it ends with, and a layer behind it."""

    def __init__(self, kind: str, projected: int = 0) -> None:
        super().__init__()
        sizes = {"proj_size": projected} if projected else {}
        self.r = getattr(nn, kind)(6, 8, num_layers=2, bidirectional=True, batch_first=True, **sizes)
        self.head = nn.Linear(2 * (projected or 8), 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, last = self.r(x)
        return self.head(out), last[0] if isinstance(last, tuple) else last


X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "projected"),
    [("GRU", 0), ("LSTM", 0), *(pytest.param(*one, marks=SLOW) for one in (("RNN", 0), ("LSTM", 5)))],
)
def test_layers_directions_and_last_states_are_right(kind: str, projected: int) -> None:
    program = gp.load(nets.randomise(Layers(kind, projected)).eval(), X)
    batch = program.host.example()
    for ours, theirs in zip(Tvm().run(program, batch), program.host.run(batch), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_what_is_refused_is_so_before_any_work(kind: str, tmp_path: Path) -> None:
    head = '<ir_version: 8, opset_import: ["": 17]> net (float[5,2,6] x) => (float[5,1,2,8] y)'
    made = onnx.parser.parse_model(f"{head} {{ y = {kind} <hidden_size = 8> (x, w, r) }}")
    gates = {"GRU": 3, "RNN": 1}[kind]
    for name, width in (("w", 6), ("r", 8)):
        weight = np.random.default_rng(0).standard_normal((1, 8 * gates, width)).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(made, tmp_path / "layers.onnx")
    ran: list[str] = []

    class Seen:
        def before(self, step: object, program: object) -> None:
            ran.append(str(step))

        def after(self, step: object, program: object, seconds: float) -> None: ...

    with pytest.raises(TargetError, match=kind) as caught:
        gp.compile(str(tmp_path / "layers.onnx"), targets=["tvm"], out=tmp_path / "out", instruments=[Seen()])
    assert caught.value.hint and not ran and not (tmp_path / "out").exists()
