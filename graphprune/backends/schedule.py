"""Loop schedules that are good without having been measured: one register tile per convolution or
matrix product, everything else spread over threads and vector lanes.

A convolution or product is computed a tile at a time: ``rows`` positions by ``words`` vectors of
output channels, held in registers while the reduction runs, then passed on to the element-wise ops
that follow. The tile is the one with the most arithmetic per load that the register file holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

_SPATIAL, _REDUCTION = 0, 2  # tvm's numbers of kinds of block axes


@dataclass(frozen=True)
class Registers:
    """The vector unit: floats in a register, and how many registers may hold a tile."""

    lanes: int
    tile: int


WIDE = Registers(lanes=16, tile=24)  # AVX-512: 32 registers, eight left for operands
NARROW = Registers(lanes=8, tile=12)  # AVX, and two NEON registers for one: 16, four left


def schedule(module: Any, target: Any, registers: Registers) -> Any:
    """Every loop nest of a Relax module (static shapes, after FuseTIR), scheduled."""
    from tvm import tirx

    for name, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc):
            with target:
                module[name] = _schedule(func, target, registers)
    return module


def _schedule(func: Any, target: Any, registers: Registers) -> Any:
    """The first schedule that applies. ScheduleError says that one does not; the plain loops remain."""
    from tvm.s_tir import ScheduleError, dlight

    for attempt in (
        lambda: _Nest(func, registers).tile(),
        lambda: dlight.cpu.Reduction().apply(func, target, False),
        lambda: _Nest(func, registers).spread(),
    ):
        try:
            done = attempt()  # type: ignore[no-untyped-call]
        except ScheduleError:
            continue
        if done is not None:
            return done.mod["main"].with_attr("tirx.is_scheduled", True)
    return func


class _Nest:
    """One function being scheduled."""

    def __init__(self, func: Any, registers: Registers) -> None:
        from tvm import s_tir

        self.sch: Any = s_tir.Schedule(func)
        self.registers = registers
        self.blocks: list[Any] = list(self.sch.get_child_blocks(self.sch.get_sblock("root")))

    # ---- everything but products -----------------------------------------------------------------

    def spread(self) -> Any:
        for block in self._inlined():
            self._spread(block)
        return self.sch

    def _spread(self, block: Any) -> None:
        """Spatial loops over the threads; where there are no others, over the lanes too."""
        loops, kinds = self.sch.get_loops(block), self._kinds(block)
        spatial = next((k for k, kind in enumerate(kinds) if kind != _SPATIAL), len(kinds))
        if len(loops) != len(kinds) or not spatial:
            return
        fused = self.sch.fuse(*loops[:spatial])
        if spatial == len(kinds):
            fused, lanes = self.sch.split(fused, [None, self.registers.lanes])
            self.sch.vectorize(lanes)
        self.sch.parallel(fused)

    def _inlined(self) -> list[Any]:
        """The blocks that remain when every element-wise one moves into its reader. A block that
        branches (padding) stays: its branch would be taken once per multiplication."""
        from tvm.s_tir import ScheduleError

        left = []
        for block in self.blocks:
            branches = "if_then_else" in str(self.sch.get(block))
            if not (branches or self._reduces(block)) and self.sch.get_consumers(block):
                try:
                    self.sch.compute_inline(block)
                    continue
                except ScheduleError:  # it writes in an order of its own
                    pass
            left.append(block)
        return left

    def _kinds(self, block: Any) -> list[int]:
        return [int(axis.iter_type) for axis in self.sch.get(block).iter_vars]

    def _reduces(self, block: Any) -> bool:
        return _REDUCTION in self._kinds(block)

    # ---- convolutions and matrix products --------------------------------------------------------

    def tile(self) -> Any:
        """None where the function is not one product of two tensors, with element-wise ops around."""
        products = [block for block in self.blocks if self._reduces(block)]
        if len(products) != 1:
            return None
        product = self.sch.get(products[0])
        if len(product.reads) < 2 or self._kinds(products[0]).count(_SPATIAL) < 2:
            return None
        name = product.name_hint
        blocks = self._inlined()
        at = [self.sch.get(block).name_hint for block in blocks].index(name)
        main, after = blocks[at], blocks[at + 1 :]
        if len(after) > 1:
            return None
        for block in blocks[:at]:
            self._spread(block)
        rows = self._padding(main)
        if any(rows):
            return self._padded(main, after, rows)
        self._tile(main, after[0] if after else self.sch.cache_write(main, 0, "global"))
        return self.sch

    def _padding(self, main: Any) -> list[int]:
        """The multiples to round a matrix product's axes up to (0: as it is), where rows have no good
        divisor (197 tokens) or channels fill no vector."""
        axes = self.sch.get(main).iter_vars
        kinds = self._kinds(main)
        if kinds.count(_REDUCTION) != 1 or len(kinds) > 4:  # a convolution
            return [0] * len(kinds)
        *_, rows, channels = (int(axis.dom.extent) for axis, kind in zip(axes, kinds, strict=True) if kind == _SPATIAL)
        multiples = [0] * len(kinds)
        last = max(k for k, kind in enumerate(kinds) if kind == _SPATIAL)
        if rows > self.registers.tile and max(n for n in range(1, 13) if rows % n == 0) < 4:
            multiples[last - 1] = 6
        if channels > self.registers.lanes and channels % (self.registers.lanes // 4):
            multiples[last] = self.registers.lanes
        return multiples

    def _padded(self, main: Any, after: list[Any], multiples: list[int]) -> Any:
        before = {self.sch.get(block).name_hint for block in self.sch.get_child_blocks(self.sch.get_sblock("root"))}
        self.sch.pad_einsum(main, [max(1, n) for n in multiples])
        for block in self.sch.get_child_blocks(self.sch.get_sblock("root")):
            if self.sch.get(block).name_hint not in before:
                self._spread(block)
        for block in after:
            self._spread(block)
        self._tile(main, self.sch.cache_write(main, 0, "global"))
        return self.sch

    def _tile(self, main: Any, out: Any) -> None:
        """Tile the last block, compute the product inside its tile."""
        sch = self.sch
        *rows, channels = sch.get_loops(out)
        if not rows:
            rows = [sch.split(channels, [1, None])[0]]
            channels = sch.get_loops(out)[-1]
        extents = [int(sch.get(loop).extent) for loop in rows]
        lanes, words, tiles = choose(extents, int(sch.get(channels).extent), self.registers)
        outer, inner = [], []
        for loop, tile in zip(rows, tiles, strict=True):
            far, near = sch.split(loop, [None, tile])
            outer.append(far)
            inner.append(near)
        far, near, vector = sch.split(channels, [None, words, lanes])
        sch.reorder(far, *outer, *inner, near, vector)  # channels outermost: their weights stay in cache
        threads = sch.fuse(far, *outer)
        sch.parallel(threads)
        sch.compute_at(main, threads, preserve_unit_loops=True)
        for loop in (*inner, near):
            sch.unroll(loop)
        sch.vectorize(vector)
        self._register_tile(main, lanes)

    def _register_tile(self, main: Any, lanes: int) -> None:
        """Inside a tile: the reduction outermost, the tile itself unrolled and in vectors."""
        sch = self.sch
        loops = list(zip(sch.get_loops(main)[1:], self._kinds(main), strict=True))
        spatial = [loop for loop, kind in loops if kind == _SPATIAL]
        reduction = [loop for loop, kind in loops if kind == _REDUCTION]
        spatial[-1:] = sch.split(spatial[-1], [None, lanes])
        sch.reorder(*reduction, *spatial)
        for loop in spatial[:-1]:
            sch.unroll(loop)
        sch.vectorize(spatial[-1])
        sch.decompose_reduction(main, reduction[0])


def choose(rows: Sequence[int], channels: int, registers: Registers) -> tuple[int, int, list[int]]:
    """Lanes of a vector, vectors of a tile, and the tile's size along every row axis.

    The tile of r x w registers needs r + w loads for r * w multiply-adds: the best ratio that fits
    wins. Tiles divide the axes evenly, which is why a channel count that is a multiple of the lanes
    (the target's ``grain``) pays.
    """
    whole = [size for size in (registers.lanes, registers.lanes // 2, registers.lanes // 4) if channels % size == 0]
    lanes = whole[0] if whole else min(channels, registers.lanes)
    ranked = [
        (prod(tile) * words / (prod(tile) + words), words, tile[::-1])  # equal ones: along the last axis
        for words in range(1, 5)
        if words == 1 or channels % (words * lanes) == 0
        for tile in _tiles(rows, registers.tile // words)
    ]
    _, words, tile = max(ranked)
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
