"""Convolutions of images as they come, channels first: the stem of a network.

With three channels last nothing is left to copy in vectors: changing the layout and adding the padding took two thirds
of such a layer's time. Its weights and its result are channels last as everywhere, and what it reads is one number
for a whole vector of output channels, wherever that lies.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from typing import Any

from .rewrites import FUSES_WHAT_FOLLOWS, kernel, rewritten

MOST = 4  # channels: with more, reading neighbours along them pays


def planes_read(module: Any) -> Any:
    """A module, its convolutions channels last, with those of few channels reading what was channels first."""
    from tvm import ir, relax

    @relax.expr_functor.mutator
    class Reader(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", "") != "relax.nn.conv2d" or not isinstance(call.args[0], ir.Var):
                return call
            attrs, moved = call.attrs, self.lookup_binding(call.args[0])
            layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout or "NHWC")
            if layouts != ("NHWC", "HWIO", "NHWC") or int(attrs.groups) != 1 or str(call.ty.dtype) != "float32":
                return call
            if int(call.args[0].ty.shape.values[3]) > MOST or not _channels_last(moved):
                return call

            def compute(x: Any, weight: Any) -> Any:
                return _convolution(x, weight, [int(n) for n in call.ty.shape.values], attrs)

            return kernel(self.builder_, compute, [moved.args[0], call.args[1]], "conv2d_planes", FUSES_WHAT_FOLLOWS)

    return rewritten(module, Reader)


def _channels_last(call: Any) -> bool:
    """Whether this moves channels from the front to the end."""
    if getattr(getattr(call, "op", None), "name", "") != "relax.permute_dims" or call.attrs.axes is None:
        return False
    return [int(axis) for axis in call.attrs.axes] == [0, 2, 3, 1]


def _convolution(x: Any, weight: Any, sizes: list[int], attrs: Any) -> Any:
    """Of ``x`` (batch, channels, height, width) and a weight (height, width, channels, outputs) the result, channels
    last, ``sizes`` its shape."""
    from tvm import te, tirx

    (batch, channels, height, width), (high, wide, *_) = ([int(n) for n in each.shape] for each in (x, weight))
    top, left, bottom, right = (int(n) for n in attrs.padding)
    (down, across), (tall, broad) = ([int(n) for n in each] for each in (attrs.strides, attrs.dilation))

    def pad(n: Any, c: Any, h: Any, w: Any) -> Any:
        inside = tirx.all(h >= top, h < height + top, w >= left, w < width + left)
        return tirx.if_then_else(inside, x[n, c, h - top, w - left], tirx.const(0, "float32"))

    padded = te.compute((batch, channels, height + top + bottom, width + left + right), pad, name="pad_temp")
    ry, rx, rc = (te.reduce_axis((0, size), name=name) for size, name in ((high, "ry"), (wide, "rx"), (channels, "rc")))
    return te.compute(
        sizes,
        lambda n, y, x, f: te.sum(
            padded[n, rc, y * down + ry * tall, x * across + rx * broad] * weight[ry, rx, rc, f], axis=[ry, rx, rc]
        ),
        name="conv2d_planes",
    )
