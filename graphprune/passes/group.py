"""group: find what lives or dies together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..coupling.groups import find_groups
from ..errors import ModelError
from ..ir.facts import Groups
from ..ir.program import Program
from ..pipeline.base import Pass


@dataclass(frozen=True)
class Group(Pass):
    """Find the dims that can be pruned, with every parameter axis that goes along."""

    name = "group"
    gives = (Groups,)

    normalised: bool = False  # also dims that LayerNorm or GroupNorm normalise across (not exact)
    freeze: str = ""  # groups, layers and parameters to leave alone: names, `*` allowed, separated by `|`
    only: str = ""  # layers (groups, parameters) whose outputs may go, and no others
    states: str = ""  # inputs, named likewise, whose widths may be cut with all that has them: the interface changes

    def settings(self) -> dict[str, Any]:
        """As ``find_groups`` takes them."""
        names = ("freeze", "only", "states")
        return {
            "normalised": self.normalised,
            **{name: [one for one in getattr(self, name).split("|") if one] for name in names},
        }

    def run(self, program: Program) -> Program:
        groups = find_groups(program.graph, **self.settings())
        if not groups.groups:
            reasons = sorted({f"{dim.name}: {dim.reason}" for dim in groups.frozen})[:5]
            raise ModelError(
                f"nothing can be pruned: all {len(groups.frozen)} dims are frozen"
                + "".join(f"\n    {reason}" for reason in reasons),
                "`graphprune inspect` lists every frozen dim and why; `group{states=NAMES}` cuts widths of inputs too",
            )
        return program.learn(replace(groups, made=self.text()))
