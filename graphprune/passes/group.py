"""group: find what lives or dies together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..coupling.groups import find_groups
from ..coupling.places import PLACES, places
from ..coupling.streams import streams
from ..errors import ModelError, RecipeError, nearest
from ..ir.facts import Frozen, Groups
from ..ir.graph import Graph
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
    places: str = ""  # several by `|`: stream (between branches), heads, widths (of heads), experts, inner (the rest)
    states: str = ""  # inputs, named likewise, whose widths may be cut with all that has them: the interface changes

    def __post_init__(self) -> None:
        for one in self._places():
            if one not in PLACES:
                raise RecipeError(f"`group`: `places` cannot be `{one}`", nearest(one, PLACES))

    def settings(self) -> dict[str, Any]:
        """As ``find_groups`` takes them."""
        names = ("freeze", "only", "states")
        return {
            "normalised": self.normalised,
            **{name: [one for one in getattr(self, name).split("|") if one] for name in names},
        }

    def run(self, program: Program) -> Program:
        groups = self._there(find_groups(program.graph, **self.settings()), program.graph)
        if not groups.groups:
            raise self._nothing(groups, program.graph)
        return program.learn(replace(groups, made=self.text()))

    def _nothing(self, groups: Groups, graph: Graph) -> ModelError:
        """First of all names what was not left out by the options."""
        if not graph.parameters:
            return ModelError(
                "nothing can be pruned: the network has no weights",
                "is it the right one? Weights that are computed while it runs are no parameters",
            )
        anyway = {dim.name for dim in find_groups(graph, **{**self.settings(), "freeze": [], "only": []}).frozen}
        frozen = sorted({(dim.name not in anyway, f"{dim.name}: {dim.reason}") for dim in groups.frozen})
        hint = "`graphprune inspect` lists every frozen dim and why; `group{states=NAMES}` cuts widths of inputs too"
        centred = (norm.kind == "layer_norm" for stream in streams(graph) for norm in stream.norms)
        if "stream" in self._places() and any(centred):
            hint = "`rms` before `group` opens a stream that LayerNorms read; `graphprune inspect` lists what is frozen"
        return ModelError(
            f"nothing can be pruned: all {len(groups.frozen)} dims are frozen"
            + "".join(f"\n    {reason}" for _, reason in frozen[:5]),
            hint,
        )

    def _places(self) -> list[str]:
        return [one for one in self.places.split("|") if one]

    def _there(self, groups: Groups, graph: Graph) -> Groups:
        """Without those that lie elsewhere."""
        if not self.places:
            return groups
        at = places(graph)
        where = {group: at.get(group.dim, "inner") for group in groups}
        stay = tuple(group for group in groups if where[group] in self._places())
        gone = (group for group in groups if where[group] not in self._places())
        frozen = [Frozen(group.name, group.size, f"{where[group]}: not among `places`") for group in gone]
        return replace(groups, groups=stay, frozen=(*groups.frozen, *frozen))
