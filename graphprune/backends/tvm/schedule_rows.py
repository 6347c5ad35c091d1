"""The schedule of softmaxes and norms: a row at a time, its sums in vectors.

TVM's loops go over the whole tensor once for each step of such an op, and sum one number after the other: LLVM may not
change the order of a sum, so that it has no vectors to make of it. Here all steps of a row run before the next row's,
out of the nearest cache, and each lane of a vector has a sum (or largest number) of its own until the row ends.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from typing import Any

from .rewrites import FUSES_WHAT_FOLLOWS, kernel, rewritten

_SPATIAL, _REDUCTION = 0, 2  # tvm's numbers of kinds of block axes
PARTS = 16  # lanes, of one vector or two, that a row is cut into where it is written so


def rows(func: Any, lanes: int) -> Any:
    """None where the function does not reduce rows, its last axis, and give rows again. Raises ScheduleError where
    steps cannot be brought together. ``lanes``: floats in a vector."""
    from tvm import s_tir

    sch: Any = s_tir.Schedule(func)
    blocks = list(sch.get_child_blocks(sch.get_sblock("root")))
    kinds = [[int(axis.iter_type) for axis in sch.get(block).iter_vars] for block in blocks]
    reducing = [block for block, kind in zip(blocks, kinds, strict=True) if _REDUCTION in kind]
    if not reducing or _REDUCTION in kinds[-1]:
        return None
    *outer, last = (int(axis.dom.extent) for axis in sch.get(blocks[-1]).iter_vars)
    if not outer or not all(_reduces_rows(sch, block, outer, lanes) for block in reducing):
        return None
    for block in blocks[:-1]:
        if block not in reducing and len(sch.get_consumers(block)) == 1:
            sch.compute_inline(block)
    names = [sch.get(block).name_hint for block in reducing]
    return _by_row(sch, [_in_lanes(sch, name, lanes) for name in names], last, lanes)


def _reduces_rows(sch: Any, block: Any, outer: list[int], lanes: int) -> bool:
    """Whether a block reduces an axis of the rows ``outer``, of whole vectors, or lane by lane."""
    axes = sch.get(block).iter_vars
    kinds, sizes = [int(axis.iter_type) for axis in axes], [int(axis.dom.extent) for axis in axes]
    if kinds[-1] != _REDUCTION or kinds.count(_SPATIAL) != len(kinds) - 1 or len(sch.get_loops(block)) != len(kinds):
        return False
    whole = sizes[:-1] == outer and (sizes[-1] <= PARTS or sizes[-1] % lanes == 0)
    return whole or (sizes[:-2] == outer and sizes[-2] == PARTS)


def _in_lanes(sch: Any, name: str, lanes: int) -> str:
    """The block of a reduction that has a lane for an axis, made where it is not there."""
    block = sch.get_sblock(name)
    size = int(sch.get(sch.get_loops(block)[-1]).extent)
    if size <= lanes or size % lanes or "part" in name:
        return name
    lane = sch.split(sch.get_loops(block)[-1], [None, lanes])[1]
    return str(sch.get(sch.rfactor(lane, len(sch.get(block).iter_vars) - 1)).name_hint)


def _by_row(sch: Any, parts: list[str], width: int, lanes: int) -> Any:
    *before, last = sch.get_child_blocks(sch.get_sblock("root"))
    *outer, along = sch.get_loops(last)
    row = sch.fuse(*outer)
    sch.parallel(row)
    for block in reversed(before):
        sch.compute_at(block, row, preserve_unit_loops=True)
    for name in parts:
        block = sch.get_sblock(name)
        kinds = [int(axis.iter_type) for axis in sch.get(block).iter_vars]
        loops = list(zip(sch.get_loops(block)[-len(kinds) :], kinds, strict=True))
        (far,) = (loop for loop, kind in loops if kind == _REDUCTION)
        found = [loop for loop, kind in loops if kind == _SPATIAL and int(sch.get(loop).extent) > 1]
        if found:
            sch.reorder(far, found[0])
            sch.vectorize(found[0] if int(sch.get(found[0]).extent) == lanes else sch.split(found[0], [None, lanes])[1])
        sch.decompose_reduction(block, far)  # in C a compiler does not see that the first turn sets what others read
    if width % lanes == 0:
        sch.vectorize(sch.split(along, [None, lanes])[1])
    return sch


# ---- rows that fill vectors in part ----------------------------------------------------------------


def softmaxes(module: Any) -> Any:
    """Softmaxes of rows that fill vectors but the last, written so that the schedule above can take them: the
    whole vectors lane by lane, and what is left."""
    from tvm import relax

    @relax.expr_functor.mutator
    class Cut(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", "") != "relax.nn.softmax" or str(call.ty.dtype) != "float32":
                return call
            sizes = [int(n) for n in call.ty.shape.values]
            if int(call.attrs.axis) not in (-1, len(sizes) - 1) or len(sizes) < 2:
                return call
            if sizes[-1] < 2 * PARTS or sizes[-1] % PARTS == 0:
                return call
            return kernel(self.builder_, lambda x: _softmax(x, sizes), [call.args[0]], "softmax", FUSES_WHAT_FOLLOWS)

    return rewritten(module, Cut)


def _softmax(x: Any, sizes: list[int]) -> Any:
    from tvm import te, tirx

    *outer, width = sizes
    whole = width // PARTS

    def ends(value: Any, reduce: Any, join: Any, name: str) -> Any:
        """A row's ``value``, reduced: of the lanes, and of the numbers behind the last whole vector."""
        k, lane, rest = (te.reduce_axis((0, n)) for n in (whole, PARTS, width - whole * PARTS))
        parts = te.compute(
            (*outer, PARTS), lambda *i: reduce(value(*i[:-1], k * PARTS + i[-1]), k), name=f"part_{name}"
        )
        every = te.compute(outer, lambda *i: reduce(parts(*i, lane), lane), name=f"lanes_{name}")
        last = te.compute(outer, lambda *i: reduce(value(*i, whole * PARTS + rest), rest), name=f"rest_{name}")
        return te.compute(outer, lambda *i: join(every(*i), last(*i)), name=name)

    largest = ends(x, te.max, tirx.max, "largest")
    power = te.compute(sizes, lambda *i: tirx.exp(x(*i) - largest(*i[:-1])), name="power")
    total = ends(power, te.sum, lambda a, b: a + b, "total")
    return te.compute(sizes, lambda *i: power(*i) / total(*i[:-1]), name="softmax")
