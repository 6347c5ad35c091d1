"""ONNX names onto the kinds of rules.py: which tensor operands, in which order, with which attributes.

One line an op, where one is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import onnx_ir as ir

from .node import Call, Reader, Reading, Unreadable, constant_tensor, shape_of

ONNX: dict[str, Reader] = {}
MICROSOFT: dict[str, Reader] = {}


def _enter(names: str, read: Reader) -> None:
    ONNX.update(dict.fromkeys(names.split(), read))


# ---- element by element ----------------------------------------------------------------------------


ZERO = {  # see the rule of pointwise; what is not listed may make something of nothing
    "Mul": "any",
    **dict.fromkeys("Add Max Min Sub Sum".split(), "both"),
    **dict.fromkeys(
        "Abs Cast CastLike Celu Div Dropout Elu Erf Gelu HardSwish Identity LeakyRelu Mish Neg PRelu QuickGelu "
        "FastGelu Relu Round Selu Sign Sin Softsign Sqrt Swish Tan Tanh".split(),
        "first",
    ),
}
"""Where the result of a pointwise op is zero for sure."""

_POWERS = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt"}
FUNCTIONS = {
    **{name: name.lower() for name in "Abs Add Div Max Min Mul Neg Relu Sigmoid Softplus Sqrt Sub Tanh".split()},
    "Clip": "clip",
    "Identity": "same",
    "Reciprocal": "reciprocal",
}
"""What a pointwise op is a function of: see coupling/interval.py. What is not listed can be anything."""


def _pointwise(c: Call) -> Reading:
    zero = ZERO.get(c.node.op_type) if c.node.op_type != "FastGelu" or c.input(1) is None else None
    function = FUNCTIONS.get(c.node.op_type)
    known: dict[str, Any] = {"function": function} if function else {}
    if function == "clip" and c.attr("min", c.attr("max")) is not None:  # before opset 11
        known = {**known, "low": c.attr("min"), "high": c.attr("max")}
    number = _number(c) if c.node.op_type in ("Add", "Pow") else None
    if number is not None and c.node.op_type == "Add":
        known["plus"] = number
    if c.node.op_type == "Equal" and (one := _number(c)) is not None and one.is_integer():
        known["equals"] = int(one)
    if c.node.op_type == "Pow" and number in _POWERS:
        return "pointwise", [c.input(0)], {"function": _POWERS[number], **({"zero": "first"} if number > 0 else {})}
    if c.node.op_type == "Where" and _zeros(c.node, 2):
        known["zero"] = "any"
    if c.node.op_type == "Cast":
        known |= _cast(c)
    return "pointwise", list(c.inputs), {**known, **({"zero": zero} if zero else {})}


def _cast(c: Call) -> dict[str, Any]:
    x, out = c.input(0), c.outputs[0]
    whole = x is not None and out is not None and x.dtype.startswith("int") and out.dtype in ("int32", "int64")
    return {"function": "cast"} if out is not None and ("float" in out.dtype or whole) else {}


def _zeros(node: ir.Node, k: int) -> bool:
    """Whether an input is a constant that is zero, or a tensor made of it."""
    value = node.inputs[k]
    tensor, maker = (constant_tensor(value), value.producer()) if value is not None else (None, None)
    if tensor is not None:
        return tensor.size == 1 and not tensor.numpy().any()
    if maker is not None and maker.op_type == "Expand":
        return _zeros(maker, 0)
    return maker is not None and maker.op_type == "ConstantOfShape" and bool(_value(maker))


def _number(c: Call) -> float | None:
    """The one number, a constant, that a node adds or raises to."""
    given = c.node.inputs[1:] if c.node.op_type == "Pow" else c.node.inputs
    held = [constant_tensor(value) for value in given if value is not None]
    found = [tensor for tensor in held if tensor is not None and tensor.size == 1]
    return float(found[0].numpy().ravel()[0]) if len(found) == 1 else None


_enter(
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil "
    "Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity "
    "IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu "
    "Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where "
    "Xor",
    _pointwise,
)
_enter("Dropout", lambda c: ("pointwise", [c.input(0)], {"zero": "first"}))
_enter("CastLike", lambda c: ("pointwise", [c.input(0)], {"zero": "first", **_cast(c)}))
MICROSOFT.update(dict.fromkeys(("Gelu", "QuickGelu", "FastGelu"), _pointwise))


# ---- with weights ----------------------------------------------------------------------------------


def _conv(c: Call) -> Reading:
    return "conv", [c.input(0), c.input(1), c.input(2)], {"groups": c.attr("group", 1), **_windows(c)}


def _deform_conv(c: Call) -> Reading:
    attrs = {"groups": c.attr("group", 1), "offset_groups": c.attr("offset_group", 1)}
    return "deform_conv", [c.input(k) for k in (0, 1, 3, 2, 4)], attrs


def _windows(c: Call) -> dict[str, Any]:
    """Where a convolution's windows lie: ``stride`` and ``dilation`` per spatial axis, ``pads`` before
    and after each (None: it depends on a size that is not known)."""
    kernel, sizes = c.shape(1)[2:], c.shape(0)[2:]
    stride, dilation = (list(c.attr(name, [1] * len(kernel))) for name in ("strides", "dilations"))
    given = list(c.attr("pads", [0] * 2 * len(kernel)))
    pads: list[int] | None = [n for k in range(len(kernel)) for n in (given[k], given[k + len(kernel)])]
    auto = c.attr("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = [] if all(isinstance(n, int) for n in (*sizes, *kernel)) else None
        for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True) if pads is not None else ():
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)  # type: ignore[operator]
            less, more = total // 2, total - total // 2
            pads += [less, more] if auto == "SAME_UPPER" else [more, less]  # type: ignore[operator]
    return {"stride": stride, "pads": pads, "dilation": dilation}


def _gemm(c: Call) -> Reading:
    attrs = {"transA": bool(c.attr("transA", 0)), "transB": bool(c.attr("transB", 0))}
    scales = {name: c.attr(name) for name in ("alpha", "beta") if c.attr(name, 1.0) != 1.0}
    return "gemm", [c.input(0), c.input(1), c.input(2)], {**attrs, **scales}


def _batch_norm(c: Call) -> Reading:
    if c.attr("training_mode", 0) or (c.version < 9 and not c.attr("spatial", 1)):
        raise Unreadable
    c.only_output()
    return "batch_norm", list(c.inputs[:5]), {"eps": c.attr("epsilon", 1e-5), "training": False}


def _layer_norm(kind: str) -> Reader:
    def read(c: Call) -> Reading:
        c.only_output()
        rank = len(c.shape(0))
        trailing = rank - c.attr("axis", -1) % rank
        weights = [c.input(k) for k in range(1, 3 if kind == "layer_norm" else 2)]
        if any(w is not None and shape_of(w) != c.shape(0)[rank - trailing :] for w in weights):
            raise Unreadable  # a weight that is broadcast
        return kind, [c.input(0), *weights], {"trailing": trailing, "eps": c.attr("epsilon", 1e-5)}

    return read


def _group_norm(c: Call) -> Reading:
    groups, channels, scales = c.attr("num_groups"), c.shape(0)[1], c.shape(1)
    if scales not in ((channels,), (groups,)):
        raise Unreadable("`GroupNormalization` has a scale neither for each channel nor for each group")
    attrs = {"groups": groups, "eps": c.attr("epsilon", 1e-5)}
    if scales != (channels,):  # before opset 21
        attrs["per_group"] = True
    return "group_norm", [c.input(0), c.input(1), c.input(2)], attrs


def _einsum(c: Call) -> Reading:
    equation = c.attr("equation").replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if "->" not in equation or any(len(set(t.replace("...", ""))) != len(t.replace("...", "")) for t in terms):
        raise Unreadable
    return "einsum", list(c.inputs), {"equation": equation}


_enter("Conv", _conv)
_enter("DeformConv", _deform_conv)
_enter(
    "ConvTranspose",
    lambda c: ("conv_transpose", [c.input(0), c.input(1), c.input(2)], {"groups": c.attr("group", 1)}),
)
_enter("Gemm", _gemm)
_enter("MatMul", lambda c: ("matmul", [c.input(0), c.input(1)], {}))
_enter("BatchNormalization", _batch_norm)
_enter("InstanceNormalization", lambda c: ("instance_norm", list(c.inputs[:3]), {"eps": c.attr("epsilon", 1e-5)}))
_enter("LayerNormalization", _layer_norm("layer_norm"))
_enter("RMSNormalization SimplifiedLayerNormalization", _layer_norm("rms_norm"))
_enter("GroupNormalization", _group_norm)
_enter("Einsum", _einsum)


# ---- moving things about ---------------------------------------------------------------------------


def _slice(c: Call) -> Reading:
    starts, ends = c.numbers(1, "starts"), c.numbers(2, "ends")
    axes = c.numbers(3, "axes", range(len(starts)))
    steps = c.numbers(4, "steps", [1] * len(starts))
    if None in axes or None in steps:
        raise Unreadable
    return "slice", [c.input(0)], {"axes": axes, "starts": starts, "ends": ends, "steps": steps}


def _gather(c: Call) -> Reading:
    x, number, axis = c.input(0), c.node.inputs[1], c.attr("axis", 0)
    tensor = constant_tensor(number) if number is not None else None
    if tensor is not None and not len(tensor.shape) and x is not None and not x.constant:
        return "select", [x], {"axis": axis, "index": int(tensor.numpy())}
    return "gather", [x, c.input(1)], {"axis": axis}


def _pad(c: Call) -> Reading:
    rank = len(c.shape(0))
    flat = c.numbers(1, "pads")
    axes = [axis % rank for axis in c.numbers(3, "axes", range(rank))]
    if None in flat:
        raise Unreadable
    pads = [0] * (2 * rank)
    for k, axis in enumerate(axes):
        pads[2 * axis], pads[2 * axis + 1] = flat[k], flat[k + len(axes)]
    mode = c.attr("mode", "constant")
    return "pad", [c.input(0)], {"pads": pads, "mode": mode}


def _reshape(c: Call) -> Reading:
    """Of the dynamic sizes, those written as -1 are worked out anew; the rest stay as computed."""
    shape = c.result()
    written = c.literals[1] or () if c.node.op_type == "Reshape" else (-1,) * len(shape)
    inferred = [k for k, (n, given) in enumerate(zip(shape, written, strict=False)) if given == -1 and "*" in str(n)]
    return "reshape", [c.input(0)], {"inferred": inferred} if inferred else {}


def _resize(c: Call) -> Reading:
    before, after = c.shape(0), c.result()
    if len(before) < 3 or before[:2] != after[:2]:
        raise Unreadable
    inside = c.attr("mode", "nearest") in ("nearest", "linear")
    inside &= c.attr("coordinate_transformation_mode") != "tf_crop_and_resize"
    return "resize", [c.input(0)], {"spatial": len(before) - 2, **({"function": "mean"} if inside else {})}


def _pool(c: Call) -> Reading:
    c.only_output()  # the indices of a max pool count channels, too
    function = {"MaxPool": "max", "AveragePool": "padded_mean"}.get(c.node.op_type)
    return "pool", [c.input(0)], {"spatial": len(c.shape(0)) - 2, **({"function": function} if function else {})}


def _tile(c: Call) -> Reading:
    repeats = c.numbers(1, "repeats")
    if None in repeats:
        raise Unreadable
    return "repeat", [c.input(0)], {"repeats": repeats}


def _gather_nd(c: Call) -> Reading:
    """As many of the first axes as the last axis of the numbers is long, behind those that numbers and tensor share."""
    deep, shared = c.shape(1)[-1], c.attr("batch_dims", 0)
    if not isinstance(deep, int):
        raise Unreadable
    attrs = {"shared": shared} if shared else {}
    return "index", [c.input(0), c.input(1)], {"axes": list(range(shared, shared + deep)), **attrs}


def _col2im(c: Call) -> Reading:
    block = c.numbers(2, "block_shape")
    if len(block) != 2 or None in block:
        raise Unreadable
    return "fold", [c.input(0)], {"taps": prod(block)}


def _value(node: ir.Node) -> dict[str, Any]:
    """What a tensor is filled with, where that is nothing."""
    given = node.attributes.get("value")
    return {} if given is not None and bool(given.value.numpy().any()) else {"value": 0}


_enter("Concat", lambda c: ("concat", list(c.inputs), {"axis": c.attr("axis", 1)}))
_enter("Split", lambda c: ("split", [c.input(0)], {"axis": c.attr("axis", 0)}))
_enter("Slice", _slice)
_enter("Pad", _pad)
_enter("Gather", _gather)
_enter("GatherElements", lambda c: ("take_along", [c.input(0), c.input(1)], {"axis": c.attr("axis", 0)}))
_enter("GatherND", _gather_nd)
_enter("GridSample", lambda c: ("grid_sample", [c.input(0), c.input(1)], {}))
_enter("Col2Im", _col2im)
_enter("Reshape Flatten Squeeze Unsqueeze", _reshape)
_enter("Transpose", lambda c: ("transpose", [c.input(0)], {"perm": list(c.attr("perm", range(len(c.shape(0)))[::-1]))}))
_enter("Expand", lambda c: ("expand", [c.input(0)], {"value": 0} if _zeros(c.node, 0) else {}))
_enter("Tile", _tile)
_enter("Resize Upsample", _resize)
_enter("Range", lambda c: ("create", [], {}))
_enter("ConstantOfShape", lambda c: ("fill", [], _value(c.node)))
_enter("Shape Size", lambda c: ("size", [c.input(0)], {}))
_enter("AveragePool LpPool MaxPool", _pool)


def _to_depth(kind: str, depth_first: Callable[[Call], bool]) -> Reader:
    return lambda c: (kind, [c.input(0)], {"factor": c.attr("blocksize"), "depth_first": depth_first(c)})


_enter("DepthToSpace", _to_depth("pixel_shuffle", lambda c: c.attr("mode", "DCR") == "DCR"))
_enter("SpaceToDepth", _to_depth("pixel_unshuffle", lambda c: True))


# ---- along axes --------------------------------------------------------------------------------------


def _reduce(c: Call) -> Reading:
    axes = c.numbers(1, "axes", ())
    if None in axes:
        raise Unreadable
    if not axes and c.attr("noop_with_empty_axes", 0):
        return "pointwise", [c.input(0)], {}
    functions = {f"Reduce{name}": name.lower() for name in ("Max", "Mean", "Min", "Sum")}
    function = {**functions, "ReduceL2": "norm"}.get(c.node.op_type)
    known = {"function": function} if function else {}
    known |= {"zero": "first"} if function in ("mean", "sum", "norm", "max", "min") else {}
    return "reduce", [c.input(0)], {"axes": axes, "keepdim": bool(c.attr("keepdims", 1)), **known}


def _global(c: Call) -> Reading:
    function = {"GlobalAveragePool": "mean", "GlobalMaxPool": "max"}.get(c.node.op_type)
    known = {"function": function} if function else {}
    return "reduce", [c.input(0)], {"axes": list(range(2, len(c.shape(0)))), "keepdim": True, **known}


def _softmax(c: Call) -> Reading:
    rank = len(c.shape(0))
    known = {"function": "softmax"} if c.node.op_type == "Softmax" else {}
    if c.version >= 13:
        return "along", [c.input(0)], {"axes": [c.attr("axis", -1) % rank], **known}
    return "along", [c.input(0)], {"axes": list(range(c.attr("axis", 1) % rank, rank)), **known}  # as a matrix


def _cumsum(c: Call) -> Reading:
    axis = c.numbers(1, "axis")
    if None in axis:
        raise Unreadable
    return "along", [c.input(0)], {"axes": axis}


def _topk(c: Call) -> Reading:
    best = c.numbers(1, "k")
    axis = c.attr("axis", -1)
    if not c.attr("largest", 1) or None in best:
        return "along", [c.input(0)], {"axes": [axis]}
    return "topk", [c.input(0)], {"axis": axis, "best": best[0], "values": c.outputs[0] is not None}


def _argmax(c: Call) -> Reading:
    return "topk", [c.input(0)], {"axis": c.attr("axis", 0), "best": 1, "keepdim": bool(c.attr("keepdims", 1))}


def _one_hot(c: Call) -> Reading:
    """Ones among zeros, no others."""
    if c.numbers(2, "values") != [0, 1]:
        raise Unreadable("makes an axis of places")
    return "one_hot", [c.input(0)], {"axis": c.attr("axis", -1)}


def _along(default: int) -> Reader:
    return lambda c: ("along", [c.input(0)], {"axes": [c.attr("axis", default)]})


_enter(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare",
    _reduce,
)
_enter(
    "ArgMin",
    lambda c: ("reduce", [c.input(0)], {"axes": [c.attr("axis", 0)], "keepdim": bool(c.attr("keepdims", 1))}),
)
_enter("GlobalAveragePool GlobalMaxPool GlobalLpPool", _global)
_enter("Softmax LogSoftmax Hardmax", _softmax)
_enter("CumSum", _cumsum)
_enter("LpNormalization", _along(-1))
_enter("TopK", _topk)
_enter("ArgMax", _argmax)
_enter("OneHot", _one_hot)
_enter("ScatterElements", lambda c: ("scatter", [c.input(0), c.input(1), c.input(2)], {"axis": c.attr("axis", 0)}))
_enter("LRN", lambda c: ("along", [c.input(0)], {"axes": [1]}))
_enter("MeanVarianceNormalization", lambda c: ("along", [c.input(0)], {"axes": list(c.attr("axes", (0, 2, 3)))}))
_enter("Trilu", lambda c: ("along", [c.input(0)], {"axes": [-2, -1]}))
