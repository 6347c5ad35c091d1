"""What every allocation works on: groups, scores, a cost and a budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import ceil, gcd, lcm, prod
from typing import Any, TypeVar

import numpy as np
from numpy.polynomial.polynomial import polyval

from ..axes.dim import PRODUCT, Dim, find, leaves
from ..axes.index import Indices
from ..cost.budget import per, written
from ..cost.polynomial import Factors, Polynomial
from ..cost.static import Cost
from ..errors import BudgetError
from ..ir.facts import Group, Groups, Scores
from ..ir.host import Array
from ..ir.program import Program
from .dual import LARGEST, Table, Tables

T = TypeVar("T")


@dataclass(frozen=True)
class Allocation:
    """How many channels of each group survive so that ``cost`` is at most ``budget``, both in ``unit``."""

    program: Program
    groups: Groups
    scores: Scores
    cost: Cost
    budget: float
    unit: str
    floor: float = 0.1  # the least share that any group keeps
    grain: int = 1  # survivors are rounded up to this multiple (of the whole axis)
    given: Mapping[str, int] = field(default_factory=dict)  # counts that the user gave, whatever floor and grain
    alike: Mapping[str, tuple[Group, ...]] = field(default_factory=dict)  # who keeps as many as a group, see ``tied``
    remarks: list[str] = field(default_factory=list)  # what there is to say of the choice
    settled: list[Any] = field(default_factory=list)  # what it was chosen by, where that was measured as a whole

    @property
    def each(self) -> Groups:
        """All groups, those among them that keep as many as another one."""
        return replace(self.groups, groups=(*self.groups, *(one for same in self.alike.values() for one in same)))

    def everyone(self, counts: Mapping[str, T]) -> dict[str, T]:
        """Of all groups, what is said of those that are chosen for."""
        return {**counts, **{one.name: counts[name] for name, same in self.alike.items() for one in same}}

    def _cut(self, counts: Mapping[str, Any]) -> dict[Dim, Any]:
        return {one.dim: counts[g.name] for g in self.groups for one in (g, *self.alike.get(g.name, ()))}

    @cached_property
    def steps(self) -> dict[str, int]:
        """Per group, the multiple that makes whole axes multiples of ``grain``.

        In a product (heads x width) the last factor that may change carries it, helped by those that may
        not; the factors before it are free.
        """
        free = {group.dim for group in self.groups}
        return {group.name: lcm(_step(group, self.grain, free), group.multiple) for group in self.groups}

    def survivors(self, group: Group, wanted: float) -> int:
        """How many channels remain of a group when ``wanted`` would do: floor and grain applied."""
        if group.name in self.given:
            return self.given[group.name]
        if group.branches:
            return min(ceil(wanted - 1e-9), 1)
        least = max(wanted, ceil(self.floor * group.size - 1e-9), group.least)
        step = self.steps[group.name]
        return min(group.size, ceil(ceil(least - 1e-9) / step) * step)

    def menu(self, group: Group) -> list[int]:
        """Every count that floor and grain allow, rising."""
        return sorted({self.survivors(group, wanted) for wanted in range(group.least, group.size + 1)})

    def price(self, counts: Mapping[str, int]) -> float:
        return float(self.cost(self._cut(counts)))

    def whole_layers(self, counts: Mapping[str, int]) -> frozenset[str] | None:
        """See Keep.whole."""
        return self.cost.whole_layers(self._cut(counts))

    def prices(self, counts: Mapping[str, int], name: str, options: Array) -> Array:
        """See choice.Prices."""
        if self._polynomials is not None:  # sums and products: all options at once, and what others cost once
            own = self.own_prices(counts, name, np.append(options, counts[name]))
            made: Array = self._whole(tuple(counts[one] for one in self._names)) - own[-1] + own[:-1]
            return made
        return np.array([self.cost(self._cut({**counts, name: int(option)})) for option in options])

    def own_prices(self, counts: Mapping[str, int], name: str, options: Array) -> Array:
        """As ``prices``, less what the other groups cost whatever is kept of this one: of that, thousands of groups
        that are looked at in turn are not made to pay thousands of times."""
        if self._polynomials is None:
            return self.prices(counts, name, options)
        own, names = self._own[self._number[name]], self._names
        numbers = {k: float(counts[names[k]]) for part in own for one in part for factors in one.terms for k in factors}
        return _at(own, self._number[name], numbers, options)

    @cached_property
    def _whole(self) -> Callable[[tuple[int, ...]], float]:
        """What everything costs at the counts of all groups; choices are looked at one by one around one of them."""

        @lru_cache(maxsize=16)
        def whole(counts: tuple[int, ...]) -> float:
            return float(_at(self._polynomials or (), 0, counts, np.array(counts[:1]))[0])

        return whole

    @property
    def tables(self) -> Tables | None:
        """See dual.Tables; None where the cost is no sum of products of axis sizes."""
        return self._tables if self._polynomials is not None else None

    def _tables(self, options: Mapping[str, Array]) -> list[Table] | None:
        names = [group.name for group in self.groups]
        tables: dict[tuple[int, ...], Array] = {}
        parts = self._polynomials or ()
        if any(prod(len(options[names[k]]) for k in _groups(part)) > LARGEST for part in parts if len(part) > 1):
            return None
        for part in parts:
            for groups, table in _least(part, [options[name] for name in names]).items():
                tables[groups] = tables.get(groups, 0.0) + table
        return [(tuple(names[k] for k in groups), table) for groups, table in tables.items()]

    @cached_property
    def _polynomials(self) -> list[list[Polynomial]] | None:
        """The parts of the cost in the counts of the groups, see Cost.parts."""
        counts = self._cut({group.name: Polynomial.variable(k) for k, group in enumerate(self.groups)})
        parts = self.cost.parts()
        return None if parts is None else [[Polynomial.of(cost(counts)) for cost in part] for part in parts]

    @cached_property
    def _own(self) -> dict[int, list[list[Polynomial]]]:
        """Per number of a group, what of the parts depends on it."""
        found: dict[int, list[list[Polynomial]]] = {k: [] for k in range(len(self._names))}
        for part in self._polynomials or ():
            terms: dict[int, dict[Factors, float]] = {}
            for one in part:
                for factors, number in one.terms.items():
                    for k in set(factors):
                        terms.setdefault(k, {})[factors] = number
            for k, mine in terms.items():
                found[k].append([Polynomial(mine)] if len(part) == 1 else part)  # the least of several is of all terms
        return found

    @cached_property
    def _names(self) -> list[str]:
        return [group.name for group in self.groups]

    @cached_property
    def _number(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(self._names)}

    def cannot(self, least: float) -> BudgetError:
        whole, amounts = self.cost(), ""
        if self.unit != "channels":
            has, of, asked = (written(number, self.unit) for number in (least, whole, self.budget))
            amounts = f" ({has} of {of}{per(self.unit)}; {asked} was asked for)"
        return BudgetError(
            f"a budget of {self.budget / whole:.3g}x {self.cost.unit} cannot be met: "
            f"with every group at its floor {least / whole:.3g}x remain{amounts}",
            "lower `floor` or `grain`, raise the budget, or see `graphprune inspect` for what is frozen",
        )

    def check(self) -> None:
        """Raises BudgetError where not even the floors meet the budget."""
        least = self.price({group.name: self.menu(group)[0] for group in self.groups})
        if least > self.budget * (1 + 1e-12):
            raise self.cannot(least)


def tied(groups: Groups, scores: Scores) -> tuple[Groups, Scores, dict[str, tuple[Group, ...]]]:
    """One group for all that are the same layer of repeated blocks: of equal size, and their names and members the
    same behind the number of the block (``encoder.layers.3.mlp``); where the blocks are layers themselves (``ups.3``),
    those members that are theirs. What is lost of it is what all of them lose.
    Returns the groups to choose for, their scores, and who follows whom."""
    classes, lists = dict[Any, list[Group]](), _lists(groups)
    for group in groups:
        own = [m for m in group.members if m.parameter.startswith(f"{group.name}.")] if _in(lists, group.name) else ()
        members = tuple(sorted((_layer(m.parameter), m.axis, m.role) for m in own or group.members))
        name = group.name if group.branches else _layer(group.name, lists)
        classes.setdefault((name, group.size, members), []).append(group)
    firsts = tuple(same[0] for same in classes.values())
    sums = {same[0].name: np.sum([np.sort(scores[one]) for one in same], axis=0) for same in classes.values()}
    following = {same[0].name: tuple(same[1:]) for same in classes.values() if same[1:]}
    return replace(groups, groups=firsts), replace(scores, scores={**scores.scores, **sums}), following


def without_frozen_likes(groups: Groups) -> Groups:
    """Without those that are, of repeated blocks, the same layer as one that is frozen: they stay as it does."""
    lists = _lists(groups)
    stay = {(_layer(one.name, lists), one.size) for one in groups.frozen}
    left = tuple(g for g in groups if g.branches or (_layer(g.name, lists), g.size) not in stay)
    return replace(groups, groups=left)


def _layer(name: str, lists: Set[str] = frozenset()) -> str:
    """What is left of a name behind the last number that is a whole part on its way; of a layer of one of the
    ``lists``, which its own number ends, that of the list."""
    if _in(lists, name):
        return f"{_layer(name.rpartition('.')[0])}.*"
    return re.split(r"(?:^|[./])\d+(?=[./])", name)[-1]


def _in(lists: Set[str], name: str) -> bool:
    """Whether a layer is one of a list; else the number behind the name of a group tells it from others of the same
    layer."""
    path, _, number = name.rpartition(".")
    return path in lists and number.isdigit()


def _lists(groups: Groups) -> Set[str]:
    """The lists of layers alike: numbered without a gap, each with the same tensors. In others (convolutions with
    norms and activations between) a number says no more than a place."""
    found: dict[str, dict[int, set[str]]] = {}
    for axis, about in groups.graph.nodes(data=True):
        parts = re.fullmatch(r"(.+)\.(\d+)\.([^.]+)", axis) if about["kind"] == "axis" else None
        if parts:
            found.setdefault(parts[1], {}).setdefault(int(parts[2]), set()).add(parts[3])
    return {
        path
        for path, layers in found.items()
        if len(layers) > 1 and sorted(layers) == [*range(len(layers))] and len({*map(frozenset, layers.values())}) == 1
    }


def best(score: Array, count: int) -> Indices:
    """The ``count`` highest scores, in channel order; ties go to the lower index."""
    return np.sort(np.argsort(-score, kind="stable")[:count])


def _at(
    parts: Sequence[Sequence[Polynomial]], number: int, values: Mapping[int, float] | Sequence[float], options: Array
) -> Array:
    """The sum of the least of each part where one variable is each of ``options``, and the others have ``values``."""
    made = np.zeros(len(options))
    for part in parts:
        each = [one.of_one(number, values) for one in part]
        fixed = all(len(one) == 1 for one in each)  # most layers that may be whole or factored
        made += min(each)[0] if fixed else np.minimum.reduce([polyval(options, one) for one in each])
    return made


def _least(part: Sequence[Polynomial], options: Sequence[Array]) -> dict[tuple[int, ...], Array]:
    """The least of polynomials as a sum of tables, by the numbers of their groups."""
    if len(part) > 1:
        groups = _groups(part)
        each = ([_table(factors, number, groups, options) for factors, number in one.terms.items()] for one in part)
        return {groups: np.minimum.reduce([np.add.reduce(one) for one in each])}
    tables: dict[tuple[int, ...], Array] = {}
    for factors, number in part[0].terms.items():
        groups = tuple(dict.fromkeys(factors))
        tables[groups] = tables.get(groups, 0.0) + _table(factors, number, groups, options)
    return tables


def _groups(part: Sequence[Polynomial]) -> tuple[int, ...]:
    return tuple(sorted({k for one in part for factors in one.terms for k in factors}))


def _table(factors: Factors, number: float, groups: Sequence[int], options: Sequence[Array]) -> Array:
    """A number times some counts, for all options of ``groups``."""
    table = np.full([len(options[k]) for k in groups], number)
    for power in np.ix_(*(np.asarray(options[k], np.float64) ** factors.count(k) for k in groups)):
        table *= power
    return table


def _step(group: Group, grain: int, free: Set[Dim]) -> int:
    helped = 0
    for member in group.members:
        parts = list(leaves(member.dim)) if find(member.dim).kind == PRODUCT else [group.dim]
        carrier = [part for part in parts if part in free][-1]
        fixed = prod(int(part.size) for part in parts if part not in free)
        helped = gcd(helped, fixed if carrier is group.dim else grain)
    return grain // gcd(grain, helped or 1)
