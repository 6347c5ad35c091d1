"""No correction leaves a network further from the original than the cut alone did, on the calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..calibration.outputs import finite
from ..ir.host import Array, Host
from ..ir.program import Program
from ..pipeline.compare import PIECE
from ..pipeline.correction import Correct

SHARES = (0.5, 0.25, 0.125)
"""How much of a correction is tried where the whole is too much: what is best for every layer by itself need
not be so for the network."""


Pairs = Iterable[tuple[Sequence[Array], Sequence[Array]]]
"""Per batch the original's outputs, and another network's."""


@dataclass(frozen=True)
class Errors:
    """See Distance.share: of the network ``corrected`` as a whole, and of the cut ``alone``, or as much of that as
    shows that it is further away."""

    corrected: float
    alone: float


def no_worse(program: Program, correction: Correct, known: Errors | None = None) -> tuple[Correct, str]:
    """The correction, or as much of it as leaves the outputs nearest to the original's where the whole takes
    them further away than they are without; then also what to say of it. ``known``: the errors over the calibration
    data, where the method that made the correction has seen them."""
    if not correction:
        return correction, ""
    if known is None:
        known = errors(_pairs(program, correction.apply(program).host), _pairs(program, program.host))
    plain, whole = known.alone, known.corrected
    if whole <= plain:
        return correction, ""
    parts = [_part(program.host, correction, share) for share in SHARES]
    tried = [_distance(_pairs(program, part.apply(program).host)).share() for part in parts]
    best = int(np.nanargmin([*tried, plain])) if not np.isnan(plain) else len(parts)
    used = f"{SHARES[best]:g} of it is used" if best < len(parts) else "none of it is used"
    note = f"`compensate`: the correction would leave an error of {whole:.3g}, the cut alone {plain:.3g}: {used}"
    return (*parts, Correct())[best], note


def further(program: Program, correction: Correct, by: str) -> str:
    """What to say of a correction ``by`` a method that promises no smaller error, where it leaves a larger one."""
    known = errors(_pairs(program, correction.apply(program).host), _pairs(program, program.host))
    if not correction or known.corrected <= known.alone:
        return ""
    return (
        f"`compensate{{by={by}}}` promises no smaller error: on the calibration data it leaves {known.corrected:.3g}, "
        f"and there was {known.alone:.3g} without it; `compensate` (by=lsq) never leaves more than there was"
    )


def _part(host: Host, correction: Correct, share: float) -> Correct:
    """The way from what the weights and biases are to what they would be, walked so far."""
    weights = {}
    for name, new in correction.weights.items():
        given = host.parameter(name)
        old = given.astype(np.float64)
        weights[name] = (old + share * (new - old)).astype(given.dtype).astype(new.dtype)  # as hosts round
    bias = {name: replace(a, add=tuple(share * x for x in a.add)) for name, a in correction.bias.items()}
    return Correct(weights, bias)


def _pairs(program: Program, host: Host) -> Pairs:
    return ((program.source.run(batch), host.run(batch)) for batch in program.data)


def errors(corrected: Pairs, alone: Pairs) -> Errors:
    """Of both networks. The cut alone is mostly much further away, and is run no longer than until it is."""
    whole, plain = _distance(corrected), Distance()
    for original, made in alone:
        plain.add(original, made)
        if plain.share(whole.energy) > whole.share():
            break
    return Errors(whole.share(), plain.share(whole.energy))


def _distance(pairs: Pairs) -> Distance:
    found = Distance()
    for original, made in pairs:
        found.add(original, made)
    return found


class Distance:
    """The squared error of a network's outputs as a share of the original's squares (``energy``, by output): the mean
    over outputs that are as wide as they were."""

    def __init__(self) -> None:
        self.energy, self._squares = dict[int, float](), dict[int, float]()

    def add(self, original: Sequence[Array], made: Sequence[Array]) -> None:
        """The outputs for one batch more."""
        for k, (theirs, ours) in enumerate(zip(original, made, strict=True)):
            if theirs.dtype.kind == "f":
                comparable, parts = ours.shape == theirs.shape, range(0, theirs.size, PIECE)
                for at in (slice(first, first + PIECE) for first in parts):  # logits of a vocabulary are many
                    y = finite(theirs.reshape(-1)[at])
                    self.energy[k] = self.energy.get(k, 0.0) + float(np.square(y).sum())
                    if comparable:
                        off = finite(ours.reshape(-1)[at]) - y
                        self._squares[k] = self._squares.get(k, 0.0) + float(np.square(off).sum())

    def share(self, energy: Mapping[int, float] | None = None) -> float:
        """``energy``: that of all batches, where there are more than were added."""
        shares = [square / ((energy or self.energy)[k] or 1.0) for k, square in self._squares.items()]
        return float(np.mean(shares)) if shares else 0.0
