"""To a latency: prices are what a model of the target says, and what follows from a choice is known once it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..axes.index import Indices
from ..cost.latency.model import LatencyModel
from ..errors import BudgetError
from ..ir.facts import Group, Groups, Keep, Losses, Scores
from ..ir.host import Array
from ..reorder.per_reader import Links
from .choice import Counts
from .fill import fill
from .knapsack import knapsack, lost
from .problem import Allocation, best
from .rd import measured_losses, rd

FOLLOWED = 6
"""Choices among readers, each with what the last one left of the layers that they read."""


@dataclass(frozen=True, kw_only=True)
class Timed(Allocation):
    """Milliseconds by ``model``. ``asked``: the budget, as it was asked for; ``left``: how many channels the groups
    have that follow from those chosen for."""

    model: LatencyModel
    asked: str
    left: Mapping[str, int] = field(default_factory=dict)

    def menu(self, group: Group) -> list[int]:
        return menu(self, group)

    def price(self, counts: Mapping[str, int]) -> float:
        return self.model.total_ms(self._everything(counts))

    def prices(self, counts: Mapping[str, int], name: str, options: Array) -> Array:
        same = (name, *(group.name for group in self.alike.get(name, ())))
        return self.model.prices(self._everything(counts), same, options)

    def own_prices(self, counts: Mapping[str, int], name: str, options: Array) -> Array:
        return self.prices(counts, name, options)

    @property
    def tables(self) -> None:
        """What an op takes depends on many groups, in no product of theirs."""
        return None

    def whole_layers(self, counts: Mapping[str, int]) -> frozenset[str]:
        return self.model.whole_layers(self._everything(counts))

    def _everything(self, counts: Mapping[str, int]) -> Mapping[str, int]:
        return {**self.left, **self.everyone(counts)}

    def cannot(self, least: float) -> BudgetError:
        model = self.model
        message = (
            f"latency={self.asked} cannot be reached on {model.target}: with every group at its floor "
            f"{least:.3g} ms remain of {model.whole_ms:.3g} ms ({least / model.whole_ms:.2f}x)"
        )
        if least >= model.whole_ms and any(edit.opens for edit in self.program.plan.edits):
            more = "what the recipe opened (hidden sizes, ranks) adds more than all that may go saves"
            return BudgetError(f"{message}, since {more}", "take a recipe that opens nothing, such as `auto`")
        return BudgetError(message, "lower `floor` or `grain`, or see `graphprune inspect` for what is frozen")


def menu(problem: Allocation, group: Group) -> list[int]:
    """The counts that a table has prices for: what floor and grain allow, and for axes so narrow that the floor is
    below the grain its halves, down to four."""
    if group.name in problem.given:
        return [problem.given[group.name]]
    halves, least = list[int](), max(4.0, problem.floor * group.size, group.least)
    half = problem.steps[group.name] / 2
    while half >= least and half % group.multiple == 0:
        halves.append(int(half))
        half /= 2
    narrower = (count for count in halves if count < group.size)  # an axis may have fewer than half the grain
    return sorted({*narrower, *Allocation.menu(problem, group)})


def within(problem: Timed, links: Links, *, distortion: bool) -> Keep:
    """What loses least within the budget, by measured ``distortion`` or by the scores that go, and as much more as
    still fits."""
    program, budget = problem.program, problem.budget
    if distortion and not program.knows(Losses):
        problem = replace(problem, program=program.learn(measured_losses(program, problem.each)))
    losses = lost(problem, {group.name: problem.menu(group) for group in problem.groups})
    found: Keep | None = None
    under = 0.0
    for _ in range(FOLLOWED if links.followers else 1):
        try:
            counts = (rd if distortion else knapsack)(problem)
            counts = fill(losses, problem.prices, problem.budget, counts)
        except BudgetError:
            if found is not None:
                break
            raise
        made = _with_followers(problem, links, counts)
        left = {name: len(kept) for name, kept in made.items()}
        total = problem.model.total_ms(left)
        if under < total <= budget * (1 + 1e-9) or found is None:
            found, under = Keep(made, whole=problem.model.whole_layers(left)), total if total <= budget else under
        following = {name: left[name] for name in links.followers if name in left}
        problem = replace(problem, left=following, budget=problem.budget * budget / total)
    assert found is not None
    return found


def _with_followers(problem: Timed, links: Links, counts: Counts) -> dict[str, Indices]:
    scores, left = problem.program.fact(Scores), problem.everyone(counts)

    def chosen(groups: Groups) -> dict[str, Indices]:
        return {group.name: best(scores[group], left[group.name]) for group in groups}

    return links.complete(chosen(problem.each.channels)) | chosen(problem.each.gates)
