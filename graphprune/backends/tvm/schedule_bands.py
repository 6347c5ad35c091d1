"""The loops of a padded convolution, a band of rows at a time.

TVM pads the whole input into a copy and convolves that: the largest tensors go through memory twice more, and where
there is little to compute (depthwise convolutions, stems) that is most of the time. Here the padded copy is of the
rows that a few output rows read, is made just before these, and never leaves the cache.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from .tiles import partition, tiled

DEPTHWISE = 1 << 15  # bytes of a band: the nearest cache, with room for what else passes through it
DENSE = 1 << 17  # bytes of a band, and of the weights that go by for each: the second cache
BANDS = 4  # at least, where there are rows for them: for the threads


@dataclass(frozen=True)
class Band:
    """How a convolution of NHWC results is cut: ``rows`` of its output make a band."""

    rows: int
    depthwise: bool  # every output channel reads one input channel


def band(sch: Any, pad: Any, main: Any, channels: int) -> Band | None:
    """The bands of the convolution ``main``, a block, whose padded input is the block ``pad``; None where it is none,
    or none that fits the caches. ``channels``: of an input that a task reads, where each output has its own."""
    from tvm import sym, tirx

    block = sch.get(main)
    axes = [axis for axis in block.iter_vars if int(axis.iter_type) == 0]
    taps = [int(axis.dom.extent) for axis in block.iter_vars if int(axis.iter_type) != 0]
    if len(axes) != 4 or len(taps) != 3 or len(block.reads) != 2:
        return None
    data, weight = block.reads
    if not data.source.same_as(sch.get(pad).writes[0].source):
        return None
    high = [part.min for part in data.region if axes[1].var in tirx.analysis.undefined_vars(part.min)]
    last = [part.min for part in data.region if axes[3].var in tirx.analysis.undefined_vars(part.min)]
    line = sym.detect_linear_equation(high[0], [axes[1].var]) if len(high) == 1 else ()
    if not line or len(last) > 1 or (last and taps[2] != 1):  # groups of several channels
        return None
    padded = [int(n) for n in data.source.shape]
    at = next(k for k, part in enumerate(data.region) if part.min.same_as(high[0]))
    stride, rows = int(line[0]), int(axes[1].dom.extent)
    reach = padded[at] - stride * (rows - 1)
    row = 4 * prod(padded[1:]) // padded[at]
    if last:
        row = row // padded[3] * channels
    elif 4 * prod(int(n) for n in weight.source.shape) > DENSE:
        return None
    most = (DEPTHWISE if last else DENSE) // row - reach
    whole = [n for n in range(1, rows + 1) if rows % n == 0 and (n - 1) * stride <= most]
    several = [n for n in whole if rows // n >= BANDS] or whole[:1]
    return Band(several[-1], bool(last)) if several else None


def cut(sch: Any, pad: Any, main: Any, out: Any, way: Band, tile: tuple[int, int, Sequence[int]]) -> None:
    """``out`` (the block that makes the result, NHWC) in bands and tiles, ``main`` and ``pad`` computed in them.
    ``tile``: lanes, words, and sizes of a tile along rows and columns."""
    lanes, words, (tall, wide) = tile
    batch, height, width, channels = sch.get_loops(out)
    bands, height = sch.split(height, [None, way.rows])
    above, rows = sch.split(height, [None, tall])
    left, columns = tiled(sch, width, wide)
    vectors, vector = sch.split(channels, [None, lanes])
    far, near = tiled(sch, vectors, words)
    if way.depthwise:
        around, tiles = [batch, bands, far], [above, left]
    else:
        around, tiles = [batch, bands], [far, above, left]
    sch.reorder(*around, *tiles, rows, columns, near, vector)
    task = sch.fuse(*around)
    sch.parallel(task)
    sch.compute_at(main, tiles[-1], preserve_unit_loops=True)
    sch.compute_at(pad, task, preserve_unit_loops=True)
    copied = sch.get_loops(pad)[-1]
    extent = getattr(sch.get(copied).extent, "value", 0)  # an expression where channels that are copied vary in number
    if way.depthwise and extent and extent % lanes == 0:
        sch.vectorize(sch.split(copied, [None, lanes])[1])
    elif not way.depthwise:  # of whole rows: zeros at their ends, and a copy between that asks nothing
        partition(sch, copied)
    for loop in (rows, columns, near):
        sch.unroll(loop)
    sch.vectorize(vector)
