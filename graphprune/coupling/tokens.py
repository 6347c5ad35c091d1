"""Tokens in a graph: the axis that attentions run along, between which of them its positions may be dropped, and what
reads it behind that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any

from ..axes.dim import PRODUCT, SUM, Dim, Size, factors, find, leaves, terms
from ..errors import ModelError
from ..ir.graph import Graph, Op, Value
from ..ir.host import Host

PASSING = frozenset(
    "pointwise linear gemm matmul einsum fused_matmul layer_norm rms_norm prelu batch_norm transpose reshape expand "
    "repeat split concat slice select gather unbind stack glu reduce along attention size".split()
)
"""Kinds that, along other axes than the tokens' own, compute the same of each token, whatever others there are."""
SAME = ("same", "cast", "mul")
"""Functions that leave zeros where shares of attention are zero."""
POOLS = ("mean", "sum", "max")


@dataclass(frozen=True)
class Attention:
    """A layer of attention of all tokens to one another. ``weights``: (batch, heads, tokens, tokens), or the first two
    as one axis, where a value holds them; else what ``queries`` and ``keys`` come to, times ``scale``."""

    op: Op
    values: Value
    weights: Value | None = None
    queries: Value | None = None
    keys: Value | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Place:
    """Behind op number ``at`` the value ``x``, (batch, tokens, width), is all that is known of the tokens."""

    at: int
    x: Value


@dataclass(frozen=True)
class Reading:
    """An op behind the first place that tells how many tokens there are, by the number of the ``place``: one that
    ``weighs`` them along ``axis`` of an operand, or pools (``pool``: what it is a function of), or whose ``shape`` is
    written down, or of which an operand has the same number for all along axes ``alike``."""

    op: Op
    place: int
    operand: int = 0
    axis: int = 0
    start: int = 0  # of all tokens, the first that it reads
    pool: str = ""
    weighs: bool = False
    alike: tuple[int, ...] = ()
    shape: tuple[Size | None, ...] | None = None  # None: an open size; of tokens what is left, -1 where
    # an open axis holds them


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
    for at, attention, axis in _attentions(graph):
        found.setdefault(_signature(axis), []).append((at, attention))
    for signature, attentions in found.items():
        try:
            return _Walk(graph, signature, attentions, host).tokens(after, left)
        except ModelError as error:
            reasons.append(error.message)
    raise ModelError(
        "no tokens can be dropped: " + ("; ".join(dict.fromkeys(reasons)) or "no attention of tokens to one another"),
        "encoders of images can do without some whose class token, or mean of all tokens, is what they give",
    )


def _attentions(graph: Graph) -> Iterator[tuple[int, Attention, Dim]]:
    """Every attention of tokens to one another, the number of its op, and the axis of its keys."""
    softmaxes = dict[Value, Value]()
    for at, op in enumerate(graph.ops):
        if op.kind == "attention":
            q, k, v = op.inputs[:3]
            assert q is not None and k is not None and v is not None
            width, given = q.dims[-1].size, op.attrs.get("scale")
            if _signature(q.dims[-2]) == _signature(k.dims[-2]) and isinstance(width, int) and len(q.dims) == 4:
                scale = width**-0.5 if given is None else float(given)
                yield at, Attention(op, v, None, q, k, scale), k.dims[-2]
        elif op.attrs.get("function") == "softmax" and op.inputs[0] is not None:
            softmaxes[op.outputs[0]] = op.outputs[0]
        elif (shares := _shares(graph, op)) in softmaxes:
            softmaxes[op.outputs[0]] = softmaxes[shares]
        elif op.kind == "matmul" and (weights := softmaxes.get(op.inputs[0])) is not None:  # type: ignore[arg-type]
            v, (*_, q_axis, k_axis) = op.inputs[1], (*weights.dims, Dim(0), Dim(0))[: max(len(weights.dims), 2)]
            if v is not None and len(weights.dims) == len(v.dims) > 2 and _signature(q_axis) == _signature(k_axis):
                yield at, Attention(op, v, weights), k_axis


