"""What it costs to move channels about, and what it costs to compute with more of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError

MEGABYTE = 1e6


@dataclass(frozen=True)
class Prices:
    """Microseconds on one target: per op that is put in (``call``), per megabyte written by a slice, a
    gather, a pad or a concatenation, and per million multiply-accumulates."""

    call: float
    slice: float
    gather: float
    pad: float
    concat: float
    mac: float
    views: bool  # a slice of the channels of one sample is a view, not a copy
    fused: bool  # a slice is part of the element-wise op or concatenation behind it
    loads: bool  # any selection is part of the convolution behind it, which loads by index

    def moved(self, kind: str, size_bytes: float) -> float:
        """What one op of a kind costs that writes so many bytes."""
        per_megabyte: float = getattr(self, kind)
        return self.call + per_megabyte * size_bytes / MEGABYTE

    def free(self, batch: float, fuses: bool) -> bool:
        """Whether a run of channels is not copied. ``fuses``: an element-wise op or a concatenation takes it."""
        return (self.views and batch == 1) or (self.fused and fuses)

    def run(self, size_bytes: float, batch: float, fuses: bool) -> float:
        """A run of channels."""
        if self.free(batch, fuses):
            return 0.0 if self.fused else self.call
        return self.moved("slice", size_bytes)


PRICES = {
    "torch": Prices(
        call=8.2, slice=41.8, gather=41.8, pad=61.5, concat=19.4, mac=21.9, views=True, fused=False, loads=False
    ),
    "onnx": Prices(
        call=2.7, slice=71.5, gather=71.5, pad=91.6, concat=134.3, mac=18.3, views=False, fused=False, loads=False
    ),
    "tvm": Prices(
        call=0.3, slice=16.7, gather=83.2, pad=322.4, concat=100.2, mac=19.9, views=False, fused=True, loads=True
    ),
}
"""By target, on one thread of an AMD EPYC with AVX-512, 2026-11-21; ``python -m benchmarks.prices`` measures them
anew. Slices and gathers of onnx were 83.6 and 59.5 in that chain and 22 and 21 microseconds an op in a profile of
ResNet-18: they are taken to cost the same, their mean.

What is free was read off the targets' own code. ONNX Runtime runs Slice as a kernel that copies. TVM makes a
slice part of the kernel where BatchNorm, an activation or a concatenation comes next, and any selection part
of the convolution that reads it (backends.relax_select). In a concatenation it could load by index as well, but
not in vectors: with indices in place of runs DenseNet-121 took 110 ms instead of 45.
"""

MEASURED = ("call", "slice", "gather", "pad", "concat", "mac")


def read_prices(path: Path, target: str) -> Prices:
    """The prices of a target with what `benchmarks.prices --out` measured on a machine. Raises DataError for a
    file that has none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["prices"][target]
        prices = PRICES[target]
        return Prices(
            **{name: float(found[name]) for name in MEASURED},
            views=prices.views,
            fused=prices.fused,
            loads=prices.loads,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path}: no prices of target `{target}` ({type(error).__name__}: {error})"
        raise DataError(message, "`python -m benchmarks.prices --out` writes them") from error
