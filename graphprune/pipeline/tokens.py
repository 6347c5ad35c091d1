"""Tokens: positions that are dropped between blocks of attention, chosen anew for every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ..axes.dim import find
from ..coupling.attentions import Attention, heads
from ..coupling.token_readings import Reading
from ..coupling.tokens import Tokens as Found
from ..coupling.tokens import tokens
from ..errors import ModelError, RecipeError
from ..ir.document import Entry
from ..ir.graph import Op, Value
from ..ir.host import Host
from ..ir.program import Edit, Parameters, Program

CHOICES = ("attention", "flow", "random")
PAST = 0.5
"""What the flow through earlier blocks weighs against that through a block and all before it: FlowCut."""


@dataclass(frozen=True)
class Tokens(Edit):
    """Behind block ``after[i]`` the ``keep[i]`` best tokens stay, in their order, beside class tokens and text; which,
    is said by ``chosen``."""

    kind = "tokens"
    drops = True

    keep: tuple[int, ...]
    after: tuple[int, ...]
    chosen: str = "attention"
    seed: int = 0
    places: tuple[int, int] | None = None  # the first and the last that may go; None: all but class tokens and text

    @property
    def opens(self) -> bool:
        return True

    def apply(self, program: Program) -> Program:
        ops, host = program.graph.ops, program.host.copy()  # read first: a host knows the literals that it has read
        found = self._found(program)
        making = _Making(self, host, found, ops)
        for number, place in enumerate(found.places):
            making.at(number)
            ids = making.call("positions", making.scores(number), best=self.keep[number])
            kept, size = (
                making.call("take", making.part(place.x.name, found.first, making.size - found.last), ids),
                making.size,
            )
            making.flow = making.call("take", making.flow, ids) if making.flow else ""
            if any(reading.own for reading in found.readings):
                making.remember(ids)
            ends = [(0, found.first), (size - found.last, size)]
            before, behind = ([making.part(place.x.name, *end)] if end[1] > end[0] else [] for end in ends)
            making.size = self.keep[number] + found.first + found.last
            parts = [*before, kept, *behind]
            made = making.call("concat", *parts, axis=1) if len(parts) > 1 else kept
            for op in ops[place.at + 1 :]:
                for operand, value in enumerate(op.inputs):
                    if value is place.x:
                        host.connect(op, operand, made)
            for reading in found.readings:
                if reading.place == number and reading.alike:
                    making.narrow(reading)
                elif reading.place == number and reading.own:
                    making.gather(reading)
                elif reading.place == number and reading.shape is not None:
                    host.set_literal(reading.op, "shape", list(reading.shape))
        host.own()
        host.shapes()
        return program.rewrite(host, self)

    def masked(self, program: Program, cut: Parameters) -> Program:
        """All tokens stay; those that are dropped are minus infinity to every later attention of others, and no part of
        means, sums and maxima of them. What they compute themselves nobody reads: they attend to themselves, for else
        the first of a causal decoder would attend to none."""
        ops, host = program.graph.ops, program.host.copy()  # read first: a host knows the literals that it has read
        found = self._found(program)
        making, alive = _Making(self, host, found, ops), list[str]()
        for number in range(len(found.places)):
            making.at(number)
            scores = making.scores(number, alive)
            base = making.call("pointwise", making.base, function="mul", number=0.0)
            if alive:
                dead = making.call(
                    "pointwise", making.part(alive[-1], found.first, making.size - found.last), function="log"
                )
                scores = making.call("pointwise", scores, dead, function="add")
            marked = making.call("mark", base, making.call("positions", scores, best=self.keep[number]))
            ones = making.call("pointwise", base, function="add", number=1.0)
            before, behind = (
                [making.call("slice", ones, axis=1, start=0, end=n)] if n else [] for n in (found.first, found.last)
            )
            parts = [*before, marked, *behind]
            alive.append(making.call("concat", *parts, axis=1) if len(parts) > 1 else marked)
        for reading in found.readings:
            if reading.weighs or reading.pool:
                making.mask(reading, alive[reading.place])
        return program.rewrite(host, self)

    def _found(self, program: Program) -> Found:
        found = tokens(program.graph, self.after, None, program.host, self.places)
        for number, keep in enumerate(self.keep):
            if not 1 <= keep <= (self.keep[number - 1] if number else found.some):
                raise RecipeError(f"the plan keeps {keep} of {found.some} tokens", "is it the same model?")
        left = [keep + found.first + found.last for keep in self.keep]
        return tokens(program.graph, self.after, left, program.host, self.places)

    def content(self) -> dict[str, Any]:
        made = {"keep": list(self.keep), "after": list(self.after), "chosen": self.chosen, "seed": self.seed}
        return {**made, **({"places": list(self.places)} if self.places else {})}

    @classmethod
    def read(cls, entry: Entry) -> Self:
        parts = entry.table(("keep", "after", "chosen", "seed"), ("places",))
        keep, after = (tuple(one.whole(1) for one in parts[name].entries()) for name in ("keep", "after"))
        chosen = parts["chosen"].text()
        if chosen not in CHOICES:
            raise parts["chosen"].error(f"tokens are chosen by {', '.join(CHOICES)}")
        if not keep or len(keep) != len(after) or list(after) != sorted(set(after)):
            raise parts["after"].error("every block stands there once, in order, with what it keeps")
        places = tuple(one.whole() for one in parts["places"].entries()) if "places" in parts else None
        if places is not None and len(places) != 2:
            raise parts["places"].error("the first and the last token that may go")
        return cls(keep, after, chosen, parts["seed"].whole(), places)


class _Making:
    """Puts ops before the one that follows a place. ``size``: how many tokens there are at it."""

    def __init__(self, edit: Tokens, host: Host, found: Found, ops: Sequence[Op]) -> None:
        self.edit, self.host, self.found, self.ops = edit, host, found, ops
        self.size, self.flow, self.base, self.done = found.size, "", "", 0
        self.ids = ""  # (batch, tokens): the original places of those that are left
        self.masks = dict[Op, str]()  # of attentions as one op: what has been left of theirs
        self.anchor = ops[0]

    def at(self, number: int) -> None:
        self.anchor = self.ops[self.found.places[number].at + 1]

    def call(self, kind: str, *inputs: str, **attrs: Any) -> str:
        return self.host.insert(self.anchor, kind, inputs, **attrs)

    def part(self, x: str, start: int, end: int) -> str:
        return self.call("slice", x, axis=1, start=start, end=end)

    # ---- scores -------------------------------------------------------------------------------------

    def scores(self, number: int, alive: Sequence[str] = ()) -> str:
        """(batch, tokens that may be dropped): the larger, the sooner it stays.

        ``attention``: what the class token attends to, a mean over heads (EViT, Liang et al. 2022);
        where there is none, the last token of text (FastV, Chen et al. 2024), or else all tokens alike.
        ``flow``: FlowCut (Tong et al. 2025): that, and how alike values are to the class token's
        (softmax of v_class v_j, a mean over heads), each to a sum of one, times the L1 norm of the mean over heads of
        its value; halved with every block that follows. ``random``: the same places in every sample."""
        there = self.edit.after[number]
        if self.edit.chosen == "random":
            x = self.part(self.found.places[number].x.name, self.found.first, self.size - self.found.last)
            self.base = self.call("reduce", x, function="mean", axes=[2])
            order = np.random.default_rng([self.edit.seed, number]).permutation(
                self.size - self.found.first - self.found.last
            )
            none = self.call("pointwise", self.base, function="mul", number=0.0)
            return self.call(
                "pointwise", none, self.call("constant", none, value=order[None].astype(np.float64)), function="add"
            )
        if self.edit.chosen == "attention":
            self.base = self._some(self._attended(self.found.attentions[there - 1], alive))
            return self.base
        for attention in self.found.attentions[self.done : there]:
            flow = self._flow(attention, alive)
            if self.flow:
                halves = [self.call("pointwise", one, function="mul", number=PAST) for one in (self.flow, flow)]
                flow = self.call("pointwise", *halves, function="add")
            self.flow = flow
        self.done = there
        self.base = self.flow
        return self.flow

    def _some(self, x: str) -> str:
        return self.part(x, self.found.first, self.size - self.found.last)

    @property
    def _row(self) -> int | None:
        """The token whose attention counts; None: all of them."""
        return None if self.found.row is None else self.found.row % self.size

    def _rows(self, x: str, axis: int) -> str:
        row = self._row
        return x if row is None else self.call("slice", x, axis=axis, start=row, end=row + 1)

    def _by_head(self, attention: Attention, of: str, queries: int, width: int) -> str:
        """With an axis of heads: (batch, heads, ...)."""
        value = attention.values
        if len(value.dims) == 4:
            return of
        count = heads(value, self.found.places[0].x.dims[0])
        return self.call("reshape", of, shape=[-1, count, queries, width])

    def _attended(self, attention: Attention, alive: Sequence[str]) -> str:
        """(batch, tokens): how much each is attended to."""
        rows = self.size if self._row is None else 1
        if attention.weights is not None:
            axis = len(attention.weights.dims) - 2
            shares = self._by_head(attention, self._rows(attention.weights.name, axis), rows, self.size)
        else:
            assert attention.queries is not None and attention.keys is not None
            asked = self._rows(attention.queries.name, 2)
            asked = self.call("pointwise", asked, function="mul", number=attention.scale)
            turned = self.call("transpose", attention.keys.name, perm=[0, 1, 3, 2])
            width, many, few = (
                int(one.size) for one in (attention.queries.dims[3], attention.queries.dims[1], attention.keys.dims[1])
            )
            if many != few:  # of keys that several heads share
                asked = self.call("reshape", asked, shape=[-1, few, many // few * rows, width])
            logits = self.call("matmul", asked, turned)
            if many != few:
                logits = self.call("reshape", logits, shape=[-1, many, rows, self.size])
            shares = self._softmax(self._behind_mask(logits, attention), alive)
        if self._row is not None or not alive:
            return self.call("reduce", shares, function="mean", axes=[1, 2])
        mean = self.call("reduce", shares, function="mean", axes=[1])
        own = self.call("reshape", alive[-1], shape=[-1, self.size, 1])
        total = self.call("reduce", self.call("pointwise", mean, own, function="mul"), function="sum", axes=[1])
        left = self.edit.keep[len(alive) - 1] + self.found.first + self.found.last
        return self.call("pointwise", total, function="mul", number=1 / left)

    def _behind_mask(self, logits: str, attention: Attention) -> str:
        mask = attention.mask
        if mask is None:
            return logits
        name = self.masks.get(attention.op, mask.name)
        if len(mask.dims) > 1 and mask.dims[-2].size != 1:
            name = self._rows(name, -2)  # of what was gathered the rank is another
        if mask.dtype != "bool":
            return self.call("pointwise", logits, name, function="add")
        return self.call("where", name, logits, self.call("constant", logits, value=np.array(-np.inf)))

    def _softmax(self, x: str, alive: Sequence[str]) -> str:
        if alive:
            dead = self.call("reshape", self.call("pointwise", alive[-1], function="log"), shape=[-1, 1, 1, self.size])
            x = self.call("pointwise", x, dead, function="add")
        return self.call("softmax", x)

    def _flow(self, attention: Attention, alive: Sequence[str]) -> str:
        width = int(attention.values.dims[-1].size)
        values = self._by_head(attention, attention.values.name, self.size, width)
        flow = self._shares(self._attended(attention, alive))
        if self._row == 0:
            turned = self.call("transpose", values, perm=[0, 1, 3, 2])
            alike = self._softmax(self.call("matmul", self._rows(values, 2), turned), alive)
            alike = self._shares(self.call("reduce", alike, function="mean", axes=[1, 2]))
            flow = self.call("pointwise", flow, alike, function="add")
        mean = self.call("reduce", values, function="mean", axes=[1])
        strength = self.call("reduce", self.call("pointwise", mean, function="abs"), function="sum", axes=[2])
        return self.call("pointwise", flow, self._some(strength), function="mul")

    def _shares(self, x: str) -> str:
        """Of the tokens that may be dropped, to a sum of one."""
        some = self._some(x)
        total = self.call("reshape", self.call("reduce", some, function="sum", axes=[1]), shape=[-1, 1])
        return self.call("pointwise", some, total, function="div")

    # ---- what tokens have beside their values --------------------------------------------------------

    def remember(self, ids: str) -> None:
        """Which tokens are left, where these of the ones that may go are."""
        first, last = self.found.first, self.found.last
        none = self.call("pointwise", self.call("slice", ids, axis=1, start=0, end=1), function="mul", number=0)
        ends = [np.arange(first), np.arange(self.size - last, self.size)]
        before, behind = (
            [self.call("pointwise", none, self.call("constant", none, value=end[None]), function="add")]
            if len(end)
            else []
            for end in ends
        )
        shifted = self.call("pointwise", ids, function="add", number=first) if first else ids
        parts = [*before, shifted, *behind]
        left = self.call("concat", *parts, axis=1) if len(parts) > 1 else shifted
        self.ids = self.call("take", self.ids, left) if self.ids else left

    def gather(self, reading: Reading) -> None:
        """Let an operand that has numbers of its own for every token have those of the tokens that are left: of samples
        alike, as many as there are samples."""
        self.anchor, value = reading.op, reading.op.inputs[reading.operand]
        assert value is not None
        rank = max(len(one.dims) for one in reading.op.inputs if one is not None)
        sizes: list[Any] = [find(dim).size for dim in value.dims]
        added = rank - len(sizes)
        x, own = value.name, [(axis + added, start) for axis, start in reading.own]
        alike, batch = added > 0 or sizes[0] == 1, self.found.places[0].x.dims[0]
        folded = 0 if alike or sizes[0] == find(batch).size else heads(value, batch)
        if alike and added != 1:
            x = self._reshaped(x, [*[1] * (added - 1), *sizes] if added else sizes[1:])
        elif folded:
            x, own = self._reshaped(x, [-1, folded, *sizes[1:]]), [(axis + 1, start) for axis, start in own]
        rank += bool(folded)
        for axis, start in own:
            ids = self.ids
            if start:
                ids = self.call("slice", ids, axis=1, start=start, end=self.size_left(reading))
                ids = self.call("pointwise", ids, function="add", number=-start)
            others = [k for k in range(1, rank) if k != axis]
            order = [0, axis, *others]
            if alike:
                x = self._turned(x, [k - 1 for k in order[1:]])
                x, alike = self.call("gather", x, ids, axis=0), False
            else:
                x = self.call("take", self._turned(x, order), ids)
            x = self._turned(x, [order.index(k) for k in range(rank)])
        if folded:
            left = [
                self.size_left(reading) - dict(reading.own)[k] if k in dict(reading.own) else sizes[k] for k in (1, 2)
            ]
            x = self._reshaped(x, [-1, *left])
        self.host.connect(reading.op, reading.operand, x)
        self._masked_by(reading, x)

    def _masked_by(self, reading: Reading, x: str) -> None:
        if reading.op.kind == "attention" and reading.operand == 3:
            self.masks[reading.op] = x

    def _turned(self, x: str, perm: Sequence[int]) -> str:
        return x if list(perm) == sorted(perm) else self.call("transpose", x, perm=list(perm))

    def _reshaped(self, x: str, sizes: Sequence[int | str]) -> str:
        shape = [size if isinstance(size, int) else -1 for size in sizes]
        if shape.count(-1) > 1:
            raise ModelError(f"`{x}` has {shape.count(-1)} open sizes, and tokens")
        return self.call("reshape", x, shape=shape)

    def size_left(self, reading: Reading) -> int:
        return self.edit.keep[reading.place] + self.found.first + self.found.last

    # ---- masks --------------------------------------------------------------------------------------

    def narrow(self, reading: Reading) -> None:
        """Let an operand that is one number everywhere have as many as there are tokens."""
        self.anchor, value = reading.op, reading.op.inputs[reading.operand]
        assert value is not None
        x, left = value.name, self.size_left(reading)
        for axis in reading.alike:
            x = self.call("slice", x, axis=axis, start=0, end=left)
        self.host.connect(reading.op, reading.operand, x)
        self._masked_by(reading, x)

    def mask(self, reading: Reading, alive: str) -> None:
        """Leave what was dropped out of what an op reads."""
        self.anchor = reading.op
        size = self.found.size - reading.start
        if reading.start:
            alive = self.part(alive, reading.start, self.found.size)
        if reading.weighs:
            self._hide(reading, alive, size)
            return
        x = reading.op.inputs[0]
        assert x is not None
        alive = self.call(
            "reshape", alive, shape=[-1, *(size if axis == reading.axis else 1 for axis in range(1, len(x.dims)))]
        )
        if reading.pool == "max":
            dead = self.call("pointwise", alive, function="log")
            self.host.connect(reading.op, 0, self.call("pointwise", x.name, dead, function="add"))
            return
        scale = size / (self.size_left(reading) - reading.start) if reading.pool == "mean" else 1.0
        share = self.call("pointwise", alive, function="mul", number=scale)
        self.host.connect(reading.op, 0, self.call("pointwise", x.name, share, function="mul"))

    def _hide(self, reading: Reading, alive: str, size: int) -> None:
        """Let an attention weigh what was dropped by nothing."""
        op, x = reading.op, reading.op.inputs[0]
        assert x is not None
        seen, rows = self.call("reshape", alive, shape=[-1, 1, 1, size]), 1
        if reading.square:
            others = self.call("constant", seen, value=1 - np.eye(size))
            dropped = self.call("pointwise", seen, function="add", number=-1.0)
            seen, rows = (
                self.call(
                    "pointwise", self.call("pointwise", dropped, others, function="mul"), function="add", number=1.0
                ),
                size,
            )
        if op.attrs.get("causal"):
            seen = self.call("pointwise", seen, self.call("constant", seen, value=np.tri(size)), function="mul")
            self.host.set_literal(op, "causal", False)
        dead = self.call("pointwise", seen, function="log")
        if not reading.operand:
            if len(x.dims) == 3:
                many = heads(x, self.found.places[0].x.dims[0])
                dead = self.call("expand", dead, shape=[-1, many, rows, size])
                dead = self.call("reshape", dead, shape=[-1, rows, size])
            dead = self.call("pointwise", x.name, dead, function="add")
        elif len(op.inputs) > 3 and (mask := op.inputs[3]) is not None:
            dead = self._both(mask, dead)
        self.host.connect(op, reading.operand, dead)

    def _both(self, mask: Value, dead: str) -> str:
        if mask.dtype != "bool":
            return self.call("pointwise", mask.name, dead, function="add")
        return self.call("where", mask.name, dead, self.call("constant", dead, value=np.array(-np.inf)))