def _shares(graph: Graph, op: Op) -> Value | None:
    """Of which shares of attention an op makes what is zero where they are: as such, or with numbers for NaN."""
    if op.kind == "pointwise" and len(op.inputs) == 3:
        asked, number, x = op.inputs
        maker = graph.maker(asked) if asked is not None else None
        return x if maker is not None and maker.inputs == (x,) and number is not None and number.constant else None
    return op.inputs[0] if op.attrs.get("function") in SAME and op.inputs else None


def _signature(dim: Dim) -> Any:
    """What an axis is made of: axes that are one have one signature."""
    dim = find(dim)
    if dim.kind not in (PRODUCT, SUM):
        return dim
    parts = factors(dim) if dim.kind == PRODUCT else terms(dim)
    return (dim.kind, *map(_signature, parts)) if len(parts) > 1 else _signature(parts[0]) if parts else dim


def _within(signature: Any, dim: Dim) -> bool:
    """Whether an axis is the tokens' and others in one: a product of which they are a part."""
    whole, part = ([one] if not _is_product(one) else list(one[1:]) for one in (_signature(dim), signature))
    return any(whole[k : k + len(part)] == part for k in range(len(whole) - len(part) + 1))


def _is_product(signature: Any) -> bool:
    return isinstance(signature, tuple) and signature[0] == PRODUCT


