"""What it costs to move channels about, and what it costs to compute with more of them."""

from __future__ import annotations

from dataclasses import dataclass

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
    "torch": Prices(call=3.0, slice=80.0, gather=80.0, pad=120.0, concat=80.0, mac=23.5, views=True, fused=False),
    "onnx": Prices(call=1.0, slice=83.0, gather=86.0, pad=87.0, concat=120.0, mac=18.6, views=False, fused=False),
    "tvm": Prices(call=1.0, slice=130.0, gather=390.0, pad=130.0, concat=130.0, mac=20.5, views=False, fused=True),
}
"""By target, on one thread; ``python -m benchmarks.prices`` measures them anew. Those of onnx were measured
so, on a busy machine. Of torch, copies alone took 25 microseconds per megabyte; 80 is a guess for copies in
a network, whose data is not in the caches. Of TVM, pads and multiply-accumulates were measured.

What is free was read off the targets' own code. ONNX Runtime runs Slice as a kernel that copies. TVM, with
channels last, makes a slice a kernel of its own before a convolution, but part of the kernel where BatchNorm,
an activation or a concatenation comes next; a gather is three kernels (transpose, take, transpose), so its
price is that of three copies.
"""
