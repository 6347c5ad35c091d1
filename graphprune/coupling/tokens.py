"""Tokens in a graph: the axis that attentions run along, and between which of them its positions may be dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from ..axes.dim import find
from ..errors import ModelError
from ..ir.graph import Graph, Op, Value
from ..ir.host import Host
from .attentions import Attention, attentions
from .token_axis import TokenAxis, signature
from .token_readings import Readers, Reading

LOWEST = -1e4
"""What hides a token, of a mask that is added; the least of half precision is -65504."""


@dataclass(frozen=True)
class Place:
    """Behind op number ``at`` the value ``x``, (batch, tokens, width), is all that is known of the tokens."""

    at: int
    x: Value


@dataclass(frozen=True)
class Tokens:
    """An axis of ``size`` tokens, of which all but the ``first`` and the ``last`` so many may be dropped: class tokens
    stand first, text stands last. ``row``: the token whose attention says which are good, 0 or -1; None: all alike."""

    size: int
    first: int
    last: int
    row: int | None
    attentions: tuple[Attention, ...]
    places: tuple[Place, ...]
    readings: tuple[Reading, ...]

    @property
    def some(self) -> int:
        """How many may be dropped."""
        return self.size - self.first - self.last


def tokens(
    graph: Graph,
    after: Sequence[int],
    left: Sequence[int] | None,
    host: Host,
    places: tuple[int, int] | None = None,
) -> Tokens:
    """The axis whose positions may be dropped behind blocks number ``after`` (from 1 on), so that ``left`` remain of
    all of it behind each; None: all. ``places``: the first and the last that may go, of those that may otherwise.
    Raises ModelError with what stands in the way."""
    found, reasons = dict[Any, list[tuple[int, Attention]]](), list[str]()
    for at, attention, axis in attentions(graph):
        if (why := _windowed(graph, attention)) is not None:
            reasons.append(why)
        else:
            found.setdefault(signature(axis), []).append((at, attention))
    for mine, blocks in found.items():
        try:
            return _tokens(graph, TokenAxis({mine: 0}), blocks, after, left, host, places)
        except ModelError as error:
            reasons.append(error.message)
    raise ModelError(
        "no tokens can be dropped: " + ("; ".join(dict.fromkeys(reasons)) or "no attention of tokens to one another"),
        "encoders of images can do without some whose class token, or mean of all tokens, is what they give",
    )


def _tokens(
    graph: Graph,
    axis: TokenAxis,
    blocks: Sequence[tuple[int, Attention]],
    after: Sequence[int],
    left: Sequence[int] | None,
    host: Host,
    places_given: tuple[int, int] | None,
) -> Tokens:
    for block in after:
        if not 1 <= block < len(blocks):
            raise ModelError(f"block {block} is none that another comes after: there are {len(blocks)} of attention")
    places = [_place(graph, axis, blocks, block) for block in after]
    x = places[0].x
    size = find(x.dims[1]).size
    if not isinstance(size, int):
        raise ModelError(f"how many tokens `{x.name}` has, is open")
    first, last = _around(graph, axis, x)
    causal = _causal(host, [one for _, one in blocks])
    last = max(last, int(causal))  # which is read, and says which others are good
    row = 0 if first and not causal else None
    if first + last >= size:
        raise ModelError(f"all {size} tokens of `{x.name}` are class tokens, registers or text")
    first, last = _narrowed(size, first, last, places_given)
    row = -1 if row is None and last else row
    readers = Readers(graph, host, axis, _moving(graph), size, first, last, left or [size] * len(after), x.dims[0])
    for at, op in enumerate(graph.ops):
        number = sum(place.at < at for place in places) - 1
        if number >= 0:
            readers.known[places[number].x] = number
            readers.read(op, number)
    for value in graph.outputs:
        if value in readers.known:
            raise ModelError(f"`{value.name}`, an output, has all tokens")
    return Tokens(size, first, last, row, tuple(one for _, one in blocks), tuple(places), tuple(readers.readings))


def _narrowed(size: int, first: int, last: int, places: tuple[int, int] | None) -> tuple[int, int]:
    """How many tokens stay before and behind those at ``places``."""
    if places is None:
        return first, last
    begin, end = places
    if not first <= begin <= end < size - last:
        raise ModelError(
            f"places={begin}-{end}: of {size} tokens {first}-{size - last - 1} may go, others are class tokens, "
            "registers, text, or the last of a causal decoder"
        )
    return begin, size - 1 - end


def _causal(host: Host, attentions: Sequence[Attention]) -> bool:
    """Whether some attention is causal: by its attribute, or since on the example no token attends to a later one."""
    seen = {value.name for one in attentions for value in (one.weights, one.mask) if value is not None}
    arrays = host.watch(host.example(), sorted(seen)) if seen else {}
    return any(one.op.attrs.get("causal") for one in attentions) or any(
        bool((above <= (0 if array.dtype == bool or array.min() >= 0 else LOWEST)).all())
        for array in arrays.values()
        if array.ndim > 1 and array.shape[-1] == array.shape[-2] > 1
        for above in [array[..., *np.triu_indices(array.shape[-1], 1)]]
    )


def _windowed(graph: Graph, attention: Attention) -> str | None:
    """Why an attention is none of all tokens of a sample: there are more of its first axis than there are samples."""
    samples = {find(value.dims[0]).size for value in graph.inputs if value.dims}
    many = find(attention.values.dims[0]).size
    if len(attention.values.dims) != 4 or many in samples:
        return None
    folded = any(str(many).endswith(f"*{one}") for one in samples if isinstance(one, str)) or (
        isinstance(many, int) and any(isinstance(one, int) and many % one == 0 for one in samples)
    )
    return f"{attention.op.where} attends within windows of tokens, folded into samples" if folded else None


def _moving(graph: Graph) -> set[Value]:
    """What depends on inputs."""
    moving = set(graph.inputs)
    for op in graph.ops:
        if op.kind != "size" and any(value in moving for value in op.inputs):
            moving |= set(op.outputs)
    return moving


def _place(graph: Graph, axis: TokenAxis, blocks: Sequence[tuple[int, Attention]], block: int) -> Place:
    """Behind the last op before the next attention at which one value is all that later ops read of what the tokens
    have come to. What does not come of the block (rotary tables, masks) is gathered where it is read.
    """
    start, end = blocks[block - 1][0], blocks[block][0]
    last, live, found = dict[Value, float](), set[Value](), None
    come = set(graph.ops[start].outputs)
    for at, op in enumerate(graph.ops):
        last |= {value: at for value in op.inputs if value is not None}
    last |= dict.fromkeys(graph.outputs, inf)
    for at, op in enumerate(graph.ops[start:end], start):
        come |= set(op.outputs) if op.kind != "size" and not come.isdisjoint(op.inputs) else set()
        live |= {out for out in op.outputs if out in come and axis.of(out)}
        live = {value for value in live if last.get(value, -1) > at}
        if len(live) == 1:
            (x,) = live
            if len(x.dims) == 3 and axis.of(x) == [(1, True)] and "float" in x.dtype:
                found = Place(at, x)
    if found is None:
        raise ModelError(f"behind block {block} no one value (batch, tokens, width) holds all tokens")
    return found


def _around(graph: Graph, axis: TokenAxis, x: Value) -> tuple[int, int]:
    """How many tokens come first that are the same for all inputs, and how many numbers, of text, come last."""
    first = last = 0
    while (op := graph.maker(x)) is not None:
        if op.kind == "concat" and axis.of(op.outputs[0]) == [(op.attrs["axis"] % len(x.dims), True)]:
            parts = [value for value in op.inputs if value is not None]
            sizes = [int(value.dims[op.attrs["axis"]].size) for value in parts]
            own, named = [_source(graph, value) for value in parts], 0
            while named < len(parts) and own[named] == "weights":
                first, named = first + sizes[named], named + 1
            ends = [_around(graph, _own_axis(part, op.attrs["axis"]), part) for part in parts]
            first += ends[named][0] if named < len(parts) else 0
            for number in range(len(parts) - 1, named - 1, -1):
                if own[number] == "inputs":
                    last += ends[number][1]
                    break
                last += sizes[number] if number > named else 0
            break
        before = [value for value in op.inputs if value is not None and not value.constant and axis.of(value)]
        if not before:
            break
        x = before[0]
    return first, last


def _own_axis(value: Value, axis: int) -> TokenAxis:
    return TokenAxis({signature(value.dims[axis]): 0})


def _source(graph: Graph, value: Value) -> str:
    """What the tokens of a part come of: ``weights`` alone, numbers of ``text``, or other ``inputs``."""
    while not value.constant:
        op = graph.maker(value)
        if op is None:
            return "inputs"
        if op.kind == "gather" and op.inputs[0] is not None and op.inputs[0].constant:
            return "text"
        if op.kind == "slice" and _stays(graph, op):
            return "weights"
        if op.kind not in ("expand", "reshape", "repeat", "pointwise") or op.inputs[0] is None:
            return "inputs"
        value = op.inputs[0]
    return "weights"


def _stays(graph: Graph, op: Op) -> bool:
    """Whether a slice takes of (batch, tokens, width) the first alone that are of weights: class tokens, behind which
    registers are put."""
    x, (axes, starts, ends) = op.inputs[0], (op.attrs[name] for name in ("axes", "starts", "ends"))
    if (
        x is None
        or len(x.dims) != 3
        or [axis % 3 for axis in axes] != [1]
        or starts != [0]
        or set(op.attrs["steps"]) != {1}
    ):
        return False
    first, _ = _around(graph, _own_axis(x, 1), x)
    return isinstance(ends[0], int) and 0 < ends[0] <= first
