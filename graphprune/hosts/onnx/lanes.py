"""Nodes that take or join single positions of an axis: see Host.take_single and Host.join."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...ir.graph import Op
from . import edit
from .node import constant_tensor


def take_single(graph: ir.Graph, node: ir.Node, op: Op, at: Sequence[int], version: int) -> None:
    """Numbers that are compared with, or picked, are other ones; splits become slices."""
    if "equals" in op.attrs:
        k = next(k for k, value in enumerate(node.inputs) if value is not None and constant_tensor(value) is not None)
        _renumber(graph, node, k, f"{op.name}_equals", at[0])
    elif node.op_type == "Gather":
        _renumber(graph, node, 1, f"{op.name}_at", at[0])
    else:
        _sliced(graph, node, op, at, version)


def _renumber(graph: ir.Graph, node: ir.Node, k: int, name: str, number: int) -> None:
    old = node.inputs[k]
    assert old is not None
    tensor = constant_tensor(old)
    assert tensor is not None
    node.replace_input_with(k, edit.make_tensor(graph, name, np.full(tensor.shape.numpy(), number), tensor.dtype))
    edit.drop_unread(graph, [old])


def _sliced(graph: ir.Graph, node: ir.Node, op: Op, at: Sequence[int], version: int) -> None:
    x = node.inputs[0]
    assert x is not None
    axis = op.attrs["axes"][0] if op.kind == "slice" else op.attrs["axis"]
    for out, place in zip(node.outputs, at, strict=True):
        if place >= 0:
            bounds = {"starts": place, "ends": place + 1, "axes": axis}
            given = [] if version < 10 else [_number(graph, f"{out.name}_{name}", n) for name, n in bounds.items()]
            made = edit.insert(graph, node, "Slice", [x, *given], f"{out.name}_alone", x.dtype)
            for name, n in bounds.items() if not given else ():
                made.attributes[name] = ir.AttrInt64s(name, [n])
            for reader, k in list(out.uses()):
                reader.replace_input_with(k, made.outputs[0])
    edit.sweep(graph, node)


def _number(graph: ir.Graph, name: str, number: int) -> ir.Value:
    return edit.make_tensor(graph, name, np.array([number]), ir.DataType.INT64)


def join(graph: ir.Graph, node: ir.Node, operands: Sequence[int]) -> None:
    before = list(node.inputs)
    node.resize_inputs(len(operands))
    for k, one in enumerate(operands):
        node.replace_input_with(k, before[one])
    for value in before:
        maker = value.producer() if value is not None else None
        if maker is not None and maker.graph is not None and not any(map(_read, maker.outputs)):
            edit.sweep(graph, maker)
    edit.drop_unread(graph, [value for value in before if value is not None and value.producer() is None])


def _read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()
