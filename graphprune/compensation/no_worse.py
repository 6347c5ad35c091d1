"""No correction leaves a network further from the original than the cut alone did, on the calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..ir.host import Array, Host
from ..ir.program import Program
from ..pipeline.correction import Correct

SHARES = (0.5, 0.25, 0.125)
"""How much of a correction is tried where the whole is too much: what is best for every layer by itself need
not be so for the network."""


@dataclass(frozen=True)
class Errors:
    """See ``errors``: of the cut ``alone``, and with the whole ``corrected``."""

    alone: float
    corrected: float


def no_worse(program: Program, correction: Correct, known: Errors | None = None) -> tuple[Correct, str]:
    """The correction, or as much of it as leaves the outputs nearest to the original's where the whole takes
    them further away than they are without; then also what to say of it. ``known``: the errors over the calibration
    data, where the method that made the correction has seen them."""
    if not correction:
        return correction, ""
    if known is None:
        known = Errors(*_errors(program, [program.host, correction.apply(program).host]))
    plain, whole = known.alone, known.corrected
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
    return errors((program.source.run(batch), [host.run(batch) for host in hosts]) for batch in program.data)


def errors(batches: Iterable[tuple[Sequence[Array], Sequence[Sequence[Array]]]]) -> list[float]:
    """Of several networks the squared error of their outputs as a share of the original's squares: the mean over
    outputs that are as wide as they were. ``batches``: per batch the original's outputs, and those of every network."""
    energy: dict[int, float] = {}
    squares: list[dict[int, float]] = []
    for outputs, networks in batches:
        original = {k: y.astype(np.float64) for k, y in enumerate(outputs) if y.dtype.kind == "f"}
        squares = squares or [{} for _ in networks]
        for k, y in original.items():
            energy[k] = energy.get(k, 0.0) + float(np.square(y).sum())
        for own, made in zip(squares, networks, strict=True):
            for k, y in original.items():
                if made[k].shape == y.shape:
                    own[k] = own.get(k, 0.0) + float(np.square(made[k] - y).sum())
    return [float(np.mean([own[k] / (energy[k] or 1.0) for k in own])) if own else 0.0 for own in squares]
