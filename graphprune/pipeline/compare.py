"""Two models side by side: the same up to rounding, or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.host import Array, Batch, Host

DRAWS = 3
SLACK = 4
"""How many times the spread of a model's own arithmetic may be put down to rounding."""
LIMIT = 1e-2
"""More is never put down to rounding."""
PIECE = 1 << 22
"""Numbers that are compared at once, where there may be many: a large weight, logits of a vocabulary."""


@dataclass(frozen=True)
class Check:
    """One comparison; ``error`` is max |a - b| / max |a| over all outputs and inputs tried. ``spread``: where
    the error is above the usual tolerance, what the reference's own arithmetic leaves open in that output;
    ``tolerance`` is then ``SLACK`` times that. ``unmoved``: the numbers of outputs that no weight can be seen in, since
    they are the same for all inputs tried."""

    what: str
    error: float
    tolerance: float
    spread: float | None = None
    unmoved: tuple[int, ...] = ()

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance

    @property
    def noise(self) -> str:
        """For messages, behind the tolerance."""
        return f"; rounding the weights moves that output by {self.spread:.3g}" if self.spread else ""


def compare(
    what: str,
    expected: Sequence[Sequence[Array]],
    found: Sequence[Sequence[Array]],
    usual: float,
    reference: Host,
    batches: Sequence[Batch],
) -> Check:
    """The comparison of outputs, per batch and output; the one that is worst for its tolerance.

    ``reference``: the model that ``expected`` is of, ``batches`` its inputs; it is run again, to see what its own
    arithmetic leaves open, only where the usual tolerance is not held.
    """
    gaps = [
        relative(a, b) for batch, other in zip(expected, found, strict=True) for a, b in zip(batch, other, strict=True)
    ]
    worst = max(gaps, default=0.0)
    if worst <= usual:
        return Check(what, worst, usual)
    noise = [own for outputs in spread(reference, batches) for own in outputs]
    checks = [Check(what, gap, max(usual, min(SLACK * own, LIMIT)), own) for gap, own in zip(gaps, noise, strict=True)]
    return max(checks, key=lambda check: check.error / check.tolerance)


def relative(a: Array, b: Array) -> float:
    """max |a - b| / max |a|; infinite where the shapes differ, or what is infinite or no number."""
    if a.shape != b.shape:
        return float("inf")
    if a.dtype.kind not in "fc":
        return 0.0 if np.array_equal(a, b) else float("inf")
    fine = np.isfinite(a)
    if not np.array_equal(fine, np.isfinite(b)) or not np.array_equal(a[~fine], b[~fine], equal_nan=True):
        return float("inf")
    top = float(np.abs(a[fine]).max(initial=0.0))
    wide = a[fine].astype(np.complex128 if a.dtype.kind == "c" else np.float64)
    gap = float(np.abs(wide - b[fine]).max(initial=0.0))
    return gap / top if top else gap


def unmoved(outputs: Sequence[Sequence[Array]], batches: Sequence[Batch]) -> tuple[int, ...]:
    """The outputs of floats, by number, that are zero throughout, or the same for inputs that are not."""
    first = batches[0]
    differ = any(not np.array_equal(a, b) for other in batches[1:] for a, b in zip(first, other, strict=True))
    found = []
    for number, values in enumerate(zip(*outputs, strict=True)):
        same = differ and all(np.array_equal(values[0], other) for other in values[1:])
        if values[0].dtype.kind in "fc" and values[0].size and (same or not any(x.any() for x in values)):
            found.append(number)
    return tuple(found)


def spread(host: Host, batches: Sequence[Batch], seed: int = 0) -> list[list[float]]:
    """Per batch and output, the largest relative change over a few copies of the model in which every
    floating-point weight is off by one rounding of its dtype, up or down at random. Zeros stay zeros.

    A kernel that adds in another order is off by as much; saturated outputs (a sigmoid far from zero) move by
    more than the usual tolerance.
    """
    before = [host.run(batch) for batch in batches]
    most = [[0.0] * len(outputs) for outputs in before]
    weights = [value.name for value in host.lift().parameters.values() if value.dtype.startswith(("float", "bfloat"))]
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        other = host.copy()
        for name in weights:
            weight = host.parameter(name)
            step = np.finfo(weight.dtype).eps
            other.set_parameter(name, weight * (1 + step * rng.choice([-1, 1], weight.shape)).astype(weight.dtype))
        for found, batch, outputs in zip(most, batches, before, strict=True):
            moved = map(relative, outputs, other.run(batch))
            found[:] = map(max, found, moved)
    return most
