"""Deformable convolution on both hosts: one layout of offsets, and targets that say they have none."""

from __future__ import annotations

import deform
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import graphprune as gp
from graphprune.backends import target
from graphprune.errors import TargetError

_ATTRIBUTES = "group=2, offset_group=2, pads=[1, 0, 1, 0], strides=[2, 1], dilations=[1, 2], kernel_shape=[3, 2]"


def onnx_net(text: str, ins: str, opset: int) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": {opset}]> net ({ins}) => (float[] y) {{ {text} }}'
    )


@pytest.mark.parametrize("opset", [19, 22])
def test_offsets_and_masks_lie_as_onnx_has_them(opset: int) -> None:
    """What the torch host is tested with is what ONNX Runtime computes."""
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 4, 6, 6), "w": (6, 2, 3, 2), "o": (2, 24, 3, 4), "b": (6,), "m": (2, 12, 3, 4)}
    feeds = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    ins = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    model = onnx_net(f"y = DeformConv<{_ATTRIBUTES}>(x, w, o, b, m)", ins, opset)
    (wanted,) = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    x, w, o, b, m = (torch.from_numpy(feeds[name]) for name in "xwobm")
    found = deform.reference(x, w, o, m, b, 2, 1, 1, 0, 1, 2, 2, 2, True)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_tvm_says_which_op_it_cannot_read() -> None:
    pytest.importorskip("tvm")
    model = onnx_net(
        "y = DeformConv<kernel_shape=[1, 1]>(x, w, o)", "float[1,2,3,3] x, float[2,2,1,1] w, float[1,2,3,3] o", 19
    )
    for program in (
        gp.load(model),
        gp.load(deform.Deformed().eval(), (torch.randn(1, 3, 6, 6),)),
    ):
        with pytest.raises(TargetError, match=r"target `tvm`: cannot import the model: .*[dD]eform"):
            target("tvm").measure(program)
