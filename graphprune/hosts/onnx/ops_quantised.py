"""How quantised ops are read: QuantizeLinear and DequantizeLinear, and the ops on integers."""

from __future__ import annotations

from typing import Any

from ...ir.graph import Value
from .node import Call, Reader, Reading, Unreadable, constant_tensor
from .zero_points import axis_of, block_of, keeps_zero, stored_zero


def _linear(c: Call) -> Reading:
    """QuantizeLinear and DequantizeLinear: per tensor, per axis, or in blocks along an axis."""
    x, scale, block = c.shape(0), c.shape(1), block_of(c.node)
    attrs: dict[str, Any] = {"axis": axis_of(c.node), "scaling": (1, 2)}
    if block:
        axis = attrs["axis"] % len(x)
        if x[axis] == scale[axis]:
            block = 1
        elif not isinstance(x[axis], int) or not isinstance(scale[axis], int) or x[axis] != scale[axis] * block:
            raise Unreadable(f"`{c.node.op_type}` in blocks of {block} does not fill its last block")
        attrs["block"] = block
    elif len(scale) > 1:
        raise Unreadable(f"`{c.node.op_type}` has a scale of rank {len(scale)}")
    if keeps_zero(c.node):
        attrs["zero"] = "first"
    return "pointwise", [c.input(0), c.input(1), c.input(2)], attrs


def _weight(c: Call, k: int) -> Value | None:
    """A stored integer weight. Raises Unreadable where it has no zero of its own to mask it with."""
    source = c.node.inputs[k]
    if source is not None and constant_tensor(source) is not None and stored_zero(source) is None:
        raise Unreadable(f"the readers of weight `{source.name}` do not agree on its zero point")
    return c.input(k)


def _parameters(c: Call, *slots: int) -> list[Value | None]:
    """Scales and zero points: one number, or one for each output channel."""
    found = [c.input(k) for k in slots]
    if any(value is not None and len(value.shape or ()) > 1 for value in found):
        raise Unreadable(f"`{c.node.op_type}` has a scale or zero point of rank 2 or more")
    return found


def _single(c: Call, *slots: int) -> list[Value | None]:
    """Scales and zero points of an activation."""
    found = _parameters(c, *slots)
    if any(value is not None and value.shape not in ((), (1,)) for value in found):
        raise Unreadable(f"`{c.node.op_type}` has a scale or zero point for each row")
    return found


def _behind(first: int, rest: list[Value | None]) -> tuple[int, ...]:
    """Where the scales and zero points stand among an op's operands."""
    return tuple(range(first, first + len(rest)))


def _integer_conv(c: Call) -> Reading:
    rest = [*_single(c, 2), *_parameters(c, 3)]
    attrs = {"groups": c.attr("group", 1), "scaling": _behind(3, rest)}
    return "integer_conv", [c.input(0), _weight(c, 1), None, *rest], attrs


def _qlinear_conv(c: Call) -> Reading:
    if c.attr("channels_last", 0):
        raise Unreadable("`QLinearConv` has its channels last")
    rest = [*_single(c, 1, 2, 6, 7), *_parameters(c, 4, 5)]
    attrs = {"groups": c.attr("group", 1), "scaling": _behind(3, rest)}
    return "integer_conv", [c.input(0), _weight(c, 3), c.input(8), *rest], attrs


def _integer_matmul(
    a: int, b: int, single: tuple[int, ...], parameters: tuple[int, ...], bias: tuple[int, ...] = ()
) -> Reader:
    def read(c: Call) -> Reading:
        ranks = len(c.shape(a)), len(c.shape(b))
        if min(ranks) < 2 or (ranks[1] > 2 and ranks[0] != ranks[1]):
            raise Unreadable(f"`{c.node.op_type}` of operands of ranks {ranks[0]} and {ranks[1]}")
        attrs: dict[str, Any] = {"dynamic": True} if c.node.op_type == "DynamicQuantizeMatMul" else {}
        rest = [*_single(c, *single), *_parameters(c, *parameters)]
        attrs["scaling"] = _behind(2, rest)
        return "integer_matmul", [c.input(a), _weight(c, b), *rest, *_parameters(c, *bias)], attrs

    return read


def _qgemm(c: Call) -> Reading:
    attrs = {"transA": bool(c.attr("transA", 0)), "transB": bool(c.attr("transB", 0))}
    rest = [*_single(c, 1, 2, 7, 8), *_parameters(c, 4, 5)]
    return "integer_gemm", [c.input(0), _weight(c, 3), c.input(6), *rest], {**attrs, "scaling": _behind(3, rest)}


def _qconcat(c: Call) -> Reading:
    return "concat", list(c.inputs[2::3]), {"axis": c.attr("axis")}


def _channels_second(read: Reader) -> Reader:
    def unless(c: Call) -> Reading:
        if c.attr("channels_last", 0):
            raise Unreadable(f"`{c.node.op_type}` has its channels last")
        return read(c)

    return unless


def _dynamic(c: Call) -> Reading:
    return "dynamic_quantize", [c.input(0)], {}


def _packed(why: str) -> Reader:
    def read(c: Call) -> Reading:
        raise Unreadable(f"`{c.node.op_type}` {why}")

    return read


def _each(*numbers: int) -> Reader:
    """Element by element, on integers; which operands they are, the others being their parameters."""
    return lambda c: ("pointwise", list(c.inputs), {"scaling": tuple({*range(len(c.inputs))} - {*numbers})})


QUANTISED: dict[str, Reader] = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _linear),
    "DynamicQuantizeLinear": _dynamic,
    "ConvInteger": _integer_conv,
    "QLinearConv": _qlinear_conv,
    "MatMulInteger": _integer_matmul(0, 1, (2,), (3,)),
    "QLinearMatMul": _integer_matmul(0, 3, (1, 2, 6, 7), (4, 5)),
}
MICROSOFT_QUANTISED: dict[str, Reader] = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _linear),
    "MatMulIntegerToFloat": _integer_matmul(0, 1, (2, 4), (3, 5), (6,)),
    "DynamicQuantizeMatMul": _integer_matmul(0, 1, (), (2, 3), (4,)),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), _each(0, 3)),
    **dict.fromkeys(("QLinearLeakyRelu", "QLinearSigmoid"), _each(0)),
    "MatMulNBits": _packed("has its weights packed in blocks"),
    "QAttention": _packed("keeps its quantised weights in an order of its own"),
    "DynamicQuantizeLSTM": _packed("quantises its state anew at every step, by one scale for all channels"),
    "QGemm": _qgemm,
    "QLinearConcat": _qconcat,
    "QLinearGlobalAveragePool": _channels_second(
        lambda c: ("reduce", [c.input(0)], {"axes": list(range(2, len(c.shape(0)))), "keepdim": True})
    ),
    "QLinearAveragePool": _channels_second(lambda c: ("pool", [c.input(0)], {"spatial": len(c.shape(0)) - 2})),
}
