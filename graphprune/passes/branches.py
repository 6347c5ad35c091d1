"""branches: residual branches as groups of their own, kept or not."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from ..coupling.branches import Residual, blocks, gate, residuals, streams
from ..coupling.names import matching
from ..errors import ModelError, RecipeError, nearest
from ..ir.facts import Frozen, Group, Groups
from ..ir.program import Program
from ..pipeline.base import Pass

_END = re.compile(r"(first|last):([1-9]\d*)")
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
        for item in self._kept():
            if item.startswith(("first:", "last:")) and not _END.fullmatch(item):
                raise RecipeError(f"`branches`: keep={item} is no count of branches", "write first:1 or more")

    def run(self, program: Program) -> Program:
        """What may go is found in the graph, see coupling.branches; nothing of the model changes. Groups of
        branches that are known already are found anew. Where no branch may go that is a note; with ``alone``, as
        nothing is left then, it raises ModelError. Raises RecipeError for names of ``keep`` that match nothing."""
        groups, graph = program.fact(Groups).channels, program.graph
        found, frozen = residuals(graph)
        asked = self._named([*(one.name for one in found), *(one.name for one in frozen)])
        gates: list[Group] = []
        stay, longest = list(frozen), 0
        for run in streams(found, graph):
            units = blocks(run) if self.of == "block" else [[one] for one in run if self._wanted(one)]
            reasons = [self._asked(unit, asked, k, len(units)) for k, unit in enumerate(units)]
            longest = max(longest, len(units))
            for k in range(max(len(units) - self.span + 1, 0)):
                one = gate(graph, [part for unit in units[k : k + self.span] for part in unit])
                reason = next((reason for reason in reasons[k : k + self.span] if reason), None)
                if reason is None:
                    gates.append(one)
                else:
                    stay.append(Frozen(one.name, 1, f"asked for by `{reason}`"))
        if not gates:
            none, hint = self._none(stay, longest)
            if self.alone:
                raise ModelError(none, hint)
            alone = replace(groups, made=_before(groups.made))
            return program.learn(alone).note(f"`{self.text()}`: {none.partition(chr(10))[0]}; channels go alone")
        if self.alone:
            stay += [Frozen(group.name, group.size, "`branches{alone=true}` leaves channels alone") for group in groups]
            groups = replace(groups, groups=())
        made = ",".join(part for part in (_before(groups.made), self.text()) if part)
        return program.learn(
            replace(groups, groups=(*groups, *gates), frozen=(*groups.frozen, *stay), made=made if groups.made else "")
        )

    def _wanted(self, one: Residual) -> bool:
        return self.of == "branch" or one.attends == (self.of == "attention")

    def _kept(self) -> list[str]:
        return [item for item in self.keep.split(",") if item]

    def _named(self, names: Sequence[str]) -> Set[tuple[str, str]]:
        """Each name in ``keep`` with each branch that it matches. Raises RecipeError for one that matches none."""
        known = [{name, name.removeprefix("branch:")} for name in names]
        return {
            (item, name)
            for item in self._kept()
            if not _END.fullmatch(item)
            for name, hit in zip(names, matching([item], known, "residual branch"), strict=True)
            if hit
        }

    def _asked(self, unit: Sequence[Residual], named: Set[tuple[str, str]], k: int, count: int) -> str | None:
        """What of ``keep`` makes a unit, number ``k`` of ``count``, stay."""
        for item in self._kept():
            ends = _END.fullmatch(item)
            if ends is None:
                asked = any((item, one.name) in named for one in unit)
            else:
                asked = k < int(ends[2]) if ends[1] == "first" else k >= count - int(ends[2])
            if asked:
                return item
        return None

    def _none(self, stay: Sequence[Frozen], longest: int) -> tuple[str, str | None]:
        """Why no branch can go, ``longest`` the most units that follow one another; and what to do."""
        if stay:
            why = "".join(f"\n    {one.name}: {one.reason}" for one in stay[:5])
            return (
                f"no branch can go: {len(stay)} are frozen{why}",
                "`graphprune inspect` lists every frozen branch and why",
            )
        if longest:
            return f"no branch can go: span={self.span}, and no more than {longest} follow one another", None
        kind = {"attention": "attends", "other": "does not attend"}.get(self.of)
        return f"no branch can go: the network has no residual branch{f' that {kind}' if kind else ''}", None


def _before(made: str) -> str:
    """The passes that found the channels, without one that found branches."""
    return made.partition(",branches")[0]
