"""Tokens in a graph: the axis that attentions run along, and between which of them its positions may be dropped."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import inf
from typing import Any

from ..axes.dim import find
from ..errors import ModelError
from ..ir.graph import Graph, Op, Value
from ..ir.host import Host
from .attentions import Attention, attentions
from .token_axis import TokenAxis, signature
from .token_readings import Readers, Reading


@dataclass(frozen=True)
class Place:
    """Behind op number ``at`` the value ``x``, (batch, tokens, width), is all that is known of the tokens."""

    at: int
    x: Value


@dataclass(frozen=True)
class Tokens:
    """An axis of ``size`` tokens, of which all but the ``first`` and the ``last`` so many may be dropped: class tokens
    stand first, text stands last."""

    size: int
    first: int
    last: int
    attentions: tuple[Attention, ...]
    places: tuple[Place, ...]
    readings: tuple[Reading, ...]

    @property
    def some(self) -> int:
        """How many may be dropped."""
        return self.size - self.first - self.last


def tokens(graph: Graph, after: Sequence[int], left: Sequence[int] | None, host: Host) -> Tokens:
    """The axis whose positions may be dropped behind blocks number ``after`` (from 1 on), so that ``left`` remain of
    all of it behind each; None: all. Raises ModelError with what stands in the way."""
    found, reasons = dict[Any, list[tuple[int, Attention]]](), list[str]()
    for at, attention, axis in attentions(graph):
        if (why := _windowed(graph, attention)) is not None:
            reasons.append(why)
        else:
            found.setdefault(signature(axis), []).append((at, attention))
    for mine, blocks in found.items():
        try:
            return _tokens(graph, TokenAxis({mine: 0}), blocks, after, left, host)
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
) -> Tokens:
    for block in after:
        if not 1 <= block < len(blocks):
            raise ModelError(f"block {block} is none that another comes after: there are {len(blocks)} of attention")
    moving = _moving(graph)
    places = [_place(graph, axis, blocks, block, moving) for block in after]
    x = places[0].x
    size = find(x.dims[1]).size
    if not isinstance(size, int):
        raise ModelError(f"how many tokens `{x.name}` has, is open")
    first, last = _around(graph, axis, x)
    if first + last >= size:
        raise ModelError(f"all {size} tokens of `{x.name}` are class tokens, registers or text")
    readers = Readers(graph, host, axis, moving, size, first, last, left or [size] * len(after))
    for at, op in enumerate(graph.ops):
        number = sum(place.at < at for place in places) - 1
        if number >= 0:
            readers.known[places[number].x] = number
            readers.read(op, number)
    for value in graph.outputs:
        if value in readers.known:
            raise ModelError(f"`{value.name}`, an output, has all tokens")
    return Tokens(size, first, last, tuple(one for _, one in blocks), tuple(places), tuple(readers.readings))


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


def _place(
    graph: Graph, axis: TokenAxis, blocks: Sequence[tuple[int, Attention]], block: int, moving: AbstractSet[Value]
) -> Place:
    """Behind the last op before the next attention at which one value is all that later ops read of the tokens."""
    start, end = blocks[block - 1][0], blocks[block][0]
    last, live, found = dict[Value, float](), set[Value](), None
    for at, op in enumerate(graph.ops):
        last |= {value: at for value in op.inputs if value is not None}
    last |= dict.fromkeys(graph.outputs, inf)
    for at, op in enumerate(graph.ops[:end]):
        live |= {out for out in op.outputs if out in moving and axis.of(out)}
        live = {value for value in live if last.get(value, -1) > at}
        if at >= start and len(live) == 1:
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
