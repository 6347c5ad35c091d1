"""Loop schedules that are good without having been measured: one register tile per convolution or
matrix product, everything else spread over threads and vector lanes.

A convolution or product is computed a tile at a time: ``rows`` positions by ``words`` vectors of
output channels, held in registers while the reduction runs, then passed on to the element-wise ops
that follow. The tile is the one with the most arithmetic per load that the register file holds. Weights
that are constants are stored in the order in which the tiles read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from .schedule_bands import Band, band, cut
from .schedule_concat import concatenation
from .schedule_rows import rows
from .separable import separable
from .tiles import (
    PARTITION,
    REDUCTION,
    SPATIAL,
    Registers,
    choose,
    constants,
    kinds,
    pack,
    partition,
    register_tile,
)
from .winograd import transform

_BRANCH = "if_then_else"


@dataclass(frozen=True)
class Choice:
    """Which schedule of those that are good on paper: the rank of its tile, and whether tiles of positions
    are outermost instead of tiles of channels."""

    rank: int = 0
    rows_first: bool = False


PLAIN = Choice()
VARIANTS = tuple(Choice(rank, rows_first) for rank in range(8) for rows_first in (False, True))[1:]
"""What tuning tries before it searches."""

FEW = 3  # tiles of channels: too few to be all that threads share, and their weights stay in cache
SHARED = 1 << 12  # numbers that a kernel makes or adds up: with fewer it is for one thread


def schedule(module: Any, target: Any, registers: Registers) -> Any:
    """A Relax module (static shapes, after FuseTIR) with every loop nest scheduled that is not already."""
    from tvm import IRModule, tirx

    done = IRModule(dict(module.functions_items()), attrs=module.attrs)
    for name, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc) and "tirx.is_scheduled" not in (func.attrs or {}):
            with target:
                done[name] = _schedule(func, target, registers)
    return done


def variants(func: Any, target: Any, registers: Registers) -> Iterator[Any]:
    """Other schedules of one function, where it is a convolution or product."""
    from tvm.s_tir import ScheduleError

    for choice in VARIANTS:
        try:
            with target:
                done = _tiled(func, registers, choice)
        except (ScheduleError, IndexError):  # of so few tiles there is no such rank
            continue
        if done is not None:
            yield _finished(done)


def _schedule(func: Any, target: Any, registers: Registers) -> Any:
    """The first schedule that applies. ScheduleError says that one does not; the plain loops remain."""
    from tvm.s_tir import ScheduleError, dlight

    for attempt in (
        lambda: transform(func, registers.lanes),
        lambda: _tiled(func, registers, PLAIN),
        lambda: _Nest(func, registers).pool(),
        lambda: concatenation(func, registers.lanes),
        lambda: rows(func, registers.lanes),
        lambda: dlight.cpu.Reduction().apply(func, target, False),
        lambda: _Nest(func, registers).spread(),
    ):
        try:
            done = attempt()  # type: ignore[no-untyped-call]
        except ScheduleError:
            continue
        if done is not None:
            return _finished(done)
    return func


def _finished(sch: Any) -> Any:
    """The function of a schedule. TVM cuts loops in two (``tiles.partition``) where indices have 32 bits alone."""
    from tvm import tirx

    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    cut = any(PARTITION in sch.get(loop).annotations for block in blocks for loop in sch.get_loops(block))
    module = tirx.transform.ForceNarrowIndexToInt32()(sch.mod) if cut else sch.mod
    return module["main"].with_attr("tirx.is_scheduled", True)


def _tiled(func: Any, registers: Registers, choice: Choice) -> Any:
    """A convolution or product, or two convolutions in one, in tiles; None where it is neither."""
    pair = None if choice.rows_first else separable(func, registers, choice.rank)
    return _Nest(func, registers, choice).tile() if pair is None else pair


class _Nest:
    """One function being scheduled."""

    def __init__(self, func: Any, registers: Registers, choice: Choice = PLAIN) -> None:
        from tvm import s_tir

        self.sch: Any = s_tir.Schedule(func)
        self.registers, self.choice = registers, choice
        self.constant = constants(func)
        self.blocks: list[Any] = list(self.sch.get_child_blocks(self.sch.get_sblock("root")))

    # ---- everything but products -----------------------------------------------------------------

    def spread(self) -> Any:
        for block in self._inlined():
            self._spread(block)
        return self.sch

    def _spread(self, block: Any) -> None:
        """Spatial loops over the threads; where there are no others, over the lanes too. Of a block that branches
        (padding) the last loop stays by itself: within it a vector takes one branch. So does one that fills vectors,
        the last in part: cut across rows, each lane would divide to find its own; LLVM vectorises what is left."""
        loops, kinds = self.sch.get_loops(block), self._kinds(block)
        spatial = next((k for k, kind in enumerate(kinds) if kind != SPATIAL), len(kinds))
        if len(loops) != len(kinds) or not spatial:
            return
        sizes = [int(self.sch.get(loop).extent) for loop in loops]
        numbers, width = prod(sizes), sizes[-1]
        if spatial < len(kinds):
            self._share(self.sch.fuse(*loops[:spatial]), numbers)
            return
        if len(loops) > 1 and width > self.registers.lanes and width % self.registers.lanes:
            self._share(self.sch.fuse(*loops[:-1]), numbers)
            return
        lanes = next(n for n in (self.registers.lanes, 8, 4, 2, 1) if width % n == 0)
        if _BRANCH in str(self.sch.get(block)) and len(loops) > 1 and lanes > 1:
            outer, vector = self.sch.fuse(*loops[:-1]), self.sch.split(loops[-1], [None, lanes])[1]
        else:
            outer, vector = self.sch.split(self.sch.fuse(*loops), [None, self.registers.lanes])
        self.sch.vectorize(vector)
        self._share(outer, numbers)

    def _share(self, loop: Any, numbers: int) -> None:
        """Among the threads, where there is work for them: waking them, or asking whether there are any, takes as
        long as some thousand numbers."""
        if numbers >= SHARED:
            self.sch.parallel(loop)

    def _inlined(self) -> list[Any]:
        """The blocks that remain when every element-wise one moves into its reader. A block that
        branches (padding) stays: its branch would be taken once per multiplication."""
        from tvm.s_tir import ScheduleError

        left = []
        for block in self.blocks:
            branches = _BRANCH in str(self.sch.get(block))
            if not (branches or self._reduces(block)) and self.sch.get_consumers(block):
                try:
                    self.sch.compute_inline(block)
                    continue
                except ScheduleError:  # it writes in an order of its own
                    pass
            left.append(block)
        return left

    def _kinds(self, block: Any) -> list[int]:
        return kinds(self.sch, block)

    def _reduces(self, block: Any) -> bool:
        return REDUCTION in self._kinds(block)

    # ---- pools -----------------------------------------------------------------------------------

    def pool(self) -> Any:
        """None where the function is not one reduction that leaves the last axis, in whole vectors, alone."""
        reductions = [block for block in self.blocks if self._reduces(block)]
        if len(reductions) != 1 or not self._keeps_last(reductions[0]):
            return None
        name = self.sch.get(reductions[0]).name_hint
        for block in self._inlined():
            if self.sch.get(block).name_hint != name:
                self._spread(block)
        block = self.sch.get_sblock(name)
        loops = list(zip(self.sch.get_loops(block), self._kinds(block), strict=True))
        *outer, last = [loop for loop, kind in loops if kind == SPATIAL]
        window = [loop for loop, kind in loops if kind == REDUCTION]
        far, lanes = self.sch.split(last, [None, self.registers.lanes])
        self.sch.reorder(*outer, far, *window, lanes)
        self.sch.parallel(self.sch.fuse(*outer, far))
        self.sch.vectorize(lanes)
        self.sch.decompose_reduction(block, window[0])
        return self.sch

    def _keeps_last(self, block: Any) -> bool:
        nest = self.sch.get(block)
        axes = [axis for axis in nest.iter_vars if int(axis.iter_type) == SPATIAL]
        if len(nest.reads) != 1 or len(self.sch.get_loops(block)) != len(nest.iter_vars) or not axes:
            return False
        whole = int(axes[-1].dom.extent) % self.registers.lanes == 0
        return whole and bool(nest.reads[0].region[-1].min.same_as(axes[-1].var))

    # ---- convolutions and matrix products --------------------------------------------------------

    def tile(self) -> Any:
        """None where the function is not one product of two tensors, with element-wise ops around."""
        products = [block for block in self.blocks if self._reduces(block)]
        if len(products) != 1:
            return None
        product = self.sch.get(products[0])
        if len(product.reads) < 2 or self._kinds(products[0]).count(SPATIAL) < 2:
            return None
        name = product.name_hint
        blocks = self._inlined()
        at = [self.sch.get(block).name_hint for block in blocks].index(name)
        main, after = blocks[at], blocks[at + 1 :]
        if len(after) > 1:
            return None
        if len(blocks[:at]) == 1 and not self.choice.rows_first:
            way = band(self.sch, blocks[0], main, self.registers.lanes)
            if way is not None:
                self._bands(blocks[0], main, after, way)
                return self.sch
        for block in blocks[:at]:
            self._spread(block)
        rows = self._padding(main)
        if any(rows):
            return self._padded(main, after, rows)
        self._tile(main, after[0] if after else self.sch.cache_write(main, 0, "global"))
        return self.sch

    def _bands(self, pad: Any, main: Any, after: list[Any], way: Band) -> None:
        """A padded convolution in bands of rows, see schedule_bands. A tile of a depthwise one is as many columns: what
        its taps load they share, and there are no weights to share."""
        out = after[0] if after else self.sch.cache_write(main, 0, "global")
        width, channels = (int(self.sch.get(loop).extent) for loop in self.sch.get_loops(out)[-2:])
        rows = [1 if way.depthwise else way.rows, width]
        lanes, words, tile = choose(rows, channels, self.registers, 0 if way.depthwise else self.choice.rank)
        if way.depthwise:
            most = self.registers.tile // 3  # the other registers hold weights and what was loaded
            columns = [n for n in range(min(most, width), 0, -1) if width % n == 0]
            words, tile = 1, [1, columns[self.choice.rank]]
        else:
            pack(self.sch, main, lanes, words, self.constant)
        cut(self.sch, pad, main, out, way, (lanes, words, tile))
        register_tile(self.sch, main, lanes, unrolled=way.depthwise)

    def _padding(self, main: Any) -> list[int]:
        """The multiples to round a matrix product's axes up to (0: as it is), where rows have no good
        divisor (197 tokens) or channels fill no vector."""
        axes = self.sch.get(main).iter_vars
        kinds = self._kinds(main)
        if kinds.count(REDUCTION) != 1 or len(kinds) > 4:  # a convolution
            return [0] * len(kinds)
        *_, channels = (int(axis.dom.extent) for axis, kind in zip(axes, kinds, strict=True) if kind == SPATIAL)
        multiples = [0] * len(kinds)
        last = max(k for k, kind in enumerate(kinds) if kind == SPATIAL)
        if channels > self.registers.lanes and channels % (self.registers.lanes // 4):
            multiples[last] = self.registers.lanes
        return multiples

    def _padded(self, main: Any, after: list[Any], multiples: list[int]) -> Any:
        """Weights that are constants are padded as they are packed, at compile time."""
        sch = self.sch
        before = {sch.get(block).name_hint for block in sch.get_child_blocks(sch.get_sblock("root"))}
        sch.pad_einsum(main, [max(1, n) for n in multiples])
        weights = None
        for block in sch.get_child_blocks(sch.get_sblock("root")):
            if sch.get(block).name_hint in before:
                continue
            if sch.get(block).reads[0].source.name in self.constant:
                weights = block
                self.constant.append(sch.get(block).writes[0].source.name)
            else:
                self._spread(block)
        for block in after:
            self._spread(block)
        self._tile(main, sch.cache_write(main, 0, "global"))
        if weights is not None:
            sch.compute_inline(weights)
        return sch

    def _tile(self, main: Any, out: Any) -> None:
        """Tile the last block, compute the product inside its tile."""
        sch = self.sch
        *rows, channels = sch.get_loops(out)
        if not rows:
            rows = [sch.split(channels, [1, None])[0]]
            channels = sch.get_loops(out)[-1]
        apart = self._apart(main, len(rows))
        extents = [1 if alone else int(sch.get(loop).extent) for loop, alone in zip(rows, apart, strict=True)]
        width = int(sch.get(channels).extent)
        lanes, words, tiles = choose(extents, width, self.registers, self.choice.rank)
        pack(sch, main, lanes, words, self.constant)
        outer, inner = [], []
        for loop, tile in zip(rows, tiles, strict=True):
            far, near = sch.split(loop, [None, tile])
            outer.append(far)
            inner.append(near)
        vectors, vector = sch.split(channels, [None, lanes])
        far, near = sch.split(vectors, [None, words])
        uneven = width % (lanes * words) > 0, extents[-1] % tiles[-1] > 0
        shared = [(loop, False) for loop, alone in zip(outer, apart, strict=True) if not alone]
        around = [(loop, False) for loop, alone in zip(outer, apart, strict=True) if alone]
        if uneven[1]:
            shared[-1] = outer[-1], True
        # Channels outermost: their weights stay in cache. Rows outermost: what they read does.
        first = self.choice.rows_first or (uneven[1] and -(-width // (lanes * words)) < FEW)
        order = [*around, *shared, (far, uneven[0])] if first else [*around, (far, uneven[0]), *shared]
        sch.reorder(*(loop for loop, _ in order), *inner, near, vector)
        nests = self._fused(order)
        sch.parallel(nests[0])
        sch.compute_at(main, nests[-1], preserve_unit_loops=True)
        for loop in (*inner, near):
            sch.unroll(loop)
        sch.vectorize(vector)
        register_tile(self.sch, main, lanes)

    def _fused(self, order: list[tuple[Any, bool]]) -> list[Any]:
        """Nested loops, the outermost first, as few: one whose last tile is smaller stays outermost in what it is fused
        into, and is cut in two."""
        nests: list[list[tuple[Any, bool]]] = [[]]
        for loop, uneven in order:
            if uneven and prod(int(self.sch.get(one).extent) for one, _ in nests[-1]) > 1:
                nests.append([])
            nests[-1].append((loop, uneven))
        found = []
        for nest in nests:
            found.append(self.sch.fuse(*(loop for loop, _ in nest)))
            if any(uneven for _, uneven in nest):
                partition(self.sch, found[-1])
        return found

    def _apart(self, main: Any, rows: int) -> list[bool]:
        """Of every row axis whether both operands have it, as a batch of products does: along such an axis a tile
        shares nothing. ``rows``: how many there are in the block that makes the result."""
        from tvm import tirx

        block = self.sch.get(main)
        reads = [
            {var for part in read.region for var in tirx.analysis.undefined_vars(part.min)} for read in block.reads
        ]
        axes = [axis.var for axis in block.iter_vars if int(axis.iter_type) == SPATIAL]
        found = [all(axis in read for read in reads) for axis in axes[:-1]]
        return found if len(found) == rows else [False] * rows
