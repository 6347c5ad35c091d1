"""What reads tokens behind the place where some are dropped: what it has to be told, and what cannot do without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from ..axes.dim import Dim, Size, find
from ..errors import ModelError
from ..ir.graph import Graph, Op, Value
from ..ir.host import Host
from .attentions import heads, shares
from .token_axis import TokenAxis, signature, within

PASSING = frozenset(
    "pointwise linear gemm matmul einsum fused_matmul layer_norm rms_norm prelu batch_norm transpose reshape expand "
    "repeat split concat slice select gather unbind stack glu reduce along attention size".split()
)
"""Kinds that, along other axes than the tokens' own, compute the same of each token, whatever others there are."""
GATHERED = frozenset("pointwise matmul attention".split())
"""Kinds whose operands may have numbers of their own for every token: of samples in the first axis, or of none."""
POOLS = ("mean", "sum", "max")


@dataclass(frozen=True)
class Reading:
    """An op behind the first place that tells how many tokens there are, by the number of the ``place``: one that
    ``weighs`` them along ``axis`` of an operand, or pools (``pool``: what it is a function of), or whose ``shape`` is
    written down, or of which an operand has the same number for all along axes ``alike``, or one for each
    along axes ``own``, (axis, the first token of it). ``square``: what it weighs, it weighs for each of them."""

    op: Op
    place: int
    operand: int = 0
    axis: int = 0
    start: int = 0  # of all tokens, the first that it reads
    pool: str = ""
    weighs: bool = False
    square: bool = False
    alike: tuple[int, ...] = ()
    own: tuple[tuple[int, int], ...] = ()
    shape: tuple[Size | None, ...] | None = None  # None: an open size; of tokens what is left, -1 where
    # an open axis holds them


