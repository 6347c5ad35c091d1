"""No correction leaves a network further from the original than the cut alone did, on the calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..ir.host import Host
from ..ir.program import Program
from ..pipeline.correction import Correct

SHARES = (0.5, 0.25, 0.125)
"""How much of a correction is tried where the whole is too much: what is best for every layer by itself need
not be so for the network."""


def no_worse(program: Program, correction: Correct) -> tuple[Correct, str]:
    """The correction, or as much of it as leaves the outputs nearest to the original's where the whole takes
    them further away than they are without; then also what to say of it."""
    if not correction:
        return correction, ""
    plain, whole = _errors(program, [program.host, correction.apply(program).host])
    if whole <= plain:
        return correction, ""
    parts = [_part(program.host, correction, share) for share in SHARES]
    errors = [*_errors(program, [part.apply(program).host for part in parts]), plain]
    best = int(np.nanargmin(errors)) if not np.isnan(plain) else len(parts)
    used = f"{SHARES[best]:g} of it is used" if best < len(parts) else "none of it is used"
    note = f"`compensate`: the correction would leave an error of {whole:.3g}, the cut alone {plain:.3g}: {used}"
    return (*parts, Correct())[best], note


def _part(host: Host, correction: Correct, share: float) -> Correct:
    """The way from what the weights and biases are to what they would be, walked so far."""
    weights = {}
    for name, new in correction.weights.items():
        old = host.parameter(name).astype(np.float64)
        weights[name] = (old + share * (new - old)).astype(new.dtype)
    bias = {name: replace(a, add=tuple(share * x for x in a.add)) for name, a in correction.bias.items()}
    return Correct(weights, bias)


def _errors(program: Program, hosts: Sequence[Host]) -> list[float]:
    """Per host, the squared error of its outputs as a share of the original's squares: the mean over outputs that
    are as wide as they were."""
    energy: dict[int, float] = {}
    squares: list[dict[int, float]] = [{} for _ in hosts]
    for batch in program.data:
        original = {k: y.astype(np.float64) for k, y in enumerate(program.source.run(batch)) if y.dtype.kind == "f"}
        for k, y in original.items():
            energy[k] = energy.get(k, 0.0) + float(np.square(y).sum())
        for own, host in zip(squares, hosts, strict=True):
            made = host.run(batch)
            for k, y in original.items():
                if made[k].shape == y.shape:
                    own[k] = own.get(k, 0.0) + float(np.square(made[k] - y).sum())
    return [float(np.mean([own[k] / (energy[k] or 1.0) for k in own])) if own else 0.0 for own in squares]
