"""Planning: the order of every block and the choice of every reader that together cost least."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from .access import Layout, Pricing
from .channel_order import Ordering
from .segments import Lists, Taker

Order = Mapping[str, tuple[int, ...]]


def best(
    pricing: Pricing, menu: Sequence[str], fits: Callable[[Lists], bool] = lambda keep: True
) -> tuple[Layout, frozenset[str], Ordering]:
    """The cheapest layout: for every segment with concatenations, with its selections taken into them or
    not, whichever costs less; and with no more taken than ``fits``, the widest takers narrowed first."""
    sinks = _sinks(pricing, menu)
    ordering = pricing.segments.arrange(sinks, pricing.prices)
    if "duplicate" in menu:
        ordering = replace(ordering, order=_duplicated(pricing, menu, ordering.order, sinks, fits))
    return narrowed(pricing, ordering.order, menu, sinks, fits), sinks, ordering


def narrowed(
    pricing: Pricing, order: Order, menu: Sequence[str], sinks: frozenset[str], fits: Callable[[Lists], bool]
) -> Layout:
    """The layout of an order in which no more is taken than ``fits``: the widest takers are narrowed first."""
    tight: frozenset[str] = frozenset()
    while True:
        layout = pricing.layout(order, menu, sinks, tight)
        idle = {name: len(c.blank) for name, c in layout.choices.items() if c.blank is not None and len(c.blank)}
        if not idle or fits(layout.keep):
            return layout
        tight |= {max(sorted(idle), key=idle.__getitem__)}


def _sinks(pricing: Pricing, menu: Sequence[str]) -> frozenset[str]:
    segments = pricing.segments
    every = frozenset(segments.concats) if "sink" in menu else frozenset[str]()
    if not every:
        return every
    plain = pricing.layout(segments.arrange(frozenset(), pricing.prices).order, menu, frozenset())
    sunk = pricing.layout(segments.arrange(every, pricing.prices).order, menu, every)
    chosen: set[str] = set()
    for part in segments.parts():
        names = {taker.op.name for taker in part} & every
        concats = [*sorted({c for name in names for c in segments.concats[name]}), *sorted(names)]
        if names and sunk.us(part, concats) < plain.us(part, concats):
            chosen |= names
    return frozenset(chosen)


def _duplicated(
    pricing: Pricing, menu: Sequence[str], order: Order, sinks: frozenset[str], fits: Callable[[Lists], bool]
) -> Order:
    """The order with channels made a second time at the end of a block, for a reader that so gets a run,
    where computing them again costs less than what that reader did instead."""
    layout = pricing.layout(order, menu, sinks)
    for name, doubled, price in list(_candidates(pricing, order, layout)):
        if name in order and doubled[: len(order[name])] == order[name]:
            tried = {**order, name: doubled}
            other = pricing.layout(tried, menu, sinks)
            takers = pricing.segments.takers
            if other.us(takers, ()) + price < layout.us(takers, ()) and fits(other.keep):
                order, layout = tried, other
    return order


def _candidates(pricing: Pricing, order: Order, layout: Layout) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """(block, its order with some channels twice, the price of computing these): one for every reader that
    does not take a run of a block from which all take by itself, and which nothing else reads."""
    segments = pricing.segments
    groups = {group.name: group for group in segments.by_leaf.values()}
    alone = {taker.op.name: _block(taker) for taker in segments.takers}
    mixed = {slot.block for t in segments.takers if alone[t.op.name] is None for slot in t.slots}
    for taker in segments.takers:
        block = alone[taker.op.name]
        if block is None or block in mixed or layout.choices[taker.op.name].how in ("all", "view", "load"):
            continue
        if any(member.role == "reader" for member in groups[block].members):
            continue
        takes, standing = taker.slots[0].takes, list(order[block])
        at = len(standing)
        while at and standing[at - 1] in takes:
            at -= 1
        missing = tuple(channel for channel in standing[:at] if channel in takes)
        yield block, (*standing, *missing), pricing.more(groups[block], len(missing))


def _block(taker: Taker) -> str | None:
    """The one block that a reader takes whole channels from."""
    return taker.slots[0].block if len(taker.slots) == 1 and taker.inner == 1 and not taker.fills else None