@dataclass
class _Walk:
    graph: Graph
    signature: Any
    attentions: list[tuple[int, Attention]]
    host: Host
    starts: dict[Any, int] = field(default_factory=dict)  # of axes of the last tokens, from which on
    known: dict[Value, int] = field(default_factory=dict)  # what holds tokens behind the first place: the last place
    moving: set[Value] = field(default_factory=set)  # what depends on inputs
    weighed: set[Value] = field(default_factory=set)  # shares of attention
    readings: list[Reading] = field(default_factory=list)
    left: Sequence[int] = ()
    first: int = 0
    last: int = 0
    size: int = 0

    def tokens(self, after: Sequence[int], left: Sequence[int] | None) -> Tokens:
        self.starts[self.signature] = 0
        self.moving = set(self.graph.inputs)
        for op in self.graph.ops:
            if op.kind != "size" and any(value in self.moving for value in op.inputs):
                self.moving |= set(op.outputs)
        blocks = len(self.attentions)
        for block in after:
            if not 1 <= block < blocks:
                raise ModelError(f"block {block} is none that another comes after: there are {blocks} of attention")
        places = tuple(self._place(block) for block in after)
        x = places[0].x
        size = find(x.dims[1]).size
        if not isinstance(size, int):
            raise ModelError(f"how many tokens `{x.name}` has, is open")
        self.size, self.left = size, left or [size] * len(after)
        self._around(x)
        for at, op in enumerate(self.graph.ops):
            number = sum(place.at < at for place in places) - 1
            if number >= 0:
                self.known[places[number].x] = number
                self._read(op, number)
        for value in self.graph.outputs:
            if value in self.known:
                raise ModelError(f"`{value.name}`, an output, has all tokens")
        return Tokens(
            size, self.first, self.last, tuple(one for _, one in self.attentions), places, tuple(self.readings)
        )

    # ---- where they may go ---------------------------------------------------------------------------

    def _place(self, block: int) -> Place:
        """Behind the last op before the next attention at which one value is all that later ops read of the tokens."""
        start, end = self.attentions[block - 1][0], self.attentions[block][0]
        last, live, found = dict[Value, float](), set[Value](), None
        for at, op in enumerate(self.graph.ops):
            last |= {value: at for value in op.inputs if value is not None}
        last |= dict.fromkeys(self.graph.outputs, inf)
        for at, op in enumerate(self.graph.ops[:end]):
            live |= {out for out in op.outputs if out in self.moving and self._axes(out)}
            live = {value for value in live if last.get(value, -1) > at}
            if at >= start and len(live) == 1:
                (x,) = live
                if len(x.dims) == 3 and self._axes(x) == [(1, True)] and "float" in x.dtype:
                    found = Place(at, x)
        if found is None:
            raise ModelError(f"behind block {block} no one value (batch, tokens, width) holds all tokens")
        return found

    def _around(self, x: Value) -> None:
        """How many tokens come first that are the same for all inputs, and how many numbers, of text, come last."""
        while (op := self.graph.maker(x)) is not None:
            if op.kind == "concat" and self._axes(op.outputs[0]) == [(op.attrs["axis"] % len(x.dims), True)]:
                parts = [value for value in op.inputs if value is not None]
                sizes = [int(value.dims[op.attrs["axis"]].size) for value in parts]
                own, named = [_source(self.graph, value) for value in parts], 0
                while named < len(parts) and own[named] == "weights":
                    self.first, named = self.first + sizes[named], named + 1
                for number in range(len(parts) - 1, named, -1):
                    if own[number] == "inputs":
                        break
                    self.last += sizes[number]
                return
            before = [value for value in op.inputs if value is not None and not value.constant and self._axes(value)]
            if not before:
                return
            x = before[0]

    def _axes(self, value: Value) -> list[tuple[int, bool]]:
        """Where a value has the tokens: the numbers of axes, and whether each is theirs alone."""
        found = []
        for number, dim in enumerate(value.dims):
            for signature in self.starts:
                if _signature(dim) == signature:
                    found.append((number, True))
                elif _within(signature, dim):
                    found.append((number, False))
        return found

    def _alike(self, value: Value) -> bool:
        """Whether a value that no weight and no input has a part in is one number, as a mask is that hides nothing."""
        if value in self.moving or value.name in self.graph.parameters or not all(dict(self._axes(value)).values()):
            return False
        todo = [value]
        while todo:
            op = self.graph.maker(found := todo.pop())
            if op is None and prod(int(n) for n in found.shape or (0,)) > 1:
                return False
            todo += [one for one in op.inputs if one is not None] if op is not None and op.kind != "size" else []
        array = self.host.watch(self.host.example(), [value.name])[value.name]
        return bool(array.size and array.ravel()[0] == array.ravel()[0] and (array == array.ravel()[0]).all())

    # ---- what reads them ------------------------------------------------------------------------------

    def _read(self, op: Op, place: int) -> None:
        held = [k for k, value in enumerate(op.inputs) if value is not None and value in self.known]
        if not held:
            return
        for k, value in enumerate(op.inputs):
            if value is None or value in self.known or not self._axes(value) or op.kind in ("size", "attention"):
                continue
            if not self._alike(value):
                raise ModelError(f"{op.where} reads `{value.name}`, which has numbers of its own for every token")
            self.readings.append(Reading(op, place, k, alike=tuple(axis for axis, _ in self._axes(value))))
        if op.kind not in PASSING:
            raise ModelError(f"{op.where} reads tokens in a way that is not known")
        passes = getattr(self, f"_{op.kind}", None)
        if passes is None or passes(op, place) is not False:
            self._hand_on(op, place)

    def _hand_on(self, op: Op, place: int) -> None:
        moved = _shares(self.graph, op) is not None or op.kind in ("transpose", "reshape", "expand")
        for out in op.outputs:
            if self._axes(out):
                self.known[out] = place
                if moved and any(value in self.weighed for value in op.inputs if value is not None):
                    self.weighed.add(out)
            elif any(self._taken_apart(dim) for dim in out.dims):
                raise ModelError(f"{op.where} folds tokens back into an image, or into windows of it")

    def _taken_apart(self, dim: Dim) -> bool:
        mine = {id(leaf) for start in self.starts for leaf in _leaves(start) if leaf.size != 1}
        return any(id(leaf) in mine for leaf in leaves(dim))

    def _refuse(self, op: Op, axis: int, what: str) -> None:
        """Raises ModelError where an axis is the tokens'."""
        for value in op.inputs:
            if value is not None and value in self.known and axis % len(value.dims) in dict(self._axes(value)):
                raise ModelError(f"{op.where} {what}")

    def _along(self, op: Op, place: int) -> None:
        x = op.inputs[0]
        assert x is not None
        for axis in op.attrs["axes"]:
            if axis % len(x.dims) in dict(self._axes(x)):
                if (
                    op.attrs.get("function") != "softmax"
                    or len(op.attrs["axes"]) > 1
                    or axis % len(x.dims) != len(x.dims) - 1
                ):
                    raise ModelError(f"{op.where} computes along tokens, and is no attention")
                self._weighs(op, place, 0, len(x.dims) - 1, x)
                self.weighed.add(op.outputs[0])

    def _weighs(self, op: Op, place: int, operand: int, axis: int, x: Value) -> None:
        self.readings.append(Reading(op, place, operand, axis, self.starts[_signature(x.dims[axis])], weighs=True))

    def _attention(self, op: Op, place: int) -> None:
        q, k, v = op.inputs[:3]
        assert q is not None and k is not None and v is not None
        for value in (q, k, v):
            if any(axis != len(value.dims) - 2 or not alone for axis, alone in self._axes(value)):
                raise ModelError(f"{op.where} has tokens along another axis than that of queries and keys")
        if k in self.known or v in self.known:
            mask = op.inputs[3] if len(op.inputs) > 3 else None
            if mask is not None and not self._alike(mask):
                raise ModelError(f"{op.where} has a mask of its own")
            if mask is not None:
                axes = [
                    axis for axis in range(len(mask.dims)) if axis >= len(mask.dims) - 2 and mask.dims[axis].size != 1
                ]
                self.readings.append(Reading(op, place, 3, alike=tuple(axes)))
            self._weighs(op, place, 3, len(k.dims) - 2, k)

    def _contracted(self, op: Op, place: int) -> None:
        """A product of shares of attention with what they are shares of, or one along other axes."""
        relation = self.graph.relations[op.name]
        for name, uses in relation.inputs.items():
            if name in relation.outputs or _signature(relation.dims[name]) not in self.starts:
                continue
            if not any(op.inputs[k] in self.weighed for k, _ in uses):
                raise ModelError(f"{op.where} adds tokens up, and not by shares of attention")

    _matmul = _einsum = _fused_matmul = _contracted

    def _layer_norm(self, op: Op, place: int) -> None:
        for axis in range(1, op.attrs["trailing"] + 1):
            self._refuse(op, -axis, "normalises along tokens")

    _rms_norm = _layer_norm

    def _reduce(self, op: Op, place: int) -> None:
        x = op.inputs[0]
        assert x is not None
        gone = [axis % len(x.dims) for axis in op.attrs["axes"]] or range(len(x.dims))
        for axis, alone in self._axes(x):
            if axis in gone:
                if not alone or op.attrs.get("function") not in POOLS or not self._by_sample(x):
                    raise ModelError(f"{op.where} computes along tokens, and is no mean, sum or maximum of them")
                start = self.starts[_signature(x.dims[axis])]
                self.readings.append(Reading(op, place, 0, axis, start, pool=op.attrs["function"]))

    def _by_sample(self, x: Value) -> bool:
        return 0 not in dict(self._axes(x))

    def _select(self, op: Op, place: int) -> bool | None:
        x, index = op.inputs[0], op.attrs.get("index")
        assert x is not None
        return self._picked(op, x, op.attrs["axis"], [index] if isinstance(index, int) else None)

    def _gather(self, op: Op, place: int) -> bool | None:
        x, ids = op.inputs[:2]
        assert x is not None and ids is not None
        known = ids.name in self.graph.parameters and x in self.known
        return self._picked(op, x, op.attrs["axis"], self.host.parameter(ids.name).ravel().tolist() if known else None)

    def _picked(self, op: Op, x: Value, axis: int, numbers: Sequence[int] | None) -> bool | None:
        """Of all tokens those that always stay may be picked, by number; others have none behind the place."""
        if axis % len(x.dims) not in dict(self._axes(x)):
            return None
        start = self.starts.get(_signature(x.dims[axis]))
        stays = numbers is not None and start is not None and all(self._always(n, start) for n in numbers)
        if not stays:
            raise ModelError(f"{op.where} picks a token by its number")
        if any(self._axes(out) for out in op.outputs):
            raise ModelError(f"{op.where} picks tokens of the axis of others")
        return False

    def _always(self, number: int, start: int) -> bool:
        return 0 <= number < self.first - start or -self.last <= number < 0

    def _slice(self, op: Op, place: int) -> bool | None:
        x, out = op.inputs[0], op.outputs[0]
        assert x is not None
        for k, axis in enumerate(op.attrs["axes"]):
            signature = _signature(x.dims[axis])
            if axis % len(x.dims) not in dict(self._axes(x)):
                continue
            begin, end = op.attrs["starts"][k], op.attrs["ends"][k]
            if signature not in self.starts or None in (begin, end) or op.attrs["steps"][k] != 1:
                raise ModelError(f"{op.where} takes some of the tokens")
            size, before = int(find(x.dims[axis]).size), self.starts[signature]
            start, stop, _ = slice(begin, end, 1).indices(size)
            if begin >= 0 and stop == size and 0 < before + start <= self.first and end >= size:
                self.starts[_signature(out.dims[axis])] = before + start
            elif (start, stop) != (0, size) or end < size:
                if begin < 0 or not 0 < end <= self.first - before:
                    raise ModelError(f"{op.where} takes some of the tokens")
                return False
        return None

    def _concat(self, op: Op, place: int) -> None:
        self._refuse(op, op.attrs["axis"], "joins tokens with others")

    def _split(self, op: Op, place: int) -> None:
        self._refuse(op, op.attrs["axis"], "takes some of the tokens")

    _unbind = _glu = _split

    def _repeat(self, op: Op, place: int) -> None:
        x = op.inputs[0]
        assert x is not None
        for axis, _ in self._axes(x):
            if op.attrs["repeats"][axis - len(x.dims)] != 1:
                raise ModelError(f"{op.where} repeats tokens")

    def _shaped(self, op: Op, place: int) -> None:
        out = op.outputs[0]
        if "shape" in self.graph.relations[op.name].literals and self._axes(out):
            sizes = tuple(self._left(dim, place) for dim in out.dims)
            self.readings.append(Reading(op, place, shape=sizes))

    _reshape = _expand = _shaped

    def _left(self, dim: Dim, place: int) -> int | None:
        """How much is left of an axis; None: that is open; -1: and it holds tokens."""
        signature = _signature(dim)
        if signature in self.starts:
            return self.left[place] - self.starts[signature]
        size = find(dim).size
        for known, start in self.starts.items():
            if _within(known, dim):
                return size // (self.size - start) * (self.left[place] - start) if isinstance(size, int) else -1
        return size if isinstance(size, int) else None


def _leaves(signature: Any) -> Iterator[Dim]:
    if isinstance(signature, tuple):
        for part in signature[1:]:
            yield from _leaves(part)
    else:
        yield from leaves(signature)


def _source(graph: Graph, value: Value) -> str:
    """What the tokens of a part come of: ``weights`` alone, numbers of ``text``, or other ``inputs``."""
    while not value.constant:
        op = graph.maker(value)
        if op is None:
            return "inputs"
        if op.kind == "gather" and op.inputs[0] is not None and op.inputs[0].constant:
            return "text"
        if op.kind not in ("expand", "reshape", "repeat", "pointwise") or op.inputs[0] is None:
            return "inputs"
        value = op.inputs[0]
    return "weights"


def heads(x: Value, batch: Dim) -> int:
    """How many heads the first axis holds beside the batch. Raises ModelError where that is not known."""
    parts, own = (list(map(_signature, factors(dim))) for dim in (x.dims[0], batch))
    rest = factors(x.dims[0])[len(own) :]
    sizes = [int(dim.size) for dim in rest if isinstance(dim.size, int)]
    if parts[: len(own)] != own or len(sizes) < len(rest):
        raise ModelError(f"how `{x.name}` holds heads and samples in one axis is not known")
    return prod(sizes)
