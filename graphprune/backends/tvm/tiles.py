"""Register tiles: how large, their weights in the order in which they are read, and the loops within.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

SPATIAL, REDUCTION = 0, 2  # tvm's numbers of kinds of block axes
UNROLLED = 32  # taps of a kernel: neighbours share what they load where these are unrolled
PACKED = "meta_schedule.layout_rewrite_preproc"  # TVM's mark of a block that may run at compile time


@dataclass(frozen=True)
class Registers:
    """The vector unit: floats in a register, and how many registers may hold a tile."""

    lanes: int
    tile: int


WIDE = Registers(lanes=16, tile=24)  # AVX-512: 32 registers, eight left for operands
NARROW = Registers(lanes=8, tile=12)  # AVX, and two NEON registers for one: 16, four left


def choose(rows: Sequence[int], channels: int, registers: Registers, rank: int = 0) -> tuple[int, int, list[int]]:
    """Lanes of a vector, vectors of a tile, and the tile's size along every row axis.

    The tile of r x w registers needs r + w loads for r * w multiply-adds: the best ratio that fits
    wins; ``rank`` 1 is the second best. Tiles divide the axes evenly, which is why a channel count that is
    a multiple of the lanes (the target's ``grain``) pays. Raises IndexError where there are not so many.
    """
    whole = [size for size in (registers.lanes, registers.lanes // 2, registers.lanes // 4) if channels % size == 0]
    lanes = whole[0] if whole else min(channels, registers.lanes)
    ranked = [
        (prod(tile) * words / (prod(tile) + words), words, tile[::-1])  # equal ones: along the last axis
        for words in range(1, 5)
        if words == 1 or channels % (words * lanes) == 0
        for tile in _tiles(rows, registers.tile // words)
    ]
    _, words, tile = sorted(ranked, reverse=True)[rank]
    return lanes, words, tile[::-1]


def _tiles(rows: Sequence[int], most: int) -> Iterator[list[int]]:
    """Every way to cut the row axes evenly into tiles of at most ``most`` positions."""
    if not rows:
        yield []
        return
    *rest, last = rows
    for size in range(1, min(last, most) + 1):
        if last % size == 0:
            for tile in _tiles(rest, most // size):
                yield [*tile, size]


def kinds(sch: Any, block: Any) -> list[int]:
    """Of the axes of a block."""
    return [int(axis.iter_type) for axis in sch.get(block).iter_vars]


def constants(func: Any) -> list[str]:
    """The names of a function's buffers that hold constants: they may be packed."""
    return [func.params[int(k)].name for k in (func.attrs or {}).get("layout_free_buffers", ())]


def pack(sch: Any, main: Any, width: int, constant: Collection[str]) -> None:
    """Constant weights a tile of output channels at a time, so that a tile reads them in one sweep. Only where
    their last axis is the channels', as they are: of an index that falls (a mirrored kernel) TVM's layout
    transformation takes the wrong quotient. ``constant``: the names of buffers that are."""
    block = sch.get(main)
    channels = [axis.var for axis in block.iter_vars if int(axis.iter_type) == SPATIAL][-1]
    for k, read in enumerate(block.reads):
        if read.source.name in constant and len(read.region) > 1 and read.region[-1].min.same_as(channels):
            packed = sch.cache_read(main, k, "global")
            sch.transform_layout(main, ("read", k), lambda *at: (at[-1] // width, *at[:-1], at[-1] % width))
            sch.annotate(packed, PACKED, True)


def register_tile(sch: Any, main: Any, lanes: int, unrolled: bool = False) -> None:
    """Inside a tile: the reduction outermost, the tile itself unrolled and in vectors."""
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
    sch.decompose_reduction(main, reduction[0])
