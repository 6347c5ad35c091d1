"""A model without the rounding of its number formats: what is compared when a result is proved.

In half precision, or where activations are quantised, two graphs that compute the same differ by what
their kernels round. So the proof runs both in float32: half precision is widened, and activations that
are quantised and dequantised keep their scale and range, but are not rounded to whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from .node import constant_tensor
from .zero_points import float_pair

HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_DTYPES = ("to", "dtype", "output_dtype", "stash_type", "softmax_precision")  # attributes that name one


def halves(model: ir.Model) -> set[ir.DataType]:
    """The half precisions that a model uses."""
    return {dtype for graph in _graphs(model) for dtype in _dtypes(graph) if dtype in HALF}


def _graphs(model: ir.Model) -> list[Any]:
    return [*model.graphs(), *model.functions.values()]


def _dtypes(graph: Any) -> Iterator[ir.DataType | None]:
    for value in (*graph.inputs, *getattr(graph, "initializers", {}).values()):
        yield value.dtype
    for node in graph:
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.value.dtype
            elif name in _DTYPES and attribute.type == ir.AttributeType.INT and attribute.value in _numbers():
                yield ir.DataType(attribute.value)


def _numbers() -> set[int]:
    return {int(dtype) for dtype in HALF}


def widened(model: ir.Model) -> ir.Model:
    """A copy with every float16 and bfloat16 made float32; names, ops and all else as they are."""
    model = model.clone()
    for graph in _graphs(model):
        for value in getattr(graph, "initializers", {}).values():
            if value.const_value is not None and value.const_value.dtype in HALF:
                value.const_value = _wide(value.const_value)
        for value in graph.inputs:
            _widen_type(value)
        for node in graph:
            for value in node.outputs:
                _widen_type(value)
            _widen_attributes(node)
        for value in getattr(graph, "initializers", {}).values():
            _widen_type(value)
    return model


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype(np.float32), ir.DataType.FLOAT, name=tensor.name)


def _widen_type(value: ir.Value) -> None:
    if value.dtype in HALF:
        value.type = ir.TensorType(ir.DataType.FLOAT)


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in HALF:
            node.attributes[name] = ir.AttrTensor(name, _wide(attribute.value))
        elif name in _DTYPES and attribute.type == ir.AttributeType.INT and attribute.value in _numbers():
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))


def unround(model: ir.Model) -> None:
    """Quantised activations keep scale and range but no longer round to whole numbers (in place).

    Only where one number is scale and zero point of the whole tensor, and nothing but DequantizeLinear
    reads it: x / scale, clipped, in between; times scale after.
    """
    for node in [node for node in model.graph if node.op_type == "QuantizeLinear"]:
        pair = float_pair(node)
        if pair is not None:
            low, high, readers, between = pair
            _replace(model.graph, node, "Div", [low, high])
            for value in between:
                value.type = None
            for reader in readers:
                _replace(model.graph, reader, "Mul", [])


def _replace(graph: ir.Graph, node: ir.Node, op_type: str, limits: list[float]) -> None:
    """``op_type`` of a node's first two inputs, within limits, in the place of the node."""
    value, scale, out = node.inputs[0], node.inputs[1], node.outputs[0]
    assert value is not None and scale is not None
    tensor = constant_tensor(scale)
    assert tensor is not None
    operands: list[tuple[str, ir.Value]] = [(op_type, scale)]
    for kind, limit in zip(("Max", "Min"), limits, strict=False):
        number = ir.Tensor(np.asarray(limit, tensor.dtype.numpy()), tensor.dtype, name=f"{out.name}:{kind} limit")
        held = ir.Value(name=number.name, type=ir.TensorType(tensor.dtype), shape=number.shape, const_value=number)
        graph.register_initializer(held)
        operands.append((kind, held))
    name, out.name = str(out.name), f"{out.name}:rounded"
    for kind, operand in operands:
        made = ir.Node("", kind, [value, operand], num_outputs=1, name=f"{node.name or name}:{kind}")
        made.outputs[0].name = f"{name}:{kind}"
        graph.insert_before(node, made)
        value = made.outputs[0]
    assert value is not None
    value.name = name
    for reader, k in list(out.uses()):
        reader.replace_input_with(k, value)
    for k, output in enumerate(graph.outputs):
        if output is out:
            graph.outputs[k] = value
            value.type, value.shape = out.type, out.shape
    graph.remove(node, safe=True)
