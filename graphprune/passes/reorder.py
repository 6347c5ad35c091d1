"""reorder: in which order channels are stored, and how each reader gets those that it keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecipeError, nearest
from ..ir.facts import Budget, Groups, Keep, Order
from ..ir.program import Program
from ..pipeline.ahead import cost_ahead
from ..pipeline.base import Pass
from ..reorder.access import MENU, Layout, Pricing
from ..reorder.channel_order import Ordering
from ..reorder.copy_costs import PRICES, read_prices
from ..reorder.per_reader import Links
from ..reorder.planner import best, narrowed
from ..reorder.segments import Lists, Segments, Taker
from ..reorder.upscale_baseline import upscale_order


@dataclass(frozen=True)
class Reorder(Pass):
    """Order channels so that what readers take are runs, and choose how the others get theirs."""

    name = "reorder"
    needs = (Groups, Keep)
    gives = (Keep, Order)

    target: str = ""  # whose prices to plan with: torch, onnx or tvm; by default the model's own
    prices: str = ""  # a file of prices measured on the machine that matters, by `benchmarks.prices --out`
    menu: str = "|".join(MENU)  # ways to get channels that are not a run, beside a gather
    order: str = "best"  # best; upscale: as published; given: as it is

    def __post_init__(self) -> None:
        choices: Mapping[str, Sequence[str]] = {"target": ("", *PRICES), "order": ("best", "upscale", "given")}
        for option, allowed in choices.items():
            if getattr(self, option) not in allowed:
                value = getattr(self, option)
                raise RecipeError(f"`reorder`: `{option}` cannot be `{value}`", nearest(value, allowed))
        for item in self.menu.split("|"):
            if item not in MENU:
                raise RecipeError(f"`reorder`: `menu` has no `{item}`", nearest(item, MENU))

    def run(self, program: Program) -> Program:
        keep = program.fact(Keep)
        on = self.target or program.host.native_target
        prices = read_prices(Path(self.prices), on) if self.prices else PRICES[on]
        pricing = Pricing.of(program, keep.keep, prices)
        segments = pricing.segments
        if not segments.takers:
            return program.learn(Order())
        menu, left = self.menu.split("|"), _left(program, pricing)
        budget = program.fact(Budget) if program.knows(Budget) else None

        def fits(lists: Lists) -> bool:  # idle channels are no more of the channels than were asked for
            return budget is None or budget.unit == "channels" or not budget.exceeded(left(lists))

        if self.order == "best":
            layout, sinks, ordering = best(pricing, menu, fits)
        else:
            blocks = _blocks(segments)
            order = published(segments) if self.order == "upscale" else blocks
            ordering = Ordering(order, frozenset(), True)
            layout, sinks = narrowed(pricing, order, menu, frozenset(), fits), frozenset[str]()
        blank = dict(keep.blank)
        for taker in segments.takers:
            idle = layout.choices[taker.op.name].blank
            if taker.own is not None and idle is not None and len(idle):
                blank[taker.own.name] = idle
        runs = {name: layout.choices[name].runs for name in sorted(sinks) if layout.choices[name].how == "sink"}
        shown = describe(pricing, layout, ordering)
        program = program.learn(replace(keep, keep=layout.keep, blank=blank)).learn(Order(runs, shown))
        if budget is not None and budget.exceeded(left(layout.keep)):
            told = budget.told(left(layout.keep))
            return program.note(f"`{self.text()}`: {told}, with channels that count for nothing and make runs")
        return program


def _left(program: Program, pricing: Pricing) -> Callable[[Lists], float]:
    """How much of what `mask` had a budget of is left of lists."""
    if not program.knows(Budget):
        return lambda keep: 0.0
    groups = program.fact(Groups)
    free = Links(program.graph, groups.channels).free()
    counted = replace(free, groups=(*free, *groups.gates))
    count = cost_ahead(program.fact(Budget).unit, program, counted)
    return lambda keep: count(pricing.lengths(keep))


def _blocks(segments: Segments) -> dict[str, tuple[int, ...]]:
    return {slot.block: slot.given for taker in segments.takers for slot in taker.slots if slot.block is not None}


def published(segments: Segments) -> dict[str, tuple[int, ...]]:
    """UPSCALE's order of every block."""
    sets: dict[str, list[frozenset[int]]] = {}
    for taker in segments.takers:
        for slot in taker.slots:
            if slot.block is not None:
                sets.setdefault(slot.block, []).append(slot.takes)
    return {name: upscale_order(given, sets[name]) for name, given in _blocks(segments).items()}


def describe(pricing: Pricing, layout: Layout, ordering: Ordering) -> tuple[dict[str, Any], ...]:
    """What the report says: per segment who selects, how, and what moves, ours against three others."""
    segments = pricing.segments
    blocks = _blocks(segments)
    others = {
        "naive": pricing.layout(blocks, ("gather",), frozenset()),
        "upscale": pricing.layout(published(segments), ("view", "gather"), frozenset()),
        "constrained": pricing.layout(blocks, ("constrain",), frozenset()),
    }
    out = []
    for part in segments.parts():
        names = list(dict.fromkeys(slot.block for taker in part for slot in taker.slots if slot.block is not None))
        concats = sorted({name for taker in part for name in segments.concats.get(taker.op.name, ())})
        concats += [taker.op.name for taker in part]
        out.append(
            {
                "name": names[0] if names else part[0].op.origin,
                "blocks": [
                    {"name": name, "kept": len(blocks[name]), "order": [int(c) for c in ordering.order[name]]}
                    for name in names
                ],
                "takers": [_taker(taker, layout) for taker in part],
                "exact": ordering.exact,
                "ours": _sums(part, layout, concats),
                **{name: _sums(part, other, concats) for name, other in others.items()},
            }
        )
    return tuple(out)


def _taker(taker: Taker, layout: Layout) -> dict[str, Any]:
    choice = layout.choices[taker.op.name]
    return {
        "op": taker.op.name,
        "origin": taker.op.origin,
        "writes": taker.fills,
        "how": choice.how,
        "us": round(choice.us, 3),
        "moved_bytes": round(choice.moved_bytes),
        "takes": {slot.block: sorted(slot.takes) for slot in taker.slots if slot.block is not None},
        "count": sum(len(slot.takes) for slot in taker.slots),
        "of": sum(len(slot.given) for slot in taker.slots),
        "blank": 0 if choice.blank is None else len(choice.blank),
    }


def _sums(part: Sequence[Taker], layout: Layout, concats: Sequence[str]) -> dict[str, Any]:
    mine = [layout.choices[taker.op.name] for taker in part]
    return {
        "copies": sum(choice.moved_bytes > 0 for choice in mine),
        "moved_bytes": round(sum(choice.moved_bytes for choice in mine)),
        "us": round(float(np.sum([choice.us for choice in mine])), 3),
        "concat_bytes": round(sum(layout.concat_bytes.get(name, 0.0) for name in concats)),
        "concat_us": round(sum(layout.concat_us.get(name, 0.0) for name in concats), 3),
    }
