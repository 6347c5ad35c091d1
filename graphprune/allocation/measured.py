"""What the outputs lose without some channels and branches, once the rest is repaired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..axes.dim import find
from ..calibration.batches import samples, some
from ..calibration.held_back import hold_back
from ..calibration.outputs import Outputs, by_place, compared, distortion
from ..calibration.processes import gathered, mine
from ..ir.facts import Groups, Keep
from ..ir.host import Array, Batch, Host
from ..ir.program import Program
from ..pipeline.bypass import Bypass
from ..pipeline.factoring import ranks, undecided
from ..pipeline.recipe import Recipe
from .repaired import Gone, Repaired

SAMPLES, SAMPLES_BYTES = 24, 1 << 22
"""At most so many samples of the data, and no further batch once they take so much."""


@dataclass(frozen=True)
class Made:
    """What a network loses, and what of it went beside channels."""

    lost: float
    opened: str


@dataclass(frozen=True)
class Measured:
    """``batches`` of the data, this process's, and what the outputs are for those of all. Where there are several kinds
    of groups, nothing is fitted to those samples: a fit of a wide layer to few samples is nearer to them than to any
    others, and the narrower the layer the less, so that kinds would not compare."""

    repaired: Repaired
    batches: Sequence[Batch]
    whole: Outputs
    last: Sequence[Batch]  # all that nothing was fitted to, for the last choices, which are few
    told: str  # of these, for remarks

    @classmethod
    def of(cls, program: Program, groups: Groups) -> Measured:
        inputs, outputs = program.graph.inputs, compared(program.graph)
        rest, held = hold_back(program) if len(kinds(program, groups)) > 1 else (program, ())
        batches = some(held or program.data, inputs, SAMPLES, SAMPLES_BYTES)
        own = mine(batches)
        whole = gathered([program.host.watch(batch, outputs) for batch in own], len(batches))
        # the graph is the program's own: groups know its dims
        fitted = Repaired.of(program, groups, rest.data if held else program.data)
        last = list(held or batches)
        told = f"{sum(map(samples, last))} samples{' that nothing was fitted to' if held else ''}"
        return cls(fitted, own, whole, last, told)

    def lost(self, gone: Gone, known: Sequence[Mapping[str, Array]] | None = None) -> float:
        """The mean squared change of the outputs, as a share of their variance. ``known``: per batch, what the ops
        before the first that changes make."""
        return self._lost(self.repaired.without(gone), known)

    def made(self, program: Program, keep: Keep) -> Made:
        """As ``lost``, of the network that is cut and fitted as a whole to what layers were fitted to here."""
        begun = program.seeing(self.repaired.data).learn(keep)
        for step in Recipe.parse("propagate,compensate").steps:
            begun = step.run(begun)
        own = mine(self.last)
        whole, seen = (
            gathered([by_place(one.host.watch(batch, names), names) for batch in own], len(self.last))
            for one, names in ((program, compared(program.graph)), (begun, compared(begun.graph)))
        )
        gone = sum(len(edit.branches) for edit in begun.plan.of(Bypass))
        factored = len(ranks(begun))
        opened = f"{gone} branches go and {factored} layers become two"
        return Made(distortion(whole, seen), opened)

    def along(
        self, name: str, order: Array, stops: Sequence[int], known: Sequence[Mapping[str, Array]]
    ) -> dict[int, float]:
        """What is lost without the first so many of a group's channels, in that order: one copy serves all ``stops``,
        which grow."""
        found, host, before = dict[int, float](), None, dict[str, Array]()
        for stop in stops:
            gone = {name: order[:stop]}
            host = self.repaired.without(gone, host, before)
            found[stop], before = self._lost(host, known), gone
        return found

    def _lost(self, host: Host, known: Sequence[Mapping[str, Array]] | None) -> float:
        names = list(self.whole[0])
        return distortion(self.whole, gathered(_watched(host, self.batches, names, known), len(self.whole)))


def _watched(
    host: Host, batches: Sequence[Batch], names: Sequence[str], known: Sequence[Mapping[str, Array]] | None
) -> list[Mapping[str, Array]]:
    return [host.watch(batch, names, known[k] if known else None) for k, batch in enumerate(batches)]


def kinds(program: Program, groups: Groups) -> dict[str, set[str]]:
    """The names of those that are branches, ranks, and others, which are called channels, as far as there are any."""
    dims = {find(rank.dim) for rank in undecided(program)}
    found: dict[str, set[str]] = {}
    for group in groups:
        kind = "branches" if group.branches else "ranks" if group.dim in dims else "channels"
        found.setdefault(kind, set()).add(group.name)
    return found
