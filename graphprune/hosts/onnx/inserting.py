"""New nodes of kinds of rules.py: see ir.Host.insert."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...errors import ModelError
from ...ir.host import Array
from . import edit

OLDEST = 12
"""The opset that has all ops that are inserted."""


class Inserter:
    """Makes nodes before ``anchor``, or (None) behind all, named after ``name``; what computes is of the type
    ``dtype``."""

    def __init__(self, graph: ir.Graph, anchor: ir.Node | None, name: str, dtype: ir.DataType, version: int) -> None:
        if version < OLDEST:
            raise ModelError(f"the file is of opset {version}", f"export it with opset {OLDEST} or later")
        self.graph, self.anchor, self.name, self.dtype, self.version = graph, anchor, name, dtype, version

    def __call__(self, kind: str, inputs: Sequence[ir.Value], attrs: Mapping[str, Any]) -> ir.Value:
        return KINDS[kind](self, *inputs, **attrs)

    def node(self, op_type: str, *inputs: ir.Value, whole: bool = False, **attributes: Any) -> ir.Value:
        dtype = ir.DataType.INT64 if whole else self.dtype
        made = edit.insert(self.graph, self.anchor, op_type, inputs, f"{self.name}_{op_type.lower()}", dtype, True)
        for name, value in attributes.items():
            listed = isinstance(value, (list, tuple))
            made.attributes[name] = ir.AttrInt64s(name, list(value)) if listed else ir.AttrInt64(name, value)
        return made.outputs[0]

    def numbers(self, *values: int) -> ir.Value:
        return edit.make_tensor(self.graph, f"{self.name}_at", np.array(values, np.int64), ir.DataType.INT64)

    def number(self, value: float) -> ir.Value:
        return self.constant(np.array(value))

    def constant(self, value: Array) -> ir.Value:
        dtype = self.dtype if value.dtype.kind == "f" else ir.DataType.from_numpy(value.dtype)
        return edit.make_tensor(self.graph, f"{self.name}_number", value, dtype)

    def pointwise(self, *inputs: ir.Value, function: str, number: float | None = None) -> ir.Value:
        return self.node(function.title(), *inputs, *([] if number is None else [self.number(number)]))

    def reduce(self, x: ir.Value, function: str, axes: Sequence[int]) -> ir.Value:
        name = f"Reduce{function.title()}"
        if self.version >= (13 if function == "sum" else 18):
            return self.node(name, x, self.numbers(*axes), keepdims=0)
        return self.node(name, x, axes=list(axes), keepdims=0)

    def positions(self, x: ir.Value, best: int) -> ir.Value:
        if self.dtype is ir.DataType.FLOAT16:  # of which ONNX Runtime sorts nothing
            x = self.node("Cast", x, to=int(ir.DataType.FLOAT))
            x.type = ir.TensorType(ir.DataType.FLOAT)
        return self._sorted(self._sorted(x, best, 1), best, 0)

    def _sorted(self, x: ir.Value, best: int, largest: int) -> ir.Value:
        """The positions of the largest, or the smallest in order, along the last axis."""
        name = edit.fresh(self.graph, f"{self.name}_topk")
        node = ir.Node("", "TopK", [x, self.numbers(best)], num_outputs=2, name=name)
        for number, out in enumerate(node.outputs):
            out.name = edit.fresh(self.graph, f"{name}_{number}")
        node.attributes["largest"] = ir.AttrInt64("largest", largest)
        node.outputs[1 if largest else 0].type = ir.TensorType(ir.DataType.INT64)
        edit.place(self.graph, self.anchor, node, before=True)
        return node.outputs[1 if largest else 0]

    def take(self, x: ir.Value, ids: ir.Value) -> ir.Value:
        if self.version >= 13:
            places = self.node("Unsqueeze", ids, self.numbers(-1), whole=True)
        else:
            places = self.node("Unsqueeze", ids, whole=True, axes=[-1])
        return self.node("GatherND", x, places, batch_dims=1)

    def gather(self, x: ir.Value, ids: ir.Value, axis: int) -> ir.Value:
        made = self.node("Gather", x, ids)
        made.producer().attributes["axis"] = ir.AttrInt64("axis", axis)  # type: ignore[union-attr]
        return made

    def mark(self, x: ir.Value, ids: ir.Value) -> ir.Value:
        zeros = self.node("Mul", self.node("Cast", ids, to=int(self.dtype)), self.number(0.0))
        return self.node("ScatterElements", x, ids, self.node("Add", zeros, self.number(1.0)), axis=1)


def _once(shape: Sequence[int]) -> list[int]:
    """A shape to expand to, as ONNX has it: one where the axis stays as it is."""
    return [1 if n == -1 else n for n in shape]


KINDS: dict[str, Callable[..., ir.Value]] = {
    "pointwise": Inserter.pointwise,
    "matmul": lambda self, a, b: self.node("MatMul", a, b),
    "softmax": lambda self, x: self.node("Softmax", x, axis=-1),
    "reduce": Inserter.reduce,
    "slice": lambda self, x, axis, start, end: self.node("Slice", x, *map(self.numbers, (start, end, axis))),
    "reshape": lambda self, x, shape: self.node("Reshape", x, self.numbers(*shape)),
    "expand": lambda self, x, shape: self.node("Expand", x, self.numbers(*_once(shape))),
    "transpose": lambda self, x, perm: self.node("Transpose", x, perm=list(perm)),
    "concat": lambda self, *x, axis: self.node("Concat", *x, axis=axis),
    "constant": lambda self, x, value: self.constant(value),
    "positions": Inserter.positions,
    "take": Inserter.take,
    "gather": lambda self, x, ids, axis: self.gather(x, ids, axis),
    "where": lambda self, condition, x, y: self.node("Where", condition, x, y),
    "mark": Inserter.mark,
}
