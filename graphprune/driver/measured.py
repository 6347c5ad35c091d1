"""The latencies that a report has: measured once, of what is handed out; every number that speaks of one is that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..backends.measure import Comparison, Runnable, beside
from ..backends.target import Target
from ..ir.program import Program
from ..pipeline.base import Progress

Measured = Mapping[str, Comparison]
"""By target, the original and what became of it."""

REACHED = 1.03
"""Measured over wanted that still counts as reached: what the measurement itself is uncertain by."""
NEAR = 0.97
"""Measured over wanted below which the report says why no more is taken."""


def latencies(
    source: Program,
    program: Program,
    targets: Sequence[Target],
    code: Mapping[str, Runnable],
    progress: Progress | None,
    threads: int = 1,
) -> dict[str, Comparison]:
    """The two side by side on each target that can be timed from here."""
    out = {}
    for number, one in enumerate(targets):
        if one.unmeasured():
            continue
        # A device behind RPC runs what is sent to it, not what this machine could load.
        after = one.runnable(program, threads=threads) if one.options().get("rpc") else code[one.label]
        if progress:
            progress(f"measure {one.label}", number, len(targets))
        out[one.label] = beside(one.runnable(source, threads=threads), after)
    return out


def worst(measured: Measured) -> str:
    """The target on which most is left of the original's time."""
    return max(measured, key=lambda name: measured[name].share)


def slower(measured: Measured) -> Iterator[str]:
    """A remark for each target on which the result takes longer than the original."""
    for name, one in measured.items():
        if one.slower:
            yield (
                f"SLOWER than the original on {name}: {one.before.median_ms:.3g} to {one.after.median_ms:.3g} ms "
                f"({one.share:.2f}x, give or take {one.error:.2f})"
            )


def settled(facts: Mapping[str, Any], found: Comparison) -> dict[str, Any]:
    """The facts of a search for a latency once its result was measured anew, beside the original. A goal that is a
    share is one of what the original took now, and all that the search predicted and measured on the way is told on
    that scale; of the result itself what was measured now."""
    whole, measured = found.before.median_ms, found.after.median_ms
    scale = whole / facts["whole_ms"]
    rounds = [{**one, **_scaled(one, scale)} for one in facts["rounds"]]
    rounds[facts["taken"]]["measured_ms"] = measured
    return {
        **facts,
        "whole_ms": whole,
        "goal_ms": facts["goal_ms"] * (1 if facts["absolute"] else scale),
        "predicted_ms": facts["predicted_ms"] * scale,
        "measured_ms": measured,
        "share_error": found.error,
        "rounds": rounds,
        "ops": [{**one, **_scaled(one, scale)} for one in facts["ops"]],
    }


def _scaled(one: Mapping[str, Any], scale: float) -> dict[str, float]:
    """What of a round or an op is on the scale of the network as the search measured it."""
    names = ("before_ms", "predicted_ms") if "op" in one else ("predicted_ms", "measured_ms")
    return {name: one[name] * scale for name in names if one[name] is not None}


def distance(facts: Mapping[str, Any]) -> Iterator[str]:
    """A remark where a latency was not reached, or noticeably less is taken, by the facts of the search."""
    goal, blind, rounds = facts["goal_ms"], facts["measured_ms"] is None, facts["rounds"]
    taken = facts["predicted_ms"] if blind else facts["measured_ms"]
    told = f"{taken:.3g} ms {'predicted' if blind else 'measured'} of {goal:.3g} ms"
    error = facts.get("share_error", 0.0) * facts["whole_ms"]
    if taken > REACHED * goal + 2 * error:
        yield (
            f"latency={facts['budget']}: NOT reached on {facts['target']} when measured at the end: {told} (give or "
            f"take {error:.2g}), though the search measured it within: compile on a quieter machine, or ask for less"
        )
    elif taken < NEAR * goal:
        step = "by the table one more step of any group exceeds it"
        often = f"{len(rounds)} rounds of choosing and measuring came no nearer"
        yield f"latency={facts['budget']}: {told}, for {often if facts['spent'] else step}"
