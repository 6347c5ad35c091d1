"""A quantised network has as many parameters as what was quantised: its integers, not their scales and zero points."""

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from torch import nn

import graphprune as gp
from graphprune.cost.static import params
from graphprune.driver.layers import layers


class Once(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feed):
        self.left = [feed]

    def get_next(self):
        return self.left.pop() if self.left else None


def static(format_, per_channel=False, kind=QuantType.QInt8):
    def made(source, path, x):
        kinds = dict(activation_type=kind, weight_type=kind)
        quantize_static(source, path, Once({"x": x}), quant_format=format_, per_channel=per_channel, **kinds)

    return made


FORMS = {
    "dynamic": lambda source, path, x: quantize_dynamic(source, path),
    "pairs": static(QuantFormat.QDQ),
    "pairs, per channel": static(QuantFormat.QDQ, per_channel=True),
    "unsigned": static(QuantFormat.QDQ, kind=QuantType.QUInt8),
    "operators": static(QuantFormat.QOperator),
    "operators, unsigned": static(QuantFormat.QOperator, kind=QuantType.QUInt8),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten()]
    module = nn.Sequential(*body, nn.Linear(12 * 16, 10), nn.ReLU(), nn.Linear(10, 4)).eval()
    path = tmp_path_factory.mktemp("whole") / "net.onnx"
    x = torch.randn(1, 3, 8, 8)
    torch.onnx.export(module, (x,), path, input_names=["x"], dynamo=True, verbose=False)
    model = onnx.load(path)
    del model.graph.value_info[:]  # the dynamic quantiser turns a weight and leaves its old shape there
    onnx.save(model, path)
    return path, x.numpy(), sum(p.numel() for p in module.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_quantised_numbers_are_parameters_and_their_scales_are_none(whole, form, tmp_path):
    source, x, count = whole
    FORMS[form](str(source), str(tmp_path / "net.onnx"), x)
    program = gp.load(onnx.load(tmp_path / "net.onnx"))
    scales = 4 if form == "dynamic" else 0  # of a layer one number, in a product as any other
    assert params(program.graph, program.host)() == count + scales
    assert sum(layer["params"][0] for layer in layers(program, program)["layers"]) == count + scales
    if form == "dynamic":
        return  # one scale over all channels: none goes
    cut = gp.compile(program, params="0.7x", targets=["onnx"], out=tmp_path / "out", measure=False)
    tensors = onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    tensors = [t for t in tensors if t.data_type != onnx.TensorProto.INT64]  # what is reshaped to
    left = {t.name: np.prod(t.dims) for t in tensors if not t.name.endswith(("_scale", "_zero_point"))}
    assert 0.6 * count < sum(left.values()) <= 0.7 * count
    assert params(cut.program.graph, cut.program.host)() == sum(left.values())
