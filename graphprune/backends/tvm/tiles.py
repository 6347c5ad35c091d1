"""Register tiles: how large, their weights in the order in which they are read, and the loops within.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from .stack import SCOPE

SPATIAL, REDUCTION = 0, 2  # tvm's numbers of kinds of block axes
UNROLLED = 32  # taps of a kernel: neighbours share what they load where these are unrolled
PACKED = "meta_schedule.layout_rewrite_preproc"  # TVM's mark of a block that may run at compile time
PARTITION = "pragma_loop_partition_hint"  # and of a loop that may be cut where its turns differ


@dataclass(frozen=True)
class Registers:
    """The vector unit: floats in a register, and how many registers may hold a tile."""

    lanes: int
    tile: int


WIDE = Registers(lanes=16, tile=24)  # AVX-512: 32 registers, eight left for operands
NARROW = Registers(lanes=8, tile=12)  # AVX, and two NEON registers for one: 16, four left


def choose(rows: Sequence[int], channels: int, registers: Registers, rank: int = 0) -> tuple[int, int, list[int]]:
    """Lanes of a vector, vectors of a tile, and the tile's size along every row axis.

    A tile of r x w registers needs r + w loads for r * w multiply-adds: what has the most of these per load wins;
    ``rank`` 1 is the second best. Tiles divide the row axes evenly but for the last, where that has no good divisor
    (197 tokens), and channels but for a narrower last tile (see ``partition``); of a channel count that is no
    multiple of the lanes (the target's ``grain``) vectors are shorter. Raises IndexError where there are not so many.
    """
    whole = [size for size in (registers.lanes, registers.lanes // 2, registers.lanes // 4) if channels % size == 0]
    lanes = whole[0] if whole else min(channels, registers.lanes)
    vectors, positions = -(-channels // lanes), prod(rows)
    good = range(4, registers.tile // 2 + 1)
    ragged = bool(rows) and rows[-1] > max(good) and all(rows[-1] % size for size in good)
    ranked = []
    for words in range(1, min(4, vectors) + 1 if whole else 2):
        for tile in _tiles(rows, registers.tile // words, ragged):
            loads = -(-vectors // words) * positions + _count(rows, tile) * vectors
            ranked.append((positions * vectors / loads, words, tile[::-1]))  # equal ones: along the last axis
    _, words, tile = sorted(ranked, reverse=True)[rank]
    return lanes, words, tile[::-1]


def _count(rows: Sequence[int], tile: Sequence[int]) -> int:
    return prod(-(-size // part) for size, part in zip(rows, tile, strict=True))


def tiled(sch: Any, loop: Any, size: int) -> tuple[Any, Any]:
    """A loop as one over tiles and one within them, not to be fused with others."""
    extent = int(sch.get(loop).extent)
    far, near = sch.split(loop, [None, size])
    if extent % size:
        partition(sch, far)
    return far, near


def partition(sch: Any, loop: Any) -> None:
    """The ends of a loop become code of its own where they differ from the rest: a smaller last tile, as otherwise each
    multiply-add would ask whether it is needed, or a border of zeros. ``loop``: over an axis or its tiles, or what that
    is fused into as the outermost."""
    sch.annotate(loop, PARTITION, 1)


def _tiles(rows: Sequence[int], most: int, ragged: bool = False) -> Iterator[list[int]]:
    """Every way to cut the row axes into tiles of at most ``most`` positions, evenly, the last ``ragged`` if so."""
    if not rows:
        yield []
        return
    *rest, last = rows
    for size in range(1, min(last, most) + 1):
        if ragged or last % size == 0:
            for tile in _tiles(rest, most // size):
                yield [*tile, size]


def kinds(sch: Any, block: Any) -> list[int]:
    """Of the axes of a block."""
    return [int(axis.iter_type) for axis in sch.get(block).iter_vars]


def constants(func: Any) -> list[str]:
    """The names of a function's buffers that hold constants: they may be packed."""
    return [func.params[int(k)].name for k in (func.attrs or {}).get("layout_free_buffers", ())]


def pack(sch: Any, main: Any, lanes: int, words: int, constant: Collection[str]) -> None:
    """Constant weights a tile of output channels at a time, so that a tile reads them in one sweep; in one for each of
    its vectors where the last tile is narrower. Only where their last axis is the channels', as they are: of an index
    that falls (a mirrored kernel) TVM's layout transformation takes the wrong quotient. ``constant``: the names of
    buffers that are."""
    block = sch.get(main)
    *_, last = (axis for axis in block.iter_vars if int(axis.iter_type) == SPATIAL)
    channels, count = last.var, int(last.dom.extent)
    if count % lanes:
        return
    width = lanes * words if count % (lanes * words) == 0 else lanes
    for k, read in enumerate(block.reads):
        if read.source.name in constant and len(read.region) > 1 and read.region[-1].min.same_as(channels):
            packed = sch.cache_read(main, k, "global")
            sch.transform_layout(main, ("read", k), lambda *at: (at[-1] // width, *at[:-1], at[-1] % width))
            sch.annotate(packed, PACKED, True)


def register_tile(sch: Any, main: Any, lanes: int, unrolled: bool = False) -> None:
    """Inside a tile: the reduction outermost, the tile itself unrolled and in vectors, its sums in registers."""
    own = kinds(sch, main)
    loops = list(zip(sch.get_loops(main)[-len(own) :], own, strict=True))
    spatial = [loop for loop, kind in loops if kind == SPATIAL]
    reduction = [loop for loop, kind in loops if kind == REDUCTION]
    spatial[-1:] = sch.split(spatial[-1], [None, lanes])
    sch.reorder(*reduction, *spatial)
    for loop in spatial[:-1]:
        sch.unroll(loop)
    if unrolled and prod(int(sch.get(loop).extent) for loop in reduction) <= UNROLLED:
        for loop in reduction:
            sch.unroll(loop)
    sch.vectorize(spatial[-1])
    sch.set_scope(main, 0, SCOPE)
    sch.decompose_reduction(main, reduction[0])
