"""branches: residual branches as groups of their own, kept or not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

from ..coupling.branches import Residual, blocks, gate, residuals, streams
from ..errors import ModelError, RecipeError, nearest
from ..ir.facts import Frozen, Group, Groups
from ..ir.program import Program
from ..pipeline.base import Pass

UNITS = ("branch", "block", "attention", "other")


@dataclass(frozen=True)
class Branches(Pass):
    """Offer residual branches as well: each is a group of size one, and goes or stays."""

    name = "branches"
    needs = (Groups,)
    gives = (Groups,)

    of: str = "branch"  # what goes together: a branch (attention: of these alone, other: of the rest alone), or a block
    # (an attention and what follows it, until the next)
    span: int = 1  # so many of these in a row, wherever they begin
    keep: str = ""  # what must stay: first:4 and last:2 of each stream, names (`*` allowed), separated by `,`
    alone: bool = False  # no channels beside them

    def __post_init__(self) -> None:
        if self.of not in UNITS:
            raise RecipeError(f"`branches`: `of` cannot be `{self.of}`", nearest(self.of, UNITS))
        if self.span < 1:
            raise RecipeError(f"`branches`: span={self.span} is no number of branches", "give 1 or more")

    def run(self, program: Program) -> Program:
        """What may go is found in the graph, see coupling.branches; nothing of the model changes. Groups of
        branches that are known already are found anew. Raises ModelError where no branch may go."""
        groups, graph = program.fact(Groups).channels, program.graph
        found, frozen = residuals(graph)
        gates: list[Group] = []
        stay = list(frozen)
        for run in streams(found, graph):
            units = blocks(run) if self.of == "block" else [[one] for one in run if self._wanted(one)]
            reasons = [self._asked(unit, k, len(units)) for k, unit in enumerate(units)]
            for k in range(max(len(units) - self.span + 1, 0)):
                one = gate(graph, [part for unit in units[k : k + self.span] for part in unit])
                reason = next((reason for reason in reasons[k : k + self.span] if reason), None)
                if reason is None:
                    gates.append(one)
                else:
                    stay.append(Frozen(one.name, 1, f"asked for by `{reason}`"))
        if not gates:
            raise ModelError(
                f"no branch can go: {len(stay)} are frozen"
                + "".join(f"\n    {one.name}: {one.reason}" for one in stay[:5]),
                "`graphprune inspect` lists every frozen branch and why",
            )
        if self.alone:
            stay += [Frozen(group.name, group.size, "`branches{alone=true}` leaves channels alone") for group in groups]
            groups = replace(groups, groups=())
        made = ",".join(part for part in (_before(groups.made), self.text()) if part)
        return program.learn(
            replace(groups, groups=(*groups, *gates), frozen=(*groups.frozen, *stay), made=made if groups.made else "")
        )

    def _wanted(self, one: Residual) -> bool:
        return self.of == "branch" or one.attends == (self.of == "attention")

    def _asked(self, unit: Sequence[Residual], k: int, count: int) -> str | None:
        """What of ``keep`` makes a unit, number ``k`` of ``count``, stay."""
        for item in filter(None, self.keep.split(",")):
            ends = re.fullmatch(r"(first|last):(\d+)", item)
            if ends is None:
                asked = any(fnmatch(one.name, item) or fnmatch(one.name, f"branch:{item}") for one in unit)
            else:
                asked = k < int(ends[2]) if ends[1] == "first" else k >= count - int(ends[2])
            if asked:
                return item
        return None


def _before(made: str) -> str:
    """The passes that found the channels, without one that found branches."""
    return made.partition(",branches")[0]
