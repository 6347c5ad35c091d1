"""The schedule of softmaxes and norms: a row at a time, its sums in vectors.

TVM's loops go over the whole tensor once for each step of such an op, and sum one number after the other: LLVM may not
change the order of a sum, so that it has no vectors to make of it. Here all steps of a row run before the next row's,
out of the nearest cache, and each lane of a vector has a sum (or largest number) of its own until the row ends.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from typing import Any

_SPATIAL, _REDUCTION = 0, 2  # tvm's numbers of kinds of block axes
_FEWEST = 2  # vectors that a row must fill


def rows(func: Any, lanes: int) -> Any:
    """None where the function does not reduce rows, its last axis, and give rows again. Raises ScheduleError where
    steps cannot be brought together. ``lanes``: floats in a vector."""
    from tvm import s_tir

    sch: Any = s_tir.Schedule(func)
    blocks = list(sch.get_child_blocks(sch.get_sblock("root")))
    kinds = [[int(axis.iter_type) for axis in sch.get(block).iter_vars] for block in blocks]
    reducing = [block for block, kind in zip(blocks, kinds, strict=True) if _REDUCTION in kind]
    if not reducing or _REDUCTION in kinds[-1] or any(not _reduces_rows(sch, block, lanes) for block in reducing):
        return None
    *outer, last = (int(axis.dom.extent) for axis in sch.get(blocks[-1]).iter_vars)
    if any([int(axis.dom.extent) for axis in sch.get(block).iter_vars] != [*outer, last] for block in reducing):
        return None
    for block in blocks[:-1]:
        if block not in reducing and len(sch.get_consumers(block)) == 1:
            sch.compute_inline(block)
    return _by_row(sch, {sch.get(block).name_hint for block in reducing}, lanes)


def _reduces_rows(sch: Any, block: Any, lanes: int) -> bool:
    """Whether a block reduces the last axis of its loops, whole vectors, and that alone."""
    axes = sch.get(block).iter_vars
    kinds = [int(axis.iter_type) for axis in axes]
    only = kinds[-1] == _REDUCTION and kinds.count(_SPATIAL) == len(kinds) - 1 >= 1
    width = int(axes[-1].dom.extent)
    return only and len(sch.get_loops(block)) == len(kinds) and width >= _FEWEST * lanes and width % lanes == 0


def _by_row(sch: Any, reducing: set[str], lanes: int) -> Any:
    parts = []
    for name in sorted(reducing):
        along = sch.get_loops(sch.get_sblock(name))[-1]
        lane = sch.split(along, [None, lanes])[1]
        parts.append(sch.get(sch.rfactor(lane, len(sch.get(sch.get_sblock(name)).iter_vars) - 1)).name_hint)
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
        (lane,) = (loop for loop, kind in loops if kind == _SPATIAL and int(sch.get(loop).extent) > 1)
        sch.reorder(far, lane)
        sch.vectorize(lane)
        sch.decompose_reduction(block, far)
    sch.vectorize(sch.split(along, [None, lanes])[1])
    return sch
