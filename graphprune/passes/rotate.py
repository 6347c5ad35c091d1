"""rotate: the residual stream in the directions of its variance, so that few of them hold most of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..calibration.least_squares import not_finite
from ..coupling.streams import Stream, streams, untied
from ..errors import ModelError, RecipeError, nearest
from ..ir.host import Array, Host
from ..ir.program import Program
from ..pipeline.base import Pass
from ..pipeline.rotation import Rotate as Rotation
from ..pipeline.rotation import parted, stays

PER = {"stream": "one rotation for a whole stream", "block": "one between any two sums, matrices on the shortcuts"}


@dataclass(frozen=True)
class Rotate(Pass):
    """Turn residual streams below RMS norms into their principal directions: exact until one goes."""

    name = "rotate"
    rewrites = True
    opens = True

    per: str = "stream"  # one rotation a stream; or block: one between any two residual sums, matrices on shortcuts
    untie: bool = False  # an embedding whose weight the head has too becomes one of its own: it is larger then

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise RecipeError(f"`rotate`: `per` cannot be `{self.per}`", nearest(self.per, PER))

    @classmethod
    def choices(cls) -> Mapping[str, Mapping[str, str]]:
        return {"per": PER}

    def wants_data(self) -> bool:
        return True

    def run(self, program: Program) -> Program:
        """One orthogonal Q a stream: writers Q' W, readers W diag(gamma) Q, norms' weights one. Its columns are the
        eigenvectors of the second moments of what the norms make, without their weight, over all norms and the
        calibration data, float64 (Ashkboos et al., SliceGPT, 2024, sections 3.2 and 3.3, with one Q for all blocks, so
        that the shortcuts need no matrix). With ``per=block`` what is between two residual sums has one of its own, and
        what a sum adds to goes through Q_l+1' Q_l on the shortcut, a layer that counts (section 3.3, figure 4); the
        first sum and what is before it share one. The sign of each makes its largest entry positive. A stream that
        cannot be rotated stays, with a note. Raises ModelError where none can."""
        made, notes = self._fitted(program)
        return made.apply(program).note(*notes)

    def _fitted(self, program: Program) -> tuple[Rotation, list[str]]:
        host, notes = untied(program.host, "rms_norm") if self.untie else program.host, list[str]()
        found = list[Stream]()
        for stream in streams(host.lift()):
            if why := stays(stream):
                notes.append(f"`rotate` leaves {stream.norms[0].where if stream.norms else 'a norm'} as it is: {why}")
            else:
                found.append(stream)
        if not found:
            raise ModelError(
                "no residual stream can be rotated" + "".join(f"\n    {note}" for note in notes[:5]),
                "those below RMS norms can, which nothing else reads",
            )
        parts = tuple(stream.name for stream in found) if self.per == "block" else ()
        if parts:
            norms, host = {norm.name for stream in found for norm in stream.norms}, parted(host, parts)
            found = [stream for stream in streams(host.lift()) if norms & {norm.name for norm in stream.norms}]
            if len(found) == len(parts):
                notes.append("`rotate{per=block}`: no stream has a second sum behind a norm, one rotation each is all")
        moments = _moments(host, found, program)
        made = {stream.name: _principal(moments.pop(stream.name)) for stream in found}
        return Rotation(made, self.untie, parts), notes


def _moments(host: Host, found: list[Stream], program: Program) -> dict[str, Array]:
    """Of each stream the second moments of what its norms make of it, each norm to the same weight."""
    sums = {stream.name: np.zeros((int(stream.dim.size),) * 2) for stream in found}
    read = {norm.x.name for stream in found for norm in stream.norms}
    for number, batch in enumerate(program.data):
        program.progress("second moments", number, len(program.data))
        seen = host.watch(batch, sorted(read))
        for stream in found:
            for norm in stream.norms:
                x = seen[norm.x.name].astype(np.float64)
                x = x.reshape(-1, x.shape[-1])
                x = x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.eps)
                sums[stream.name] += x.T @ x
                if not np.isfinite(np.diag(sums[stream.name])).all():
                    raise not_finite(norm.where)
    return sums


def _principal(moment: Array) -> Array:
    _, vectors = np.linalg.eigh(moment)
    vectors = vectors[:, ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
    made: Array = vectors * np.where(largest < 0, -1.0, 1.0)
    return made
