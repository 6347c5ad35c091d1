"""One ONNX node, as its reader sees it: operands, attributes, literals.

``SLOTS`` says which inputs are literals: sizes, indices and flags that shape the op rather than flow
through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...axes.dim import Size
from ...ir.graph import Value

Literal = tuple[int | float | None, ...]
"""A small tensor, flat; None where it varies with the sizes of the inputs."""

Reading = tuple[str, list[Value | None], dict[str, Any]]
"""A kind of rules.py, its operands in order, its attributes."""

RANDOM = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split())
"""Ops that draw random numbers."""


@dataclass(frozen=True)
class Call:
    """One node, as its reader sees it."""

    node: ir.Node
    version: int  # of the opset the node is in
    inputs: tuple[Value | None, ...]  # None: absent
    outputs: tuple[Value | None, ...]
    literals: tuple[Literal | None, ...]  # by input; None: absent, or not a small literal

    def attr(self, name: str, default: Any = None) -> Any:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def input(self, k: int) -> Value | None:
        return self.inputs[k] if k < len(self.inputs) else None

    def shape(self, k: int) -> tuple[Size, ...]:
        """The shape of an operand. Raises Unreadable if it is absent or has none."""
        return shape_of(self.input(k))

    def result(self) -> tuple[Size, ...]:
        return shape_of(self.outputs[0])

    def numbers(self, k: int, name: str, default: Any = None) -> list[Any]:
        """A list of numbers from an attribute (old opsets) or else from input ``k``."""
        given = self.attr(name)
        if given is None and k < len(self.literals):
            given = self.literals[k]
            if given is None and self.node.inputs[k] is not None:
                raise Unreadable  # too large to have been read
        if given is None:
            given = default
        if given is None:
            raise Unreadable
        return list(given) if isinstance(given, (list, tuple, range)) else [given]

    def only_output(self, *others: int) -> None:
        """Raises Unreadable if more than the first output, and those allowed, is used."""
        for k, value in enumerate(self.outputs[1:], 1):
            if value is not None and k not in others:
                raise Unreadable(f"output {k} of `{self.node.op_type}` is used")


class Unreadable(Exception):
    """This use of the op is none that a rule speaks of; with a reason why, if there is more to say."""


def shape_of(value: Value | None) -> tuple[Size, ...]:
    if value is None or value.shape is None:
        raise Unreadable
    return value.shape


Reader = Callable[["Call"], Reading]

SLOTS: dict[str, frozenset[int]] = {
    **dict.fromkeys(
        ("Reshape", "Expand", "Split", "Tile", "Unsqueeze", "Squeeze", "TopK", "CumSum", "Trilu"), frozenset({1})
    ),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"), frozenset({1})),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"), frozenset({1})),
    "Slice": frozenset({1, 2, 3, 4}),
    "Pad": frozenset({1, 2, 3}),
    "Resize": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
    "ConstantOfShape": frozenset({0}),
    "OneHot": frozenset({1, 2}),
    "Range": frozenset({0, 1, 2}),
    "Dropout": frozenset({1, 2}),
    "Col2Im": frozenset({1, 2}),
}
TYPES: dict[str, frozenset[int]] = {"CastLike": frozenset({1})}
"""Inputs whose type alone matters: nothing is computed from them."""


def standard(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx")


def plain_attributes(node: ir.Node) -> dict[str, Any]:
    """A node's attributes that are numbers, texts, or lists of them."""
    kinds = {ir.AttributeType[name] for name in ("FLOAT", "INT", "STRING", "FLOATS", "INTS", "STRINGS")}
    return {a.name: a.value for a in node.attributes.values() if not a.is_ref() and a.type in kinds}


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node's output, else None."""
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or not standard(node):
        return None
    name, attribute = next(iter(node.attributes.items()))
    if name == "value":
        tensor: ir.TensorProtocol = attribute.value
        return tensor
    dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if name not in dtypes:
        return None  # strings, sparse tensors
    return ir.tensor(np.asarray(attribute.value, dtypes[name]), name=value.name)
