"""Results with recurrent layers live on: cast, moved, written as ONNX, and read again."""

from __future__ import annotations

import copy
from pathlib import Path

import nets
import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import ModelError
from graphprune.facts import Groups

HALF = "group,score,mask{channels=0.5x},propagate"
X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(6, 10, batch_first=True, **options)
        self.head = nn.Linear(10 * (1 + options.get("bidirectional", False)), 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


KINDS = {
    "lstm": (nn.LSTM, {}),
    "two layers": (nn.LSTM, {"num_layers": 2}),
    "both ways": (nn.LSTM, {"bidirectional": True}),
    "gru": (nn.GRU, {}),
    "rnn": (nn.RNN, {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_result_follows_its_module_to_another_dtype_and_is_cut_again_as_onnx(name, tmp_path: Path) -> None:
    kind, options = KINDS[name]
    module = nets.randomise(Net(kind, **options)).eval()
    done = gp.run(HALF, gp.load(module, X))
    wide = copy.deepcopy(done.model).double()
    made = wide(X.double())
    assert made.dtype == torch.float64 and torch.allclose(made.float(), done.model(X), atol=1e-6)

    path = tmp_path / "net.onnx"
    done.host.save_onnx(path)
    again = gp.load(path)
    sizes = [group.size for group in gp.run("group", again).fact(Groups)]
    assert sizes and set(sizes) == {5}
    small = gp.run(HALF, again)
    assert all(check.holds for check in gp.verify(small))
    small.host.save(tmp_path / "small.onnx")
    (before,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": X.numpy()})
    np.testing.assert_allclose(before, done.model(X).detach().numpy(), atol=1e-5)
    session = ort.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    (after,) = session.run(None, {"x": X.numpy()})
    np.testing.assert_allclose(after, small.host.run([X.numpy()])[0], atol=1e-6)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))


def test_an_encoder_that_cannot_be_cut_in_place_names_what_to_freeze() -> None:
    module, x = nets.randomise(Encoder()).eval(), torch.randn(2, 5, 8)
    program = gp.load(module, x)
    with pytest.raises(ModelError, match="cannot be cut in place") as caught:
        gp.apply(gp.run(HALF, program), copy.deepcopy(module), in_place=True)
    named = str(caught.value.hint).partition("freeze=")[2].partition("}")[0]
    assert named.count("|") == 3 and all("self_attn" in name for name in named.split("|"))
    done = gp.run(HALF.replace("group", f"group{{freeze={named}}}"), program)
    assert gp.apply(done, module, in_place=True)
    assert module.get_submodule("body.layers.0.linear1").out_features == 8