@dataclass
class Readers:
    """Goes over ops in their order. ``size``: of all tokens, of which the ``first`` and the ``last`` stay, and ``left``
    remain behind each place."""

    graph: Graph
    host: Host
    axis: TokenAxis
    moving: set[Value]  # what depends on inputs
    size: int
    first: int
    last: int
    left: Sequence[int]
    batch: Dim
    known: dict[Value, int] = field(default_factory=dict)  # what holds tokens behind the first place: the last place
    weighed: set[Value] = field(default_factory=set)  # shares of attention
    pinned: set[Op] = field(default_factory=set)  # what makes tables, and has been looked at
    readings: list[Reading] = field(default_factory=list)

    def read(self, op: Op, place: int) -> None:
        """Raises ModelError where what the op reads of tokens cannot do without some."""
        held = [k for k, value in enumerate(op.inputs) if value is not None and value in self.known]
        if not held:
            return
        for k, value in enumerate(op.inputs):
            if value is not None and value not in self.known and op.kind != "size":
                self._beside(op, place, k, value)
        if op.kind not in PASSING:
            raise ModelError(f"{op.where} reads tokens in a way that is not known")
        passes = getattr(self, f"_{op.kind}", None)
        if passes is None or passes(op, place) is not False:
            self._hand_on(op, place)

    def _beside(self, op: Op, place: int, operand: int, value: Value) -> None:
        """An operand that does not come of what went on: tables of positions, biases of pairs, masks."""
        along = self.axis.of(value)
        if op.kind == "attention" and operand == 3:  # no rule says whose its axes are
            along = [
                (axis, True)
                for axis, of in zip((-2, -1), op.inputs[:2], strict=True)
                if len(value.dims) >= -axis and value.dims[axis].size != 1 and of is not None and self.axis.of(of)
            ]
            along = [(axis % len(value.dims), alone) for axis, alone in along]
        if not along:
            return
        if self._alike(value):
            self.readings.append(Reading(op, place, operand, alike=tuple(axis for axis, _ in along)))
            return
        if op.kind not in GATHERED or not all(alone for _, alone in along):
            raise ModelError(f"{op.where} reads `{value.name}`, which has numbers of its own for every token")
        streams = [one for one in op.inputs if one is not None and one in self.known]
        rank, batch = max(len(one.dims) for one in streams), find(self.batch).size
        if len(value.dims) > rank or any(axis == 0 and len(value.dims) == rank for axis, _ in along):
            raise ModelError(f"{op.where} reads `{value.name}`, in which samples are not the first axis")
        for one in (*streams, value):
            if len(one.dims) == rank and find(one.dims[0]).size not in (1, batch):
                if len(one.dims) != 3:
                    raise ModelError(f"{op.where} reads `{one.name}`, in which samples are not the first axis")
                heads(one, self.batch)
        starts = tuple((axis, self._start(op, operand, value, axis)) for axis, _ in along)
        self.readings.append(Reading(op, place, operand, own=starts))
        self._pin(value, place)

    def _pin(self, value: Value, place: int) -> None:
        """Tables that are made as long as there are tokens, as masks are in ONNX, stay as long as they were: what is
        gathered of them is theirs."""
        op = self.graph.maker(value)
        if op is None or value in self.known or op in self.pinned:
            return
        self.pinned.add(op)
        if op.kind == "expand":
            sizes = (find(dim).size for dim in value.dims)
            self.readings.append(Reading(op, place, shape=tuple(n if isinstance(n, int) else None for n in sizes)))
        for one in op.inputs:
            if one is not None and not one.constant:
                self._pin(one, place)

    def _start(self, op: Op, operand: int, value: Value, axis: int) -> int:
        """The first token that an axis of an operand has."""
        if op.kind == "attention" and operand == 3:
            q, k = op.inputs[:2]
            of = q if axis == len(value.dims) - 2 else k
            assert of is not None
            return self.axis.starts[signature(of.dims[-2])]
        return self.axis.starts[signature(value.dims[axis])]

    def _hand_on(self, op: Op, place: int) -> None:
        moved = shares(self.graph, op) is not None or op.kind in ("transpose", "reshape", "expand")
        for out in op.outputs:
            if self.axis.of(out):
                self.known[out] = place
                if moved and any(value in self.weighed for value in op.inputs if value is not None):
                    self.weighed.add(out)
            elif any(self.axis.taken_apart(dim) for dim in out.dims):
                raise ModelError(f"{op.where} folds tokens back into an image, or into windows of it")

    def _refuse(self, op: Op, axis: int, what: str) -> None:
        """Raises ModelError where an axis is the tokens'."""
        for value in op.inputs:
            if value is not None and value in self.known and axis % len(value.dims) in dict(self.axis.of(value)):
                raise ModelError(f"{op.where} {what}")

    def _along(self, op: Op, place: int) -> None:
        x = op.inputs[0]
        assert x is not None
        for axis in op.attrs["axes"]:
            if axis % len(x.dims) in dict(self.axis.of(x)):
                if (
                    op.attrs.get("function") != "softmax"
                    or len(op.attrs["axes"]) > 1
                    or axis % len(x.dims) != len(x.dims) - 1
                ):
                    raise ModelError(f"{op.where} computes along tokens, and is no attention")
                self._weighs(op, place, 0, len(x.dims) - 1, x, x.dims[-2])
                self.weighed.add(op.outputs[0])

    def _weighs(self, op: Op, place: int, operand: int, axis: int, x: Value, queries: Dim) -> None:
        keys = signature(x.dims[axis])
        square = signature(queries) == keys
        self.readings.append(Reading(op, place, operand, axis, self.axis.starts[keys], weighs=True, square=square))

    def _attention(self, op: Op, place: int) -> None:
        q, k, v = op.inputs[:3]
        assert q is not None and k is not None and v is not None
        for value in (q, k, v):
            if any(axis != len(value.dims) - 2 or not alone for axis, alone in self.axis.of(value)):
                raise ModelError(f"{op.where} has tokens along another axis than that of queries and keys")
        if self.axis.of(k):
            if op.attrs.get("causal") and signature(q.dims[-2]) != signature(k.dims[-2]):
                raise ModelError(f"{op.where} is causal, and has other queries than keys")
            self._weighs(op, place, 3, len(k.dims) - 2, k, q.dims[-2])

    def _contracted(self, op: Op, place: int) -> None:
        """A product of shares of attention with what they are shares of, or one along other axes."""
        relation = self.graph.relations[op.name]
        for name, uses in relation.inputs.items():
            if name in relation.outputs or signature(relation.dims[name]) not in self.axis.starts:
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
        if 0 in gone and any(axis not in (0, *gone) for axis, _ in self.axis.of(x)):
            raise ModelError(f"{op.where} computes along samples, of which each keeps tokens of its own")
        for axis, alone in self.axis.of(x):
            if axis in gone:
                if not alone or op.attrs.get("function") not in POOLS or not self._by_sample(x):
                    raise ModelError(f"{op.where} computes along tokens, and is no mean, sum or maximum of them")
                start = self.axis.starts[signature(x.dims[axis])]
                self.readings.append(Reading(op, place, 0, axis, start, pool=op.attrs["function"]))

    def _by_sample(self, x: Value) -> bool:
        return 0 not in dict(self.axis.of(x))

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
        if axis % len(x.dims) not in dict(self.axis.of(x)):
            return None
        start = self.axis.starts.get(signature(x.dims[axis]))
        stays = numbers is not None and start is not None and all(self._always(n, start) for n in numbers)
        if not stays:
            raise ModelError(f"{op.where} picks a token by its number")
        if any(self.axis.of(out) for out in op.outputs):
            raise ModelError(f"{op.where} picks tokens of the axis of others")
        return False

    def _always(self, number: int, start: int) -> bool:
        return 0 <= number < self.first - start or -self.last <= number < 0

    def _slice(self, op: Op, place: int) -> bool | None:
        x, out = op.inputs[0], op.outputs[0]
        assert x is not None
        for k, axis in enumerate(op.attrs["axes"]):
            mine = signature(x.dims[axis])
            if axis % len(x.dims) not in dict(self.axis.of(x)):
                continue
            begin, end = op.attrs["starts"][k], op.attrs["ends"][k]
            if mine not in self.axis.starts or None in (begin, end) or op.attrs["steps"][k] != 1:
                raise ModelError(f"{op.where} takes some of the tokens")
            size, before = int(find(x.dims[axis]).size), self.axis.starts[mine]
            start, stop, _ = slice(begin, end, 1).indices(size)
            if begin >= 0 and stop == size and 0 < before + start <= self.first and end >= size:
                self.axis.starts[signature(out.dims[axis])] = before + start
            elif (start, stop) != (0, size) or end < size:
                text = -self.last <= begin < 0 and end >= size  # the last of all, counted from the end
                if not text and (begin < 0 or not 0 < end <= self.first - before):
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
        for axis, _ in self.axis.of(x):
            if op.attrs["repeats"][axis - len(x.dims)] != 1:
                raise ModelError(f"{op.where} repeats tokens")

    def _shaped(self, op: Op, place: int) -> None:
        out = op.outputs[0]
        if "shape" in self.graph.relations[op.name].literals and self.axis.of(out):
            sizes = tuple(self._left(dim, place) for dim in out.dims)
            self.readings.append(Reading(op, place, shape=sizes))

    _reshape = _expand = _shaped

    def _left(self, dim: Dim, place: int) -> int | None:
        """How much is left of an axis; None: that is open; -1: and it holds tokens."""
        mine = signature(dim)
        if mine in self.axis.starts:
            return self.left[place] - self.axis.starts[mine]
        size = find(dim).size
        for known, start in self.axis.starts.items():
            if within(known, dim):
                return size // (self.size - start) * (self.left[place] - start) if isinstance(size, int) else -1
        return size if isinstance(size, int) else None

    def _alike(self, value: Value) -> bool:
        """Whether a value that no weight and no input has a part in is one number, as a mask is that hides nothing."""
        if value in self.moving or value.name in self.graph.parameters or not all(dict(self.axis.of(value)).values()):
            return False
        todo = [value]
        while todo:
            op = self.graph.maker(found := todo.pop())
            if op is None and prod(int(n) for n in found.shape or (0,)) > 1:
                return False
            todo += [one for one in op.inputs if one is not None] if op is not None and op.kind != "size" else []
        array = self.host.watch(self.host.example(), [value.name])[value.name]
        return bool(array.size and array.ravel()[0] == array.ravel()[0] and (array == array.ravel()[0]).all())
