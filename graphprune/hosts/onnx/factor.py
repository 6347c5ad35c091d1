"""Nodes one after the other for one that multiplies by a weight: see ir.Host.factor."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ...ir.graph import Op
from ...ir.host import Array, beside
from . import edit
from .node import constant_tensor

_WINDOWS = {"strides": 1, "pads": 0, "dilations": 1}


def split(graph: ir.Graph, nodes: Sequence[ir.Node], ops: Sequence[Op], inner: Array, outers: Sequence[Array]) -> None:
    first, stored, swapped = nodes[0], *_stored(nodes[0])
    tensor, x = constant_tensor(stored), first.inputs[0]
    assert tensor is not None and x is not None
    made = edit.make_tensor(graph, beside(str(stored.name), "rank"), inner, tensor.dtype)
    new = edit.insert(graph, first, first.op_type, [x, made], f"{ops[0].name}_rank", tensor.dtype, before=True)
    new.domain, new.version = first.domain, first.version
    new.attributes.update(first.attributes)
    kernel = list(tensor.shape)[2:]
    keeps = [mine == whole for mine, whole in zip(inner.shape[2:], kernel, strict=True)]
    _plain(new, inner.shape[2:], keeps)
    for node, outer in zip(nodes, outers, strict=True):
        stored, swapped = _stored(node)
        edit.set_tensor(stored, outer.T if swapped else outer)
        _plain(node, outer.shape[2:], [not keep for keep in keeps])
        node.replace_input_with(0, new.outputs[0])


def _stored(node: ir.Node) -> tuple[ir.Value, bool]:
    """The tensor that a node has for a weight, and whether it multiplies by its transpose."""
    weight, swaps = node.inputs[1], 0
    assert weight is not None
    while constant_tensor(weight) is None:
        maker = weight.producer()
        assert maker is not None and maker.inputs[0] is not None
        order = maker.attributes.get("perm")
        swaps += order is None or list(order.as_ints()) == [1, 0]
        weight = maker.inputs[0]
    return weight, swaps % 2 == 1


def _plain(node: ir.Node, kernel: Sequence[int], keeps: Sequence[bool]) -> None:
    """The windows of a kernel: no stride, padding or dilation along the axes that do not keep theirs."""
    if not keeps:
        return
    for name, plain in _WINDOWS.items():
        if name in node.attributes:
            given = list(node.attributes[name].as_ints())
            each = list(keeps) * (len(given) // len(keeps))
            node.attributes[name] = ir.AttrInt64s(
                name, [own if keep else plain for own, keep in zip(given, each, strict=True)]
            )
    if "kernel_shape" in node.attributes:
        node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(kernel))
