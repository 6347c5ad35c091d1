"""Depthwise convolutions and the pointwise ones that read them, as one kernel.

Between the two lies the largest tensor but one of a mobile network, written by little arithmetic and read by more. Here
it is made a band of rows at a time, just before the pointwise convolution reads them, and never leaves the cache.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from .rewrites import FUSES_WHAT_FOLLOWS, kernel, rewritten
from .tiles import REDUCTION, Registers, choose, constants, kinds, pack, register_tile, tiled

NAME = "conv2d_separable"  # of kernels with how many numbers lie between, for profiles
BAND = 1 << 17  # bytes of what lies between the two: the second cache, with room for weights
BANDS = 2  # at least, where there are rows for them: for the threads. Each copies rows and reads weights once more

_BETWEEN = {"relax.add": "add", "relax.multiply": "multiply", "relax.maximum": "maximum", "relax.minimum": "minimum",
            "relax.nn.relu": "relu"}  # fmt: skip


def separables(module: Any, registers: Registers) -> Any:
    """A module, its convolutions channels last, with each pair of which nothing else reads the first as one."""
    from tvm import ir, relax

    found: list[_Pair] = []
    for function in dict(module.functions_items()).values():
        if isinstance(function, relax.Function):
            calls, readers = relax.analysis.get_var2val(function), _readers(function)
            pairs = (_Pair.of(call, calls, readers, registers) for call in calls.values() if isinstance(call, ir.Call))
            found += [pair for pair in pairs if pair is not None]

    @relax.expr_functor.mutator
    class Join(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            pair = next((pair for pair in found if pair.pointwise.same_as(call)), None)
            if pair is None:
                return self.visit_expr_post_order(call)
            return pair.emit(self.builder_, self.visit_expr(pair.depthwise.args[0]))

    return rewritten(module, Join) if found else module


def _readers(function: Any) -> dict[Any, int]:
    """How many read each variable that nothing but what stands in its block can read."""
    from tvm import relax

    blocks = [block for block in function.body.blocks if isinstance(block, relax.DataflowBlock)]
    return {var: len(own) for block in blocks for var, own in relax.analysis.udchain(block).items()}


@dataclass(frozen=True)
class _Pair:
    """Two convolutions, and the element-wise calls between them, the first to run first."""

    depthwise: Any
    between: tuple[Any, ...]
    pointwise: Any

    @classmethod
    def of(cls, call: Any, calls: Mapping[Any, Any], readers: Mapping[Any, int], registers: Registers) -> _Pair | None:
        if not _plain(call, groups=1) or call.attrs.kernel_layout != "HWIO" or len(_constants(call)) != 1:
            return None
        attrs, window = call.attrs, [int(n) for n in call.args[1].ty.shape.values[:2]]
        if [*window, *(int(n) for n in (*attrs.strides, *attrs.padding))] != [1, 1, 1, 1, 0, 0, 0, 0]:
            return None
        between: list[Any] = []
        value = call.args[0]
        while not _plain(made := _only(calls, readers, value)):
            value = _chained(made)
            if value is None:
                return None
            between.insert(0, made)
        _, rows, columns, channels = (int(n) for n in made.ty.shape.values)
        fits = channels % (registers.lanes // 4) == 0 and 4 * columns * channels <= BAND
        alone = int(made.attrs.groups) == channels == int(made.args[0].ty.shape.values[3]) > 1
        taken = fits and alone and rows > 1 and any(int(n) for n in made.attrs.padding) and len(_constants(made)) == 1
        return cls(made, tuple(between), call) if taken else None

    def emit(self, builder: Any, x: Any) -> Any:
        more = [value for call in self.between for value in _constants(call)]
        operands = [x, self.depthwise.args[1], self.pointwise.args[1], *more]
        size = prod(int(n) for n in self.depthwise.ty.shape.values)
        return kernel(builder, self._compute, operands, f"{NAME}_{size}_", FUSES_WHAT_FOLLOWS)

    def _compute(self, x: Any, first: Any, second: Any, *more: Any) -> Any:
        from tvm import te, topi

        attrs, left = self.depthwise.attrs, list(more)
        y = topi.nn.conv(
            inp=x,
            filt=first,
            stride=[int(n) for n in attrs.strides],
            padding=[int(n) for n in attrs.padding],
            dilation=[int(n) for n in attrs.dilation],
            groups=int(attrs.groups),
            data_layout="NHWC",
            kernel_layout=attrs.kernel_layout,
            out_dtype=attrs.out_dtype or None,
        )
        for call in self.between:
            operands = [left.pop(0) for _ in _constants(call)]
            y = getattr(topi, _BETWEEN[call.op.name])(y, *operands) if operands else topi.nn.relu(y)
        rc = te.reduce_axis((0, second.shape[2]), name="rc")
        return te.compute(
            (*y.shape[:3], second.shape[3]),
            lambda n, h, w, k: te.sum(y[n, h, w, rc] * second[0, 0, rc, k], axis=rc),
            name=NAME,
        )


def _only(calls: Mapping[Any, Any], readers: Mapping[Any, int], value: Any) -> Any:
    """The call that makes a value with one reader, None for others."""
    return calls.get(value) if readers.get(value) == 1 else None


def _plain(call: Any, groups: int | None = None) -> bool:
    """Whether this is a convolution, of ``groups`` if given, channels last, in single precision."""
    if getattr(getattr(call, "op", None), "name", "") != "relax.nn.conv2d":
        return False
    attrs = call.attrs
    layouts = (attrs.data_layout, attrs.out_layout or "NHWC", str(call.ty.dtype), str(call.args[0].ty.dtype))
    return layouts == ("NHWC", "NHWC", "float32", "float32") and groups in (None, int(attrs.groups))


def _chained(call: Any) -> Any:
    """What an element-wise call reads besides constants; None for any other call."""
    from tvm import ir

    if getattr(getattr(call, "op", None), "name", "") not in _BETWEEN:
        return None
    read = [value for value in call.args if isinstance(value, ir.Var)]
    same = read and [int(n) for n in read[0].ty.shape.values] == [int(n) for n in call.ty.shape.values]
    return read[0] if same and len(read) + len(_constants(call)) == len(call.args) and len(read) == 1 else None


def _constants(call: Any) -> list[Any]:
    from tvm import ir

    return [value for value in call.args if isinstance(value, ir.GenericConst)]


# ---- the schedule -----------------------------------------------------------------------------------------


def separable(func: Any, registers: Registers, rank: int = 0) -> Any:
    """None where the function is no such pair. ``rank``: of the pointwise convolution's tile. Raises IndexError where
    there are not so many."""
    from tvm import s_tir

    sch: Any = s_tir.Schedule(func)
    blocks = list(sch.get_child_blocks(sch.get_sblock("root")))
    names = [sch.get(block).name_hint for block in blocks]
    if NAME not in names:
        return None
    at, first = names.index(NAME), next(k for k, block in enumerate(blocks) if REDUCTION in kinds(sch, block))
    pad, depthwise, pointwise = blocks[first - 1], blocks[first], blocks[at]
    for block in (*blocks[first + 1 : at - 1], *blocks[at + 1 : -1]):
        sch.compute_inline(block)
    between = blocks[at - 1] if at > first + 1 else sch.cache_write(depthwise, 0, "global")
    out = blocks[-1] if at + 1 < len(blocks) else sch.cache_write(pointwise, 0, "global")
    task = _read(sch, pointwise, out, between, constants(func), registers, rank)
    sch.compute_at(between, task, preserve_unit_loops=True)
    _made(sch, pad, depthwise, between, registers)
    return sch


def _read(sch: Any, main: Any, out: Any, between: Any, constant: Sequence[str], registers: Registers, rank: int) -> Any:
    """Bands and tiles of the pointwise convolution; the loop over bands."""
    batch, height, width, channels = sch.get_loops(out)
    rows, columns, count = (int(sch.get(loop).extent) for loop in (height, width, channels))
    row = 4 * columns * int(sch.get(sch.get_loops(between)[-1]).extent)
    whole = [n for n in range(1, rows + 1) if rows % n == 0 and n * row <= BAND]
    band = ([n for n in whole if rows // n >= BANDS] or whole)[-1]
    lanes, words, (tall, wide) = choose([band, columns], count, registers, rank)
    pack(sch, main, lanes, words, constant)
    bands, height = sch.split(height, [None, band])
    above, row_ = sch.split(height, [None, tall])
    left, column = tiled(sch, width, wide)
    vectors, vector = sch.split(channels, [None, lanes])
    far, near = tiled(sch, vectors, words)
    sch.reorder(batch, bands, far, above, left, row_, column, near, vector)
    task = sch.fuse(batch, bands)
    sch.parallel(task)
    sch.compute_at(main, left, preserve_unit_loops=True)
    for loop in (row_, column, near):
        sch.unroll(loop)
    sch.vectorize(vector)
    register_tile(sch, main, lanes)
    return task


def _made(sch: Any, pad: Any, main: Any, out: Any, registers: Registers) -> None:
    """What lies between, a vector of channels at a time: the rows that it reads are copied just before."""
    *_, height, width, channels = sch.get_loops(out)
    columns, count = (int(sch.get(loop).extent) for loop in (width, channels))
    lanes, *_ = choose([columns], count, registers)
    wide = next(n for n in range(min(registers.tile // 3, columns), 0, -1) if columns % n == 0)
    left, column = sch.split(width, [None, wide])
    far, vector = sch.split(channels, [None, lanes])
    sch.reorder(far, height, left, column, vector)
    sch.compute_at(main, left, preserve_unit_loops=True)
    sch.compute_at(pad, far, preserve_unit_loops=True)
    sch.vectorize(sch.get_loops(pad)[-1])
    sch.unroll(column)
    sch.vectorize(vector)
    register_tile(sch, main, lanes, unrolled=True)
