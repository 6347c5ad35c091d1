"""Selections of channels as part of the convolution or concatenation that reads them, in TVM.

A gather of channels is a kernel of its own there, with channels last even three (transpose, take,
transpose), and so is a slice before a convolution. As a part of the convolution they cost next to
nothing: where it pads its input, the copy that padding makes anyway selects as well; where it does not,
it loads from the selected channel. A concatenation loads its parts from wherever they are; TVM would get there
too, moving the slices into it one by one, in a time that is their number's square.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from .rewrites import FUSES_WHAT_FOLLOWS, kernel, rewritten

_LAST, _FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # to channels last, and back


@dataclass(frozen=True)
class Selection:
    """The channels (the last axis) of ``value``: a run from ``start`` of ``count``, or those ``at``."""

    value: Any
    count: int
    start: int = 0
    at: Any = None

    @classmethod
    def whole(cls, value: Any) -> Selection:
        return cls(value, int(value.ty.shape.values[-1]))

    def operands(self) -> list[Any]:
        """What a kernel that selects takes."""
        from tvm import relax

        return [self.value] + ([] if self.at is None else [relax.const(self.at)])

    def source(self, channel: Any, at: Any = None) -> Any:
        """Where the kernel loads a channel from; ``at``: its second operand."""
        return channel + self.start if at is None else at[channel]


def selections_into_readers(module: Any) -> Any:
    """Every slice or gather of channels becomes part of the convolution that reads it; a gather that something
    else reads is one kernel, not three. For modules whose convolutions have channels last."""
    from tvm import relax

    @relax.expr_functor.mutator
    class Into(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            name = getattr(call.op, "name", "")
            if name == "relax.nn.conv2d" and call.attrs.data_layout == "NHWC" and int(call.attrs.groups) == 1:
                found = selected(call.args[0], self.lookup_binding)
                return call if found is None else _convolution(self.builder_, call, found)
            if name == "relax.concat" and int(call.attrs.axis) in (3, -1):
                joined = list(_maker(call.args[0], self.lookup_binding).fields)
                parts = [selected(part, self.lookup_binding) for part in joined]
                if any(part is not None for part in parts):
                    whole = map(Selection.whole, joined)
                    return _concatenation(self.builder_, [a or b for a, b in zip(parts, whole, strict=True)])
            if name == "relax.permute_dims":
                found = selected(call, self.lookup_binding)
                if found is not None and found.at is not None:
                    return relax.op.take(found.value, relax.const(found.at), axis=3, mode="fast")
            return call

    @relax.expr_functor.mutator
    class Rest(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            found = selected(call, self.lookup_binding) if _name(call) == "relax.take" else None
            return call if found is None else _gather(self.builder_, found)

    return rewritten(rewritten(module, Into), Rest)


def selected(value: Any, lookup: Any) -> Selection | None:
    """What a value with channels last selects its channels from, if that is all that makes it."""
    call = _maker(value, lookup)
    if _name(call) == "relax.strided_slice":
        return _slice(call)
    if _name(call) == "relax.take" and call.attrs.axis is not None and int(call.attrs.axis) == 3:
        return _take(call, call.args[0], lookup)
    if not _moves(call, _LAST):
        return None
    take = _maker(call.args[0], lookup)
    if _name(take) != "relax.take" or take.attrs.axis is None or int(take.attrs.axis) != 1:
        return None
    before = _maker(take.args[0], lookup)
    return _take(take, before.args[0], lookup) if _moves(before, _FIRST) else None


def _maker(value: Any, lookup: Any) -> Any:
    from tvm import ir

    return lookup(value) if isinstance(value, ir.Var) else value


def _name(call: Any) -> str:
    return getattr(getattr(call, "op", None), "name", "")


def _moves(call: Any, axes: list[int]) -> bool:
    return _name(call) == "relax.permute_dims" and [int(axis) for axis in call.attrs.axes] == axes


def _take(take: Any, value: Any, lookup: Any) -> Selection | None:
    from tvm import ir

    at = _maker(take.args[1], lookup)
    if not isinstance(at, ir.GenericConst):
        return None
    numbers = at.value.numpy().astype(np.int32)
    return Selection(value, len(numbers), at=numbers) if numbers.ndim == 1 else None


def _slice(call: Any) -> Selection | None:
    try:
        axes, begin, end, step = ([int(part.value) for part in one.fields] for one in call.args[1:5])
    except (AttributeError, TypeError):
        return None
    size = int(call.args[0].ty.shape.values[-1])
    if axes not in ([3], [-1]) or step != [1] or not 0 <= begin[0] < end[0]:
        return None
    return Selection(call.args[0], min(end[0], size) - begin[0], begin[0])


def _gather(builder: Any, selection: Selection) -> Any:
    """As TVM's own, which warns of indices that it has not looked at."""
    from tvm import te

    def gather(x: Any, at: Any) -> Any:
        return te.compute((*x.shape[:3], selection.count), lambda n, h, w, c: x[n, h, w, at[c]], name="gathered")

    return kernel(builder, gather, selection.operands(), "gather", FUSES_WHAT_FOLLOWS)


def _concatenation(builder: Any, parts: Sequence[Selection]) -> Any:
    """A kernel that everything fuses with, and that `schedule_concat` takes apart."""
    from tvm import relax, te, tirx

    values: list[Any] = []
    for part in parts:
        if not any(value.same_as(part.value) for value in values):
            values.append(part.value)
    source = [next(k for k, value in enumerate(values) if value.same_as(part.value)) for part in parts]
    starts = [0, *accumulate(part.count for part in parts)]

    def join(*operands: Any) -> Any:
        given, lists = operands[: len(values)], iter(operands[len(values) :])
        at = [next(lists) if part.at is not None else None for part in parts]

        def each(n: Any, h: Any, w: Any, c: Any) -> Any:
            def load(k: int) -> Any:
                return given[source[k]][n, h, w, parts[k].source(c - starts[k], at[k])]

            value = load(0)
            for k in range(1, len(parts)):
                value = tirx.if_then_else(tirx.LE(tirx.const(starts[k], c.ty.dtype), c), load(k), value)
            return value

        return te.compute((*given[0].shape[:3], starts[-1]), each, name="concatenated")

    lists = [relax.const(part.at) for part in parts if part.at is not None]
    return builder.call_te(join, *values, *lists, primfunc_name_hint="concatenate")


def _convolution(builder: Any, call: Any, selection: Selection) -> Any:
    from tvm import te, topi

    attrs = call.attrs

    def select(x: Any, weight: Any, at: Any = None) -> Any:
        def each(n: Any, h: Any, w: Any, c: Any) -> Any:
            return x[n, h, w, selection.source(c, at)]

        selected = te.compute((*x.shape[:3], selection.count), each, name="selected")
        return topi.nn.conv(
            inp=selected,
            filt=weight,
            stride=[int(n) for n in attrs.strides],
            padding=[int(n) for n in attrs.padding],
            dilation=[int(n) for n in attrs.dilation],
            groups=1,
            data_layout="NHWC",
            kernel_layout=attrs.kernel_layout,
            out_dtype=attrs.out_dtype or None,
        )

    value, *at = selection.operands()
    return kernel(builder, select, [value, call.args[1], *at], "conv2d_of_selected", FUSES_WHAT_FOLLOWS)
