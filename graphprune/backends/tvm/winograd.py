"""Convolutions of 3 x 3 by minimal filtering: a quarter of the multiplications.

A tile of 4 x 4 outputs is computed from 6 x 6 inputs. Both are transformed into a space in which the convolution is
36 matrix products, one for each position, and their result is transformed back (Lavin and Gray, Fast Algorithms for
Convolutional Neural Networks, 2016, section 4: F(4x4, 3x3)). Weights are transformed at compile time and are four
times as many then: it is done where pixels are many and channels few.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from .channel_selection import Selection, selected
from .rewrites import FUSES_WHAT_FOLLOWS, OPAQUE, kernel, rewritten
from .stack import SCOPE

MADE, READ = 4, 6  # positions of a tile along an axis
P, Q = sqrt(1 / 2), sqrt(2)
"""Polynomials are sampled at 0, p, -p, q, -q and infinity, with q = 1 / p (Alam et al., Winograd Convolution for Deep
Neural Networks: Efficient Point Selection, 2022): rounding errors are twice a plain convolution's; at the common 1
and 2 they are four times as large."""
FILTER = np.array([[6, 0, 0], [-4, -4 * P, -2], [-4, 4 * P, -2], [1, Q, 2], [1, -Q, 2], [0, 0, 6]]) / 6

FEWEST = 16  # channels read and made: with fewer the transforms take what the products save
WEIGHTS = 24  # transformed weights for every number that the convolution reads or makes: with more, loading them does
GROWTH, FREE = 0.1, 1 << 17  # by how much a model's constants may grow: a tenth unless said, and half a megabyte


def filtered(module: Any, growth: float = GROWTH) -> Any:
    """A module, its convolutions channels last, with those for which it pays done so; where constants would grow
    by more than ``growth`` of them and half a megabyte, those with the most pixels; with 0 none."""
    if not growth:
        return module
    from tvm import ir, relax

    constants: list[Any] = []
    found: list[_Conv] = []

    def visit(node: Any) -> None:
        if isinstance(node, ir.GenericConst):
            constants.append(node)
        elif isinstance(node, ir.Call) and (conv := _Conv.of(node)) is not None:
            found.append(conv)

    for function in dict(module.functions_items()).values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    room = FREE + growth * sum(np.prod([int(n) for n in node.ty.shape.values]) for node in constants)
    chosen: list[_Conv] = []
    for conv in sorted(found, key=lambda conv: -conv.pixels):
        if conv.growth <= room:
            room -= conv.growth
            chosen.append(conv)

    @relax.expr_functor.mutator
    class Filter(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            conv = next((conv for conv in chosen if conv.call.same_as(call)), None)
            call = self.visit_expr_post_order(call)
            if conv is None:
                return call
            return conv.emit(
                self.builder_, selected(call.args[0], self.lookup_binding) or Selection.whole(call.args[0])
            )

    return rewritten(module, Filter) if chosen else module


@dataclass(frozen=True)
class _Conv:
    """A convolution that may be done so."""

    call: Any
    reads: tuple[int, ...]  # NHWC
    makes: tuple[int, ...]

    @classmethod
    def of(cls, call: Any) -> _Conv | None:
        from tvm import ir

        if getattr(call.op, "name", "") != "relax.nn.conv2d" or not isinstance(call.args[1], ir.GenericConst):
            return None
        attrs, (x, weight) = call.attrs, call.args
        plain = [int(n) for n in (*attrs.strides, *attrs.dilation, attrs.groups)] == [1] * 5
        layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout or "NHWC")
        if not plain or layouts != ("NHWC", "HWIO", "NHWC") or str(call.ty.dtype) != "float32":
            return None
        if list(weight.ty.shape.values[:2]) != [3, 3]:
            return None
        conv = cls(call, *(tuple(int(n) for n in value.ty.shape.values) for value in (x, call)))
        return conv if conv.pays() else None

    @property
    def pixels(self) -> int:
        return self.makes[0] * self.makes[1] * self.makes[2]

    @property
    def growth(self) -> int:
        """By how many numbers its weights grow."""
        return (READ * READ - 9) * self.reads[3] * self.makes[3]

    def pays(self) -> bool:
        cin, cout = self.reads[3], self.makes[3]
        return min(cin, cout) >= FEWEST and READ * READ * cin * cout <= WEIGHTS * self.pixels * (cin + cout)

    def emit(self, builder: Any, selection: Selection) -> Any:
        from tvm import relax

        weight = self.call.args[1].value.numpy().astype(np.float64)
        weight = np.einsum("er,rsck,fs->efck", FILTER, weight, FILTER).astype(np.float32)
        top, left, *_ = (int(n) for n in self.call.attrs.padding)

        def read(x: Any, at: Any = None) -> Any:
            return _read(x, at, selection, self.makes, top, left)

        def back(product: Any) -> Any:
            return _back(product, self.makes)

        data = builder.emit(kernel(builder, read, selection.operands(), "winograd_read", OPAQUE))
        operands = [data, relax.const(weight)]
        product = builder.emit(kernel(builder, _multiply, operands, "winograd_multiply", OPAQUE))
        return kernel(builder, back, [product], "winograd_back", FUSES_WHAT_FOLLOWS)


# ---- what the three kernels compute -----------------------------------------------------------------


def _tiles(sizes: tuple[int, ...]) -> tuple[int, int, int]:
    """How many tiles there are along height and width, and how many are computed: as many as register tiles of
    four to six fill."""
    high, wide = -(-sizes[1] // MADE), -(-sizes[2] // MADE)
    count = sizes[0] * high * wide
    return high, wide, min(-(-count // rows) * rows for rows in (6, 5, 4))


def _read(x: Any, at: Any, selection: Selection, sizes: tuple[int, ...], top: int, left: int) -> Any:
    """Tiles of the input, transformed: position in the tile (two axes), tile, channel. The copy that padding makes
    selects as well."""
    from tvm import te, tirx

    batch, height, width, _ = (int(n) for n in x.shape)
    channels = selection.count
    high, wide, count = _tiles(sizes)

    def pad(n: Any, h: Any, w: Any, c: Any) -> Any:
        inside = tirx.all(h >= top, h < height + top, w >= left, w < width + left)
        return tirx.if_then_else(inside, x[n, h - top, w - left, selection.source(c, at)], tirx.const(0, "float32"))

    padded = te.compute((batch, high * MADE + 2, wide * MADE + 2, channels), pad, name="winograd_pad")

    def along(e: Any, j: Any, p: Any, c: Any) -> Any:
        p = tirx.min(p, batch * high * wide - 1)
        n, h, w = p // (high * wide), p // wide % high * MADE, p % wide * MADE
        return _chosen(e, sampled([padded[n, h + r, w + j, c] for r in range(READ)]))

    half = te.compute((READ, READ, count, channels), along, name="winograd_half")
    return te.compute(
        half.shape,
        lambda e, f, p, c: _chosen(f, sampled([half[e, s, p, c] for s in range(READ)])),
        name="winograd_whole",
    )


def _multiply(data: Any, weight: Any) -> Any:
    from tvm import te

    deep = te.reduce_axis((0, weight.shape[2]), name="deep")
    return te.compute(
        (*data.shape[:3], weight.shape[3]),
        lambda e, f, p, k: te.sum(data[e, f, p, deep] * weight[e, f, deep, k], axis=deep),
        name="winograd_product",
    )


def _back(product: Any, sizes: tuple[int, ...]) -> Any:
    """Every pixel of the output from the tile that it lies in."""
    from tvm import te

    high, wide, count = _tiles(sizes)

    def along(i: Any, f: Any, p: Any, k: Any) -> Any:
        return _chosen(i, interpolated([product[e, f, p, k] for e in range(READ)]))

    half = te.compute((MADE, READ, count, sizes[3]), along, name="winograd_half")

    def pixel(n: Any, h: Any, w: Any, k: Any) -> Any:
        p = (n * high + h // MADE) * wide + w // MADE
        return _chosen(w % MADE, interpolated([half[h % MADE, f, p, k] for f in range(READ)]))

    return te.compute(sizes, pixel, name="winograd_pixel")


def sampled(x: Sequence[Any]) -> list[Any]:
    """Six inputs, transformed. What is even and what is odd in them is the same for a point and its negative, up to
    the sign: it is computed once."""
    even_p, odd_p = x[4] - 2 * x[2], P * x[3] - Q * x[1]
    even_q, odd_q = x[4] - 0.5 * x[2], Q * x[3] - P * x[1]
    ends = (x[0] + x[4] - 2.5 * x[2], x[1] + x[5] - 2.5 * x[3])
    return [ends[0], even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, ends[1]]


def interpolated(y: Sequence[Any]) -> list[Any]:
    """The four results of six products."""
    even_p, odd_p, even_q, odd_q = y[1] + y[2], P * (y[1] - y[2]), y[3] + y[4], Q * (y[3] - y[4])
    return [y[0] + even_p + even_q, odd_p + odd_q, 0.5 * even_p + 2 * even_q, 0.5 * odd_p + 2 * odd_q + y[5]]


def _chosen(row: Any, values: Sequence[Any]) -> Any:
    """The value of a row. Loops over rows are unrolled, so that each has one of them left."""
    from tvm import tirx

    value = values[-1]
    for k in range(len(values) - 2, -1, -1):
        value = tirx.Select(row == k, values[k], value)
    return value


# ---- the schedules of both transforms -----------------------------------------------------------------


def transform(func: Any, lanes: int) -> Any:
    """One tile and one vector of channels at a time, in registers. None where the function is no transform.
    ``lanes``: floats in a vector."""
    from tvm import s_tir

    sch: Any = s_tir.Schedule(func)
    blocks = list(sch.get_child_blocks(sch.get_sblock("root")))
    names = [sch.get(block).name_hint for block in blocks]
    if "winograd_half" not in names:
        return None
    half, last = blocks[names.index("winograd_half")], blocks[-1]
    if names[-1] == "winograd_whole":
        *rows, vector = sch.get_loops(blocks[0])
        sch.parallel(sch.fuse(*rows))
        sch.vectorize(sch.split(vector, [None, lanes])[1])
        *inner, tiles, channels = sch.get_loops(last)
        outer = [tiles]
    else:
        for block in blocks[:-1]:
            if not sch.get(block).same_as(sch.get(half)):
                sch.compute_inline(block)
        batch, *axes, channels = sch.get_loops(last)
        pairs = [sch.split(axis, [None, MADE]) for axis in axes]
        outer, inner = [batch, *(pair[0] for pair in pairs)], [pair[1] for pair in pairs]
    far, vector = sch.split(channels, [None, lanes])
    sch.reorder(*outer, far, *inner, vector)
    tile = sch.fuse(*outer, far)
    sch.parallel(tile)
    sch.compute_at(half, tile, preserve_unit_loops=True)
    sch.set_scope(half, 0, SCOPE)
    for *unrolled, across in (sch.get_loops(half)[1:], [*inner, vector]):
        for loop in unrolled:
            sch.unroll(loop)
        sch.vectorize(across)
    return sch
