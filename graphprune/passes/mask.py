"""mask: choose the channels that survive, within a budget."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..allocation import METHODS, OF_ALIKE, OF_BRANCHES, Allocation, methods
from ..allocation.agreed import Settled
from ..allocation.choice import Menu, Prices
from ..allocation.fill import fill
from ..allocation.knapsack import lost
from ..allocation.problem import best, tied, without_frozen_likes
from ..allocation.timed import Timed, menu, within
from ..axes.dim import Dim, factors, find, terms
from ..cost.budget import Amount, amount, per, written
from ..cost.latency.model import LatencyModel
from ..cost.static import Cost
from ..cost.units import UNITS, cost
from ..coupling.names import GROUP, called, matching
from ..errors import BudgetError, RecipeError, nearest
from ..ir.facts import Budget, Group, Groups, Keep, Scores
from ..ir.program import Program
from ..pipeline.ahead import cost_ahead
from ..pipeline.base import Pass
from ..pipeline.factoring import undecided
from ..pipeline.options import summary
from ..pipeline.recipe import make
from ..reorder.copy_costs import PRICES
from ..reorder.mixed import agree
from ..reorder.per_reader import MODES, Links, unopened

COMPARING = ("global", "lamp", "greedy", "knapsack")
"""The allocations that compare scores of one group with those of another."""
NOTED = 0.02
"""Of the whole: what may be left of a budget without a word."""
ALIKE = {"no": "every group has a count of its own", "layers": "the same layer of all blocks keeps as many"}


@dataclass(frozen=True)
class Mask(Pass):
    """Keep the best channels of every group: how many of each, the allocation says."""

    name = "mask"
    needs = (Groups, Scores)
    gives = (Keep,)
    also = (Budget, Settled)

    channels: str = ""  # budget: what remains of the channels, such as 0.5x or 50%
    params: str = ""  # budget: what remains of the parameters (0.5x, 200k)
    size: str = ""  # budget: what remains of the bytes of the weights (0.5x, 200kB)
    macs: str = ""  # budget: what remains of the multiply-accumulates (0.5x, 1.5G)
    memory: str = ""  # budget: what remains of the peak activation memory (0.5x, 3MB)
    latency: str = ""  # budget: what remains of the time on a target (0.6x, or 12ms), by its latency table
    of: str = "now"  # what a share is of: the model as it is now (if nothing was cut, as it was given), or given
    allocate: str = "uniform"  # how many of each group; of a latency: by the scores that are lost, or rd
    floor: float = 0.1  # the least share that any group keeps
    unconstrained: str = "no"  # whether readers of the same channels may differ
    target: str = ""  # for mixed: whose prices to plan with (torch, onnx, tvm); by default the model's own
    width: str = ""  # counts of one's own, whatever floor and grain: `conv1=24|blocks.*=0.5x`, by what makes them
    grain: int = 1  # survivors are rounded up to this multiple (of the whole axis)
    alike: str = "no"  # layers: the same layer of all blocks keeps as many, as configurations of transformers need

    def __post_init__(self) -> None:
        if self.allocate not in methods():
            raise RecipeError(f"`mask`: `allocate` cannot be `{self.allocate}`", nearest(self.allocate, methods()))
        if self.unconstrained not in MODES:
            raise RecipeError(
                f"`mask`: `unconstrained` cannot be `{self.unconstrained}`", nearest(self.unconstrained, MODES)
            )
        if self.alike not in ALIKE:
            raise RecipeError(f"`mask`: `alike` cannot be `{self.alike}`", nearest(self.alike, ALIKE))
        if self.alike != "no" and self.unconstrained != "no":
            raise RecipeError(
                f"`mask{{alike={self.alike}}}` keeps as many channels of whole layers", "leave out `unconstrained`"
            )
        if self.alike != "no" and self.allocate in METHODS and self.allocate not in OF_ALIKE:
            raise RecipeError(
                f"`mask{{allocate={self.allocate}}}` cannot keep layers alike", f"one of: {', '.join(sorted(OF_ALIKE))}"
            )
        if self.target not in ("", *PRICES):
            raise RecipeError(f"`mask`: `target` cannot be `{self.target}`", nearest(self.target, list(PRICES)))
        if self.of not in ("now", "given"):
            raise RecipeError(f"`mask`: `of` cannot be `{self.of}`", nearest(self.of, ("now", "given")))
        if self.of == "given" and self.channels:
            raise RecipeError(
                "`mask{channels=... of=given}`: channels are a share of every group as it is now",
                "leave out `of`, or budget parameters or MACs",
            )
        if not 0 <= self.floor <= 1:
            raise BudgetError(f"`mask`: floor={self.floor} is not a share", "give a number from 0 to 1")
        if self.grain < 1:
            raise BudgetError(f"`mask`: grain={self.grain} is not a multiple", "give 1 or more")
        self._own()
        if self.limited():
            self.budget()

    def limited(self) -> bool:
        """Whether there is a budget; widths of one's own need none, the others then stay whole."""
        return not self.width or any(getattr(self, unit) for unit in UNITS)

    def budget(self) -> tuple[str, Amount]:
        """The one budget given: its unit and what remains."""
        given = {unit: text for unit in UNITS if (text := getattr(self, unit))}
        if len(given) != 1:
            raise BudgetError(
                f"`mask` takes one budget, not {len(given)} ({', '.join(given) or 'none given'})",
                f"say what remains: one of {', '.join(f'{unit}=0.5x' for unit in UNITS)}",
            )
        unit, text = next(iter(given.items()))
        return unit, amount(text, unit)

    @classmethod
    def choices(cls) -> Mapping[str, Mapping[str, str]]:
        wants = {name: "data: " if one.data else "" for name, one in methods().items()}
        return {
            "allocate": {name: f"{wants[name]}{summary(one.counts)}" for name, one in methods().items()},
            "unconstrained": MODES,
            "alike": ALIKE,
        }

    def wants_data(self) -> bool:
        return methods()[self.allocate].data

    def before(self) -> tuple[Pass, ...]:
        return () if self.unconstrained == "no" else (make("loosen", {"writers": self.unconstrained == "both"}),)

    def run(self, program: Program) -> Program:
        for step in self.before():
            if unopened(program, **step.options()):
                raise RecipeError(
                    f"`mask{{unconstrained={self.unconstrained}}}` needs readers that `{step.text()}` lets choose",
                    f"run `{step.text()}` before it; a Recipe does so by itself",
                )
        if not self.limited():
            counts, scores, links = self._given(program.fact(Groups)), program.fact(Scores), self._links(program)
            own = {one.name: best(scores[one], counts.get(one.name, one.size)) for one in links.free()}
            made = program.learn(Keep(links.complete(own)))
            return made.note(*self._beside(made))
        unit, asked = self.budget()
        gates = program.fact(Groups).gates
        self._check_gates(program.fact(Groups))
        self._check_ranks(program)
        if unit == "latency":
            return self._within(program)
        scores, links = program.fact(Scores), self._links(program)
        groups = self._free(program, links)
        count = cost_ahead(unit, program, groups, undecided(program))
        whole = self._whole(program, unit, groups)
        remains = asked.share(whole)
        if remains >= 1:
            raise BudgetError(
                f"{unit}={getattr(self, unit)} is no less than the network has: {written(whole, unit)}{per(unit)}",
                "ask for less than that, or for a share: 0.5x",
            )
        priced = links.priced(count, scores, best)
        given = self._given(groups)
        chosen, sums, alike = self._tied(groups, scores)
        problem = Allocation(program, chosen, sums, priced, remains * whole, unit, self.floor, self.grain, given, alike)
        counts = methods()[self.allocate].counts(problem)
        menus = lost(problem, {g.name: sorted({*problem.menu(g), counts[g.name]}) for g in chosen})
        counts = problem.everyone(fill(menus, problem.prices, problem.budget, counts, problem.own_prices))
        stay = problem.whole_layers(counts)
        keep = {group.name: best(scores[group], counts[group.name]) for group in groups}
        keep = {**links.complete(keep), **{gate.name: keep[gate.name] for gate in gates}}
        agreed = (
            agree(program, keep, scores, links.steps, self.target, count) if self.unconstrained == "mixed" else keep
        )
        budget = Budget(unit, problem.budget, whole)
        made = program.learn(Keep(agreed, whole=stay)).learn(budget)
        left = count({group.dim: len(agreed[group.name]) for group in program.fact(Groups) if group.name in agreed})
        have = left / whole
        if budget.exceeded(left):
            made = made.note(f"`{self.text()}`: {budget.told(left)}: `allocate={self.allocate}` comes to that")
        made = made.note(*self._shared(made, remains), *self._beside(made), *problem.remarks)
        if have >= remains - min(NOTED, remains * methods()[self.allocate].near):
            return made
        less = any(len(agreed[name]) < len(kept) for name, kept in keep.items())
        more = _next(menus, problem.prices, counts, whole, "x")
        why = "readers that agree take less" if less else more or f"every {'other ' * bool(given)}group is whole"
        return made.note(f"{unit}={getattr(self, unit)}: {have:.3g}x is kept, for {why}")

    def _free(self, program: Program, links: Links) -> Groups:
        """What may be chosen."""
        free = links.free() if self.alike == "no" else without_frozen_likes(links.free())
        return replace(free, groups=(*free, *program.fact(Groups).gates))

    def _tied(self, groups: Groups, scores: Scores) -> tuple[Groups, Scores, Mapping[str, tuple[Group, ...]]]:
        return (groups, scores, {}) if self.alike == "no" else tied(groups, scores)

    def _whole(self, program: Program, unit: str, groups: Groups) -> float:
        """What a share is of. What opened dims (an embedding untied, a layer factored) does not count, so that no
        budget grows by it."""
        edits = program.plan.edits
        opened = bool(edits) and all(edit.opens for edit in edits)
        if unit == "channels" or not edits or not (opened or self.of == "given"):
            return cost(unit, program.graph, program.host, groups, undecided(program))()
        return cost(unit, program.source.lift(), program.source, replace(groups, groups=()))()

    def _check_gates(self, groups: Groups) -> None:
        """Whether branches can be chosen so. Raises RecipeError."""
        if not groups.gates:
            return
        if self.latency and self.allocate != "rd":
            raise RecipeError("`mask{latency=...}` takes branches by measured distortion alone", "say allocate=rd")
        if groups.channels and self.allocate != "rd":
            raise RecipeError(
                f"`mask{{allocate={self.allocate}}}` cannot weigh channels against branches, whose scores are others",
                "take allocate=rd, which measures both alike, or `branches{alone=true}`",
            )
        if self.allocate in METHODS and self.allocate not in OF_BRANCHES:
            raise RecipeError(
                f"`mask{{allocate={self.allocate}}}` says nothing of branches",
                f"one of: {', '.join(sorted(OF_BRANCHES))}",
            )

    def _shared(self, program: Program, remains: float) -> Iterator[str]:
        """A budget of channels is a share of every group: of an axis that two of them make, less is left."""
        if self.channels and (axes := list(_products(program, self._named(program.fact(Groups))))):
            name, sizes, share = min(axes, key=lambda axis: axis[2])
            many = len({name for name, *_ in axes})
            if share < 0.99 * remains:
                yield (
                    f"`{self.text()}`: each of several groups keeps {remains:.3g}x, so that less is left of the "
                    f"{many} axes that they make together, such as {share:.3g}x of {name} ({sizes}); "
                    "`group{freeze=...}` leaves one of them whole"
                )

    def _check_ranks(self, program: Program) -> None:
        """Whether ranks can be chosen so. Raises RecipeError."""
        dims = {find(rank.dim) for rank in undecided(program)}
        compared = self.allocate in COMPARING or (self.latency and self.allocate != "rd")
        both = len({group.dim in dims for group in program.fact(Groups).channels}) == 2
        if both and compared:
            raise RecipeError(
                f"`mask{{allocate={self.allocate}}}` cannot weigh channels against ranks, whose scores are others",
                "take allocate=rd, which measures both alike, or `group{only=*rank}`",
            )

    def menus(self, program: Program) -> dict[str, list[int]]:
        """The counts that each group may keep where a latency table prices them."""
        problem = self._unpriced(program)
        return {group.name: menu(problem, group) for group in problem.groups}

    def _unpriced(self, program: Program) -> Allocation:
        nothing, groups = Cost("", (), {}), program.fact(Groups)
        return Allocation(
            program, groups, Scores("", {}), nothing, 0.0, "", self.floor, self.grain, self._given(groups)
        )

    def _own(self) -> list[tuple[str, str]]:
        """The patterns and widths of ``width``. Raises RecipeError."""
        pairs = [one.rpartition("=") for one in self.width.split("|") if one]
        for name, _, text in pairs:
            if not name or not re.fullmatch(r"[1-9]\d{0,8}|0?\.\d+x?|1x|1\.0*x|\d{1,2}(\.\d+)?%|100%", text):
                raise RecipeError(
                    f"`mask`: `width` cannot be `{name}={text}`", "write conv1=24, or conv1=0.5x (50%) for what remains"
                )
        names = [name for name, _, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise RecipeError(
                f"`mask`: `width` gives `{twice[0]}` twice", "once each; of patterns the first that matches holds"
            )
        return [(name, text) for name, _, text in pairs]

    def _given(self, groups: Groups) -> dict[str, int]:
        """The counts that ``width`` gives to groups. Raises RecipeError."""
        texts, given = dict(self._own()), self._named(groups)
        return {group: _width(texts[name], group, groups, name) for group, name in given.items()}

    def _named(self, groups: Groups) -> dict[str, str]:
        """By group, the pattern of ``width`` that is for it, by what writes it; the first that matches one holds."""
        own, called_by = self._own(), called(groups.channels) if self.width else {}
        for name, _ in own:
            stays = next((one for one in groups.frozen if one.name == name), None)
            if stays and not any(name in one.made for one in called_by.values()):
                raise RecipeError(
                    f"`{name}` cannot have a width: {stays.reason}", "`graphprune inspect` shows what can"
                )
        found = matching([name for name, _ in own], [one.made for one in called_by.values()], "group that can be cut")
        return {group: name for group, name in zip(called_by, found, strict=True) if name is not None}

    def _beside(self, program: Program) -> Iterator[str]:
        """A width is that of each group: where several make the axis of a layer that is named, another one is left."""
        groups = program.fact(Groups)
        given, index = self._named(groups), program.fact(Keep).index(groups)
        for name, text in self._own():
            meant = {group.dim: group.name for group in groups if given.get(group.name) == name}
            for axis, made in _made(program):
                own = [dim for dim in factors(made) if dim in meant]
                alone = len(own) == 1 and any(matching([name], [{meant[own[0]], GROUP + meant[own[0]]}], strict=False))
                left, size = len(index(made)), int(made.size)
                if own and not alone and left != _count(text, size):
                    kept = " and ".join(f"{len(index(dim))} of `{meant[dim]}`" for dim in own)
                    yield (
                        f"`width={name}={text}`: it is {kept}, so that {left} of the {size} channels of {axis} "
                        f"({_sizes(made)}) are left; names of groups say how many of each"
                    )
                    break

    def _links(self, program: Program) -> Links:
        return Links(program.graph, program.fact(Groups).channels, self._unpriced(program).steps)

    def _within(self, program: Program) -> Program:
        """Chosen by a model of the target. Raises RecipeError where none is known."""
        if not program.knows(LatencyModel):
            raise RecipeError(
                f"`mask{{latency={self.latency}}}` needs a LatencyModel, which says what channels cost on a target",
                "graphprune compile --latency makes one",
            )
        model, links = program.fact(LatencyModel), self._links(program)
        chosen, scores, alike = self._tied(self._free(program, links), program.fact(Scores))
        problem = Timed(
            program,
            chosen,
            scores,
            Cost("ms", (), {}),
            model.budget_ms(self.latency),
            "latency",
            self.floor,
            self.grain,
            self._given(program.fact(Groups)),
            alike,
            model=model,
            asked=self.latency,
        )
        keep = within(problem, links, distortion=self.allocate == "rd")
        if self.unconstrained == "mixed":
            keep = replace(keep, keep=agree(program, keep.keep, problem.scores, links.steps, self.target))
        for settled in problem.settled:
            program = program.learn(settled)
        made = program.learn(keep)
        return made.note(*self._beside(made), *problem.remarks)


def _made(program: Program) -> Iterator[tuple[str, Dim]]:
    """Axes of parameters that several dims make, or a part of, and what they make."""
    for value in program.graph.parameters.values():
        for axis, dim in enumerate(value.dims):
            yield from ((f"{value.name}[{axis}]", part) for part in terms(dim) if len(factors(part)) > 1)


def _products(program: Program, given: Collection[str]) -> Iterator[tuple[str, str, float]]:
    """Axes of parameters that several groups make, each cut and none ``given`` a width: name, the sizes that make it,
    the share that is left."""
    groups, keep = program.fact(Groups), program.fact(Keep)
    index = keep.index(groups)
    free = [group for group in groups if group.name not in given]
    cut = {group.dim for group in free if len(keep.keep.get(group.name, range(group.size))) < group.size}
    for name, made in _made(program):
        if len(cut.intersection(factors(made))) > 1:
            yield name, _sizes(made), len(index(made)) / int(made.size)


def _sizes(made: Dim) -> str:
    return " x ".join(str(part.size) for part in factors(made))


def _count(text: str, size: int) -> int:
    """What a width comes to of so many channels."""
    part = 0.01 if text.endswith("%") else 1.0 if text.endswith("x") or "." in text else None
    return int(text) if part is None else max(1, round(float(text.rstrip("x%")) * part * size))


def _width(text: str, group: str, groups: Groups, name: str) -> int:
    size = next(one.size for one in groups if one.name == group)
    count = _count(text, size)
    if count > size:
        of = "" if name in (group, GROUP + group) else f"; `{name}` means it too"
        raise RecipeError(
            f"`mask{{width=...}}`: `{group}` has {size} channels, not {count}{of}", f"give {size} or fewer"
        )
    return count


def _next(lost: Mapping[str, Menu], prices: Prices, counts: Mapping[str, int], whole: float, sign: str) -> str:
    """What the cheapest step of any group would come to; nothing where all are whole."""
    steps = {name: next((k for k in sorted(menu) if k > counts[name]), 0) for name, menu in lost.items()}
    each = [(float(prices(counts, name, np.array([k]))[0]) / whole, name, k) for name, k in steps.items() if k]
    if not each:
        return ""
    least, name, count = min(each)
    many = f" at {count} {'channel' if count == 1 else 'channels'}"
    what = f"`{name}`{'' if name.startswith('branch:') else many}"
    return f"one more step of any group exceeds it: the cheapest, {what}, comes to {least:.3g}{sign}"
