"""Transposed convolutions said as plain ones: for each phase of the stride a convolution of its own.

Output position f reads input position q - m through weight m * stride + f % stride, where q = f // stride: the
positions of one phase are a convolution with every stride-th weight, so that all phases together are one
convolution with stride times stride as many outputs, whose results take turns (sub-pixel convolution: Shi et al.,
2016, section 3.2). TVM would multiply the zeros between the inputs, stride times stride as much; layout conversion
and schedules know plain convolutions only.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ...ir.host import Array
from .rewrites import rewritten

_LAYOUTS = {"relax.nn.conv1d_transpose": ("NCW", "IOW"), "relax.nn.conv2d_transpose": ("NCHW", "IOHW"),
            "relax.nn.conv3d_transpose": ("NCDHW", "IODHW")}  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """One spatial axis: sizes of input, kernel and output, and how they meet. ``before``: what is cut off the
    front of the full result."""

    size: int
    kernel: int
    out: int
    stride: int
    dilation: int
    before: int

    @property
    def taps(self) -> int:
        """Of the plain convolution's kernel. A dilation stays one where there are no phases, and else becomes zeros."""
        return self.kernel if self.stride == 1 else -(-(self.dilation * (self.kernel - 1) + 1) // self.stride)

    @property
    def spread(self) -> int:
        return self.dilation if self.stride == 1 else 1

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros in front of the input and behind it: the results that are wanted, or a few more."""
        reach = self.spread * (self.taps - 1)
        front = max(0, reach - self.before // self.stride)
        wanted = (self.before + self.out - 1) // self.stride - (reach - front) + 1
        return front, max(0, wanted - self.size - front + reach)

    @property
    def results(self) -> int:
        """How many the plain convolution gives, per phase."""
        return self.size + sum(self.padding) - self.spread * (self.taps - 1)

    @property
    def start(self) -> int:
        """Where the output begins among them, once they have taken turns."""
        return self.before - (self.spread * (self.taps - 1) - self.padding[0]) * self.stride

    def read(self) -> Array:
        """The weight that each tap of each phase is, [phase, tap]; the kernel's size where it is a zero."""
        if self.stride == 1:
            return np.arange(self.kernel)[None, ::-1]
        taps = np.arange(self.taps)[::-1] * self.stride + np.arange(self.stride)[:, None]
        real = (taps % self.dilation == 0) & (taps // self.dilation < self.kernel)
        return np.where(real, taps // self.dilation, self.kernel)


def plain(module: Any) -> Any:
    """A Relax module with its transposed convolutions (channels first, static shapes) as plain ones."""
    from tvm import ir, relax

    @relax.expr_functor.mutator
    class Plain(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            layouts = _LAYOUTS.get(getattr(call.op, "name", ""))
            if layouts is None or (call.attrs.data_layout, call.attrs.kernel_layout) != layouts:
                return call
            weight = call.args[1]
            bound = self.lookup_binding(weight) if isinstance(weight, ir.Var) else None
            axes, groups = list(_axes(call)), int(call.attrs.groups)
            if isinstance(weight if bound is None else bound, ir.GenericConst):
                value = (weight if bound is None else bound).value.numpy()
                kernel = relax.const(np.ascontiguousarray(_arranged(value, value.shape, axes, groups, _NUMPY)))
            else:
                shape = [int(n) for n in weight.ty.shape.values]
                kernel = _arranged(weight, shape, axes, groups, _relax(self.builder_.emit))
            return _interleaved(_convolution(call, kernel, axes, self.builder_.emit), axes, self.builder_.emit)

    return rewritten(module, Plain)


def _axes(call: Any) -> Iterator[Axis]:
    """The spatial axes of a call."""
    data, weight, out = ([int(n) for n in value.ty.shape.values[2:]] for value in (*call.args[:2], call))
    attrs = call.attrs
    for each in zip(data, weight, out, attrs.strides, attrs.dilation, attrs.padding[: len(data)], strict=True):
        yield Axis(*map(int, each))


def _convolution(call: Any, kernel: Any, axes: Sequence[Axis], emit: Callable[..., Any]) -> Any:
    from tvm import relax

    convolve = (relax.op.nn.conv1d, relax.op.nn.conv2d, relax.op.nn.conv3d)[len(axes) - 1]
    layout, spatial = call.attrs.data_layout, call.attrs.data_layout[2:]
    made = convolve(
        call.args[0],
        kernel,
        strides=[1] * len(axes),
        padding=[axis.padding[0] for axis in axes] + [axis.padding[1] for axis in axes],
        dilation=[axis.spread for axis in axes],
        groups=int(call.attrs.groups),
        data_layout=layout,
        kernel_layout=f"OI{spatial}",
        out_dtype=call.attrs.out_dtype or None,
    )
    return emit(made)


def _interleaved(y: Any, axes: Sequence[Axis], emit: Callable[..., Any]) -> Any:
    """The phases in turns, and of them the output."""
    from tvm import relax

    count, strides, results = len(axes), [axis.stride for axis in axes], [axis.results for axis in axes]
    batch, channels = (int(n) for n in y.ty.shape.values[:2])
    channels //= prod(strides)
    if prod(strides) > 1:
        y = emit(relax.op.reshape(y, [batch, channels, *strides, *results]))
        turns = chain.from_iterable((2 + count + k, 2 + k) for k in range(count))
        y = emit(relax.op.permute_dims(y, [0, 1, *turns]))
        y = emit(relax.op.reshape(y, [batch, channels, *(a.results * a.stride for a in axes)]))
    ends = [axis.start + axis.out for axis in axes]
    return relax.op.strided_slice(y, list(range(2, 2 + count)), [axis.start for axis in axes], ends)


class _Ops(NamedTuple):
    """What rearranges weights, of arrays at once or of expressions when they run."""

    padded: Callable[[Any, Sequence[int]], Any]  # by so many zeros behind every axis
    take: Callable[[Any, Array, int], Any]
    reshape: Callable[[Any, Sequence[int]], Any]
    permute: Callable[[Any, Sequence[int]], Any]


_NUMPY = _Ops(lambda x, more: np.pad(x, [(0, n) for n in more]), np.take, np.reshape, np.transpose)


def _relax(emit: Callable[..., Any]) -> _Ops:
    from tvm.relax import const, op

    return _Ops(
        lambda x, more: emit(op.nn.pad(x, list(chain.from_iterable((0, n) for n in more)))),
        lambda x, at, axis: emit(op.take(x, const(at.astype("int64")), axis)),
        lambda x, shape: emit(op.reshape(x, list(shape))),
        lambda x, order: emit(op.permute_dims(x, list(order))),
    )


def _arranged(weight: Any, shape: Sequence[int], axes: Sequence[Axis], groups: int, ops: _Ops) -> Any:
    """From ``inputs, outputs / groups, kernel`` to ``outputs * phases, inputs / groups, taps``, phases innermost."""
    inputs, outputs = shape[:2]
    weight = ops.padded(weight, [0, 0] + [1] * len(axes))
    for k, axis in enumerate(axes):
        weight = ops.take(weight, axis.read().reshape(-1), 2 + k)
    parts = chain.from_iterable((axis.stride, axis.taps) for axis in axes)
    weight = ops.reshape(weight, [groups, inputs // groups, outputs, *parts])
    phases, taps = range(3, 3 + 2 * len(axes), 2), range(4, 4 + 2 * len(axes), 2)
    weight = ops.permute(weight, [0, 2, *phases, 1, *taps])
    made = [groups * outputs * prod(axis.stride for axis in axes), inputs // groups, *(axis.taps for axis in axes)]
    return ops.reshape(weight, made)


# ---- what TVM's frontends leave out ------------------------------------------------------------------


def torch_converters() -> dict[str, Callable[[Any, Any], Any]]:
    """For ``from_exported_program``, which knows transposed convolutions of one and two axes, and no output
    padding as wide as the stride."""
    return {"convolution.default": _from_torch}


def _from_torch(node: Any, importer: Any) -> Any:
    from tvm import relax

    x, weight, bias, stride, padding, dilation, transposed, more, groups = importer.retrieve_args(node)
    if not transposed:
        return importer._convolution(node)
    count, emit = len(x.ty.shape.values) - 2, importer.block_builder.emit
    stride, padding, dilation, more = (list(each) * (count // len(each)) for each in (stride, padding, dilation, more))
    after = [cut - add for cut, add in zip(padding, more, strict=True)]  # less is cut off where more is wanted
    convolve = (relax.op.nn.conv1d_transpose, relax.op.nn.conv2d_transpose, relax.op.nn.conv3d_transpose)[count - 1]
    options = {"strides": stride, "padding": [*padding, *after], "dilation": dilation, "groups": groups}
    data, kernel = _LAYOUTS[f"relax.nn.conv{count}d_transpose"]
    y = emit(convolve(x, weight, data_layout=data, kernel_layout=kernel, **options))
    return y if bias is None else emit(relax.op.add(y, emit(relax.op.reshape(bias, [1, -1, *[1] * count]))))


def explicit_pads(model: Any) -> None:
    """Pads of ONNX's transposed convolutions for whatever says them: ``output_shape`` and wide output paddings TVM's
    frontend ignores or refuses. ``model``: with static shapes inferred; changed in place."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "ConvTranspose" and all(name in shapes for name in (*node.input[:2], node.output[0])):
            _pad(node, *(shapes[name][2:] for name in (*node.input[:2], node.output[0])))


def _pad(node: Any, sizes: Sequence[int], kernel: Sequence[int], out: Sequence[int]) -> None:
    import onnx

    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    way, ones = given.get("auto_pad", b"NOTSET").decode(), [1] * len(sizes)
    stride, dilation = given.get("strides", ones), given.get("dilations", ones)
    more = given.get("output_padding", [0] * len(sizes))
    full = [s * (n - 1) + d * (k - 1) + 1 for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)]
    before = given.get("pads", [0] * len(sizes))[: len(sizes)]
    if "output_shape" in given or way.startswith("SAME"):
        total = [max(0, a + p - y) for a, p, y in zip(full, more, out, strict=True)]
        before = [n // 2 if way == "SAME_UPPER" else n - n // 2 for n in total]
    after = [a - cut - y for a, cut, y in zip(full, before, out, strict=True)]
    kept = [a for a in node.attribute if a.name not in ("auto_pad", "output_shape", "output_padding", "pads")]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("pads", [*before, *after])])
