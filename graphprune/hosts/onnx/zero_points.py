"""Quantised tensors: what they stand for, and what stands for zero in them.

A channel of a quantised weight is masked by setting it to its zero point. The ops between, such as
DequantizeLinear, then give zero where their first operand stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from ...ir.host import Array
from .node import constant_tensor

Point = tuple[Array, int | None]
"""A zero point: its numbers, and the axis of the tensor along which there are several."""

_MOVES = frozenset("Transpose Reshape Squeeze Unsqueeze Flatten Identity".split())
_ZERO_POINTS: dict[str, dict[int, int]] = {  # input -> the input that is its zero point
    "DequantizeLinear": {0: 2},
    "MatMulInteger": {0: 2, 1: 3},
    "ConvInteger": {0: 2, 1: 3},
    "QLinearConv": {0: 2, 3: 5},
    "QLinearMatMul": {0: 2, 3: 5},
    "MatMulIntegerToFloat": {0: 4, 1: 5},
    "DynamicQuantizeMatMul": {1: 3},
    "QGemm": {0: 2, 3: 5},
}
_SCALES = {  # the input that is the scale of what the op reads as weight
    "DequantizeLinear": 1,
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), 4),
    "MatMulIntegerToFloat": 3,
    "DynamicQuantizeMatMul": 2,
}
_QUANTISERS: dict[str, tuple[int, ...]] = {  # the inputs that are scales and zero points
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), (1, 2)),
    **dict.fromkeys(("MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul"), (2, 3)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), (1, 2, 4, 5, 6, 7)),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
}
_RANGES = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
}


def stored_zero(value: ir.Value) -> Array | None:
    """What stands for zero in a stored tensor, to be broadcast to its shape; None if its readers
    disagree or do not say."""
    tensor = constant_tensor(value)
    assert tensor is not None
    points = list(_read_with(value))
    if not points:
        return np.zeros((), np.int64)
    if any(point is None for point in points):
        return None
    spread = [_spread(point, tensor.shape.rank()) for point in points if point is not None]
    return spread[0] if all(np.array_equal(spread[0], other) for other in spread[1:]) else None


def dequantised(value: ir.Value) -> tuple[Array, Array] | None:
    """Scale and zero point of a stored tensor that only quantised ops read, all with the same, each to be
    broadcast to its shape; else None. The scale is 1 where another op has it."""
    nodes = [node for node, k in value.uses() if k in _ZERO_POINTS.get(node.op_type, ())]
    zero = stored_zero(value) if nodes and len(nodes) == len(value.uses()) else None
    tensor = constant_tensor(value)
    if zero is None or tensor is None:
        return None
    first, *others = (_scale(node, tensor.shape.numpy()) for node in nodes)
    if first is None or any(other is None or not np.array_equal(first, other) for other in others):
        return None
    return first, zero


def _scale(node: ir.Node, shape: Sequence[int]) -> Array | None:
    slot = _SCALES.get(node.op_type)
    if slot is None:
        return np.ones(())
    scale = node.inputs[slot]
    tensor = constant_tensor(scale) if scale is not None else None
    if tensor is None:
        return None
    array, axis, block = tensor.numpy().astype(np.float64), axis_of(node), block_of(node)
    if block:
        return np.repeat(array, block, axis).take(np.arange(shape[axis]), axis)
    return _spread((array, axis if array.size > 1 else None), len(shape))


def _spread(point: Point, rank: int) -> Array:
    array, axis = point
    if axis is None or array.ndim == rank:
        return array if array.ndim == rank and array.size > 1 else array.reshape(())
    return array.reshape([-1 if k == axis % rank else 1 for k in range(rank)])


def _read_with(value: ir.Value, moved: bool = False) -> Iterator[Point | None]:
    """The zero point that each reader of a tensor takes it to have; None for one that does not say."""
    for node, k in value.uses():
        if node.op_type in _MOVES and k == 0:
            yield from _read_with(node.outputs[0], True)
            continue
        slot = _ZERO_POINTS.get(node.op_type, {}).get(k)
        point = _point(node, slot) if slot is not None else None
        yield None if point is None or (moved and point[1] is not None) else point


def _point(node: ir.Node, slot: int) -> Point | None:
    """The zero point that a node is given; no input is zero, one that is computed is None."""
    value = node.inputs[slot] if slot < len(node.inputs) else None
    if value is None:
        return np.zeros((), np.int64), None
    tensor = constant_tensor(value)
    if tensor is None:
        return None
    array = tensor.numpy().astype(np.int64)
    if array.size == 1:
        return array.reshape(()), None
    if not array.any():
        return np.zeros((), np.int64), None
    if block := block_of(node):
        return np.repeat(array, block, axis_of(node)), axis_of(node)
    return array, axis_of(node)


def axis_of(node: ir.Node) -> int:
    if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        return int(node.attributes["axis"].value) if "axis" in node.attributes else 1
    rows = node.op_type == "QGemm" and "transB" in node.attributes and node.attributes["transB"].value
    return 0 if rows or node.op_type in ("ConvInteger", "QLinearConv") else -1


def block_of(node: ir.Node) -> int:
    return int(node.attributes["block_size"].value) if "block_size" in node.attributes else 0


def keeps_zero(node: ir.Node) -> bool:
    """Whether a (de)quantisation gives what stands for zero where it is given that."""
    mine = _point(node, 2)
    if mine is None:
        return False
    if not mine[0].any():
        return True
    if node.op_type == "QuantizeLinear":
        others = list(_read_with(node.outputs[0]))
        return bool(others) and all(other is not None and _equal(mine, other) for other in others)
    source = node.inputs[0]
    moved = False
    while source is not None and (maker := source.producer()) is not None and maker.op_type in _MOVES:
        source, moved = maker.inputs[0], True
    if source is None or (moved and mine[1] is not None):
        return False
    if constant_tensor(source) is not None:
        return stored_zero(source) is not None
    maker = source.producer()
    return maker is not None and maker.op_type == "QuantizeLinear" and _equal(mine, _point(maker, 2))


def _equal(a: Point, b: Point | None) -> bool:
    return b is not None and a[1] == b[1] and np.array_equal(a[0], b[0])


def is_quantiser(value: ir.Value) -> bool:
    """Whether a stored tensor is a scale or a zero point and nothing else."""
    uses = value.uses()
    return bool(uses) and all(k in _QUANTISERS.get(node.op_type, ()) for node, k in uses)


def float_pair(node: ir.Node) -> tuple[float, float, list[ir.Node], list[ir.Value]] | None:
    """Of a QuantizeLinear of an activation with one scale: the least and largest whole number less the
    zero point, the DequantizeLinear nodes that alone read it, and the values on the way to them."""
    point, source, out = _point(node, 2), node.inputs[0], node.outputs[0]
    scale = constant_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    if scale is None or scale.size != 1 or point is None or point[1] is not None:
        return None
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    whole = constant_tensor(zero) if zero is not None else None
    dtype = ir.DataType.UINT8 if whole is None else whole.dtype
    if "output_dtype" in node.attributes or source is None or constant_tensor(source) is not None:
        return None
    if dtype not in _RANGES or not _dequantised_only(out, point):
        return None
    readers: list[ir.Node] = []
    between = [out]
    for value in between:
        for reader, _ in value.uses():
            if reader.op_type in _MOVES:
                between.append(reader.outputs[0])
            else:
                readers.append(reader)
    low, high = _RANGES[dtype]
    return low - float(point[0]), high - float(point[0]), readers, between


def _dequantised_only(value: ir.Value, point: Point) -> bool:
    if value.is_graph_output() or not value.uses():
        return False
    for node, k in value.uses():
        if node.graph is not value.graph:
            return False  # read from inside a branch or loop
        if node.op_type in _MOVES and k == 0:
            fits = _dequantised_only(node.outputs[0], point)
        else:
            scale = constant_tensor(node.inputs[1]) if node.op_type == "DequantizeLinear" and node.inputs[1] else None
            fits = scale is not None and scale.size == 1 and k == 0 and _equal(point, _point(node, 2))
        if not fits:
            return False
    return True
