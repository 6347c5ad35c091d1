"""What is said more simply before TVM's passes see it, op by op.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

OPAQUE, FUSES_WHAT_FOLLOWS = 8, 4
"""TVM's kOpaque and kOutEWiseFusable: nothing becomes part of a kernel; bias, sum and activation behind it do. Left
to itself it takes a load by index for opaque."""


def rewritten(module: Any, mutator: Any) -> Any:
    """Every Relax function of a module as ``mutator`` (a class of PyExprMutator) makes it, without what is then
    unused."""
    from tvm import relax

    made = mutator(module)
    for name, function in module.functions_items():
        if isinstance(function, relax.Function):
            made.builder_.update_func(name, made.visit_expr(function))
    return relax.transform.DeadCodeElimination()(made.builder_.get())


def kernel(builder: Any, compute: Callable[..., Any], operands: Sequence[Any], name: str, kind: int) -> Any:
    """The call of a kernel that ``compute`` gives as a tensor expression."""
    made = builder.call_te(compute, *operands, primfunc_name_hint=name)
    builder.update_func(made.args[0], builder.get()[made.args[0]].with_attr("op_pattern", kind))
    return made


def norms(module: Any) -> Any:
    """BatchNorm with constant statistics as one scale and one shift: TVM would subtract, divide, multiply and
    add, with four vectors to read."""
    from tvm import ir, relax

    @relax.expr_functor.mutator
    class Scaler(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", "") != "relax.nn.batch_norm" or call.attrs.training:
                return call
            if not all(isinstance(value, ir.GenericConst) for value in call.args[1:]):
                return call
            gamma, beta, mean, variance = (value.value.numpy().astype(np.float64) for value in call.args[1:])
            scale = (gamma if call.attrs.scale else 1.0) / np.sqrt(variance + call.attrs.epsilon)
            shift = (beta if call.attrs.center else 0.0) - mean * scale
            x, shape = call.args[0], [1] * len(call.args[0].ty.shape.values)
            shape[int(call.attrs.axis)] = len(mean)
            y = self.builder_.emit(relax.op.multiply(x, relax.const(scale.reshape(shape), x.ty.dtype)))
            y = self.builder_.emit(relax.op.add(y, relax.const(shift.reshape(shape), x.ty.dtype)))
            return relax.Tuple([y, *call.args[3:]])

    return rewritten(module, Scaler)


def clips(module: Any) -> Any:
    """Clips to constant bounds as a maximum and a minimum, which ConvertLayout knows: around a clip, and
    around the loops that the ONNX frontend writes for one, it would transpose."""
    from tvm import ir, relax

    @relax.expr_functor.mutator
    class Clipper(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", "") == "relax.clip":
                value, low, high = (
                    call.args[0],
                    *(float(getattr(end.value, "value", end.value)) for end in call.args[1:]),
                )
            elif (upper := self.bound(call, "minimum")) and (lower := self.bound(self.bound_to(upper[0]), "maximum")):
                (value, low), high = lower, upper[1]
            else:
                return call
            above = self.builder_.emit(relax.op.maximum(value, relax.const(low, value.ty.dtype)))
            return relax.op.minimum(above, relax.const(high, value.ty.dtype))

        def bound(self, call: Any, of: str) -> tuple[Any, float] | None:
            """The first argument of the frontend's ``of``, and the number that is the second."""
            if getattr(getattr(call, "op", None), "name", "") != "relax.call_tir":
                return None
            if call.args[0].name_hint.rstrip("0123456789") != of or len(call.args[1].fields) != 2:
                return None
            number = self.number(call.args[1].fields[1])
            return None if number is None else (call.args[1].fields[0], number)

        def number(self, value: Any) -> float | None:
            value = self.bound_to(value)
            if getattr(getattr(value, "op", None), "name", "") == "relax.where":  # the bound, were it not NaN
                value = self.bound_to(value.args[2])
            if not isinstance(value, ir.GenericConst) or value.value.shape:
                return None
            number = float(value.value.numpy())
            return None if np.isnan(number) else number

        def bound_to(self, value: Any) -> Any:
            found = self.lookup_binding(value) if isinstance(value, ir.Var) else None
            return value if found is None else found

    return rewritten(module, Clipper)


