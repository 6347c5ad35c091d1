"""The schedule of concatenations along the last axis: a loop of its own for each part.

TVM writes a concatenation as one loop that asks for every element which part it is of, a question per part;
with channels last it asks in the innermost loop, where nothing is left to vectorise. Here the loop over
channels is cut where parts meet, each piece knows its part, and copies it in vectors, with the element-wise
ops that follow.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

_SPATIAL = 0  # tvm's number of a block axis along which nothing is summed
_BRANCH = "if_then_else"


def concatenation(func: Any, lanes: int) -> Any:
    """None where the function is not one concatenation along the last axis, with element-wise ops around. Raises
    ScheduleError where these cannot be part of it. ``lanes``: floats in a vector."""
    from tvm import s_tir

    sch = s_tir.Schedule(func)
    blocks = list(sch.get_child_blocks(sch.get_sblock("root")))
    found = [sch.get(block) for block in blocks]
    branching = [block for block in found if _BRANCH in str(block.body)]
    if len(branching) != 1 or any(int(axis.iter_type) != _SPATIAL for block in found for axis in block.iter_vars):
        return None
    meets, last = sorted(_meets(branching[0])), found[-1]
    width = int(branching[0].iter_vars[-1].dom.extent)
    if not meets or int(last.iter_vars[-1].dom.extent) != width or len(sch.get_loops(blocks[-1])) < 2:
        return None
    for block in blocks[:-1]:
        sch.compute_inline(block)
    sch.parallel(sch.fuse(*sch.get_loops(blocks[-1])[:-1]))
    sizes = list(_pieces([0, *meets, width], lanes))
    pieces = sch.loop_partition(sch.get_loops(blocks[-1])[-1], [*sizes[:-1], None])
    names = [sch.get(block).name_hint for piece in pieces for block in sch.get_child_blocks(piece)]
    sch = s_tir.Schedule(_decided(sch.mod))
    for name, size in zip(names, sizes, strict=True):
        loops = sch.get_loops(sch.get_sblock(name))
        if size > 1:
            sch.vectorize(loops[-1] if size <= lanes else sch.split(loops[-1], [None, lanes])[1])
    return sch


def _meets(block: Any) -> Iterator[int]:
    """Where parts meet: the bounds that the last axis is compared with."""
    value, axis = block.body.value, block.iter_vars[-1].var
    while getattr(getattr(value, "op", None), "name", "").endswith(_BRANCH):
        condition, _, value = value.args
        if not axis.same_as(getattr(condition, "b", None)):  # not `bound <= axis`: a padding, or along another axis
            return
        yield int(condition.a)


def _pieces(ends: list[int], lanes: int) -> Iterator[int]:
    """The lengths of the parts, each in whole vectors and what is left."""
    for start, stop in pairwise(ends):
        whole = (stop - start) // lanes * lanes
        yield from (size for size in (whole, stop - start - whole) if size)


def _decided(module: Any) -> Any:
    """Every piece with the one branch that it takes, its loop from zero."""
    from tvm import s_tir, tirx

    simplify = tirx.transform.StmtSimplify()
    module = simplify(s_tir.transform.ConvertBlocksToOpaque()(module))
    return simplify(s_tir.transform.CanonicalizeLoop()(module))
