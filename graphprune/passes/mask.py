"""mask: choose the channels that survive, within a budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from dataclasses import dataclass
from math import ceil, floor, gcd, prod

import numpy as np

from ..costs import Cost, macs, params
from ..dims import PRODUCT, Dim, Indices, find, leaves
from ..errors import BudgetError, RecipeError, nearest
from ..facts import Group, Groups, Keep, Scores
from ..ir import Array, Program
from ..pipeline import Pass
from ..unconstrained import MODES, Links, loosen

Counts = dict[str, int]


@dataclass(frozen=True)
class Mask(Pass):
    """Keep the best channels: of each group alike (uniform), or over all groups (global)."""

    name = "mask"
    needs = (Groups, Scores)
    gives = (Keep,)

    channels: str = ""  # budget: what remains of the channels, such as 0.5x
    params: str = ""  # budget: what remains of the parameters
    macs: str = ""  # budget: what remains of the multiply-accumulates
    allocate: str = "uniform"  # uniform: the same share of every group; global: one threshold for all scores
    floor: float = 0.1  # the least share that any group keeps
    unconstrained: str = "no"  # readers: each reader keeps channels of its own; both: writers of a sum as well
    grain: int = 1  # survivors are rounded up to this multiple (of the whole axis)

    def __post_init__(self) -> None:
        if self.allocate not in ("uniform", "global"):
            raise RecipeError(
                f"`mask`: `allocate` cannot be `{self.allocate}`", nearest(self.allocate, ("uniform", "global"))
            )
        if self.unconstrained not in MODES:
            raise RecipeError(
                f"`mask`: `unconstrained` cannot be `{self.unconstrained}`", nearest(self.unconstrained, MODES)
            )
        if not 0 <= self.floor <= 1:
            raise BudgetError(f"`mask`: floor={self.floor} is not a share", "give a number from 0 to 1")
        if self.grain < 1:
            raise BudgetError(f"`mask`: grain={self.grain} is not a multiple", "give 1 or more")
        self.budget()

    def budget(self) -> tuple[str, float]:
        """The one budget given: its unit and the share that remains."""
        given = {unit: text for unit in ("channels", "params", "macs") if (text := getattr(self, unit))}
        if len(given) != 1:
            raise BudgetError(
                f"`mask` takes one budget, not {len(given)} ({', '.join(given) or 'none given'})",
                "channels=0.5x, params=0.5x or macs=0.5x: what remains",
            )
        unit, text = next(iter(given.items()))
        return unit, share(text, unit)

    def run(self, program: Program) -> Program:
        unit, remains = self.budget()
        if self.unconstrained != "no":
            program = loosen(program, writers=self.unconstrained == "both")
        scores, links = program.fact(Scores), Links(program.graph, program.fact(Groups))
        groups = links.free()
        cost = {"channels": _channels, "params": _params, "macs": _macs}[unit](program, groups)
        cost = links.priced(cost, scores, best)
        choose = self._uniform if self.allocate == "uniform" else self._global
        counts = choose(groups, scores, cost, remains * cost(), unit)
        keep = {group.name: best(scores[group], counts[group.name]) for group in groups}
        return program.learn(Keep(links.complete(keep)))

    def _survivors(self, group: Group, wanted: float, step: int) -> int:
        """How many channels remain of a group when ``wanted`` would do: floor and grain applied."""
        least = max(wanted, ceil(self.floor * group.size - 1e-9), 1)
        return min(group.size, ceil(ceil(least - 1e-9) / step) * step)

    def _uniform(self, groups: Groups, scores: Scores, cost: Cost, budget: float, unit: str) -> Counts:
        steps = _steps(groups, self.grain)

        def counts(ratio: float) -> Counts:
            return {g.name: self._survivors(g, floor(ratio * g.size + 0.5), steps[g.name]) for g in groups}

        if unit == "channels":  # the same share of every group, whatever the grain then adds
            return counts(budget / cost())
        ratios = sorted({(k + 0.5) / group.size for group in groups for k in range(group.size)})
        return _largest(lambda k: counts(ratios[k] if k >= 0 else 0.0), len(ratios), groups, scores, cost, budget)

    def _global(self, groups: Groups, scores: Scores, cost: Cost, budget: float, unit: str) -> Counts:
        levels = np.sort(np.concatenate([scores[group] for group in groups]))[::-1]
        order = {group.name: np.sort(scores[group]) for group in groups}
        steps = _steps(groups, self.grain)

        def counts(k: int) -> Counts:
            cut = levels[k] if k >= 0 else np.inf
            wanted = {name: len(own) - int(np.searchsorted(own, cut)) for name, own in order.items()}
            return {g.name: self._survivors(g, wanted[g.name], steps[g.name]) for g in groups}

        return _largest(counts, len(levels), groups, scores, cost, budget)


def _largest(
    counts: Callable[[int], Counts], steps: int, groups: Groups, scores: Scores, cost: Cost, budget: float
) -> Counts:
    """The most generous of a growing sequence of choices that is within the budget (bisection), and
    then as much of the next one as still fits, the best channels first."""

    def price(choice: Counts) -> float:
        return cost({group.dim: choice[group.name] for group in groups})

    least = price(counts(-1))
    if least > budget:
        raise BudgetError(
            f"a budget of {budget / cost():.3g}x {cost.unit} cannot be met: "
            f"with every group at its floor {least / cost():.3g}x remain",
            "lower `floor` or `grain`, raise the budget, or see `graphprune inspect` for what is frozen",
        )
    low, high = -1, steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if price(counts(middle)) <= budget else (low, middle)
    chosen, more = counts(low), counts(min(high, steps - 1))
    growing = [group for group in groups if more[group.name] > chosen[group.name]]
    worth = {g.name: np.sort(scores[g])[::-1][chosen[g.name] : more[g.name]].mean() for g in growing}
    for group in sorted(growing, key=lambda group: -worth[group.name]):
        grown = {**chosen, group.name: more[group.name]}
        if price(grown) <= budget:
            chosen = grown
    return chosen


def share(text: str, unit: str) -> float:
    """``0.5x`` as 0.5. Raises BudgetError unless it is between 0 and 1."""
    found = re.fullmatch(r"(\d*\.?\d+(?:e-?\d+)?)x?", text.strip())
    if not found or not 0 < float(found[1]) < 1:
        raise BudgetError(f"{unit}={text} is not a budget", f"say what remains, between 0 and 1: {unit}=0.5x")
    return float(found[1])


def best(score: Array, count: int) -> Indices:
    """The ``count`` highest scores, in channel order; ties go to the lower index."""
    return np.sort(np.argsort(-score, kind="stable")[:count])


def _steps(groups: Groups, grain: int) -> dict[str, int]:
    """Per group, the multiple that makes whole axes multiples of ``grain``.

    In a product (heads x width) the last factor that may change carries it, helped by those that may
    not; the factors before it are free.
    """
    free = {group.dim for group in groups}
    return {group.name: _step(group, grain, free) for group in groups}


def _step(group: Group, grain: int, free: Set[Dim]) -> int:
    helped = 0
    for member in group.members:
        parts = list(leaves(member.dim)) if find(member.dim).kind == PRODUCT else [group.dim]
        carrier = [part for part in parts if part in free][-1]
        fixed = prod(int(part.size) for part in parts if part not in free)
        helped = gcd(helped, fixed if carrier is group.dim else grain)
    return grain // gcd(grain, helped or 1)


def _channels(program: Program, groups: Groups) -> Cost:
    return Cost("channels", tuple((group.dim,) for group in groups), {})


def _params(program: Program, groups: Groups) -> Cost:
    return params(program.graph, program.host)


def _macs(program: Program, groups: Groups) -> Cost:
    return macs(program.graph, program.host)