def squeezes(module: Any) -> Any:
    """Axes that are left out, counted from the first: ConvertLayout runs out of memory over one counted from the
    last."""
    from tvm import relax

    @relax.expr_functor.mutator
    class Counter(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", "") != "relax.squeeze" or call.attrs.axis is None:
                return call
            count = len(call.args[0].ty.shape.values)
            return relax.op.squeeze(call.args[0], [int(axis) % count for axis in call.attrs.axis])

    return rewritten(module, Counter)


def pads(module: Any) -> Any:
    """Zeros that are put around an image, done by the convolution that reads it: alone, and between two changes of
    layout, they go through memory three times. Channels first."""
    from tvm import ir, relax

    @relax.expr_functor.mutator
    class Padder(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", "") != "relax.nn.conv2d" or call.attrs.data_layout != "NCHW":
                return call
            made = self.lookup_binding(call.args[0]) if isinstance(call.args[0], ir.Var) else None
            more = _zeros(made)
            if made is None or more is None:
                return call
            return relax.op.nn.conv2d(
                made.args[0],
                call.args[1],
                strides=[int(n) for n in call.attrs.strides],
                padding=[int(own) + n for own, n in zip(call.attrs.padding, more, strict=True)],
                dilation=[int(n) for n in call.attrs.dilation],
                groups=int(call.attrs.groups),
                data_layout="NCHW",
                kernel_layout=call.attrs.kernel_layout,
                out_layout=call.attrs.out_layout,
                out_dtype=call.attrs.out_dtype or None,
            )

    return rewritten(module, Padder)


def _zeros(call: Any) -> list[int] | None:
    """Top, left, bottom and right of the zeros that a call puts around images, if that is what it does."""
    if getattr(getattr(call, "op", None), "name", "") != "relax.nn.pad" or call.attrs.pad_mode != "constant":
        return None
    value = call.attrs.pad_value
    width = [int(n) for n in call.attrs.pad_width]
    if float(getattr(value, "value", value)) or len(width) != 8 or any(width[:4]) or min(width) < 0:
        return None
    top, bottom, left, right = width[4:]
    return [top, left, bottom, right]


def whole_pools(module: Any) -> Any:
    """Averages over a window that holds the whole image as what they are: TVM would add up the zeros around it, of
    which a window as large as there are channels has millions."""
    from tvm import relax

    @relax.expr_functor.mutator
    class Pooler(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", "") != "relax.nn.avg_pool2d" or call.attrs.layout != "NCHW":
                return call
            sizes, made = ([int(n) for n in value.ty.shape.values[2:]] for value in (call.args[0], call))
            holds = all(int(n) >= size for n, size in zip(call.attrs.pool_size, sizes, strict=True))
            if not holds or made != [1, 1] or any(int(n) for n in call.attrs.padding):
                return call
            return relax.op.mean(call.args[0], [2, 3], keepdims=True)

    return rewritten(module, Pooler)


def moved_weights(module: Any) -> Any:
    """Changes of layout and shape applied to constants. FoldConstant would compile a kernel for each, which
    took nine tenths of a compilation."""
    from tvm import ir, relax

    moves = {
        "relax.permute_dims": lambda array, call: array.transpose([int(axis) for axis in call.attrs.axes]),
        "relax.expand_dims": lambda array, call: array.reshape([int(size) for size in call.ty.shape.values]),
        "relax.reshape": lambda array, call: array.reshape([int(size) for size in call.ty.shape.values]),
    }

    @relax.expr_functor.mutator
    class Mover(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            move = moves.get(getattr(call.op, "name", ""))
            if move is None:
                return call
            value = call.args[0]
            bound = self.lookup_binding(value) if isinstance(value, ir.Var) else None
            value = value if bound is None else bound
            if not isinstance(value, ir.GenericConst):
                return call
            moved = np.ascontiguousarray(move(value.value.numpy(), call))
            return relax.const(moved, str(moved.dtype))  # else of int64 it makes int32

    return rewritten(module, Mover)
