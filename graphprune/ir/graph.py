"""The thin graph that passes see: ops, values, and what the rules say of them.

The graph is a *view*: weights, literals and execution stay with the Host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..axes.dim import Dim, Size, leaves
from ..axes.index import Indices


@dataclass(eq=False, slots=True)
class Value:
    """A tensor. ``constant`` says that it depends on weights and literals alone."""

    name: str
    shape: tuple[Size, ...] | None  # None: unknown rank, nothing of it can be pruned
    dtype: str = "float32"
    constant: bool = False
    dims: tuple[Dim, ...] = ()  # filled in by rules.relate
    picks: Dim | None = None  # likewise: the axis that its numbers are positions of, if it is known that they are

    def __str__(self) -> str:
        shape = "?" if self.shape is None else "x".join(map(str, self.shape))
        return f"%{self.name}:{shape}"


@dataclass(eq=False, slots=True)
class Op:
    """One operation. ``origin`` (module path or node name) is what every message shows."""

    name: str  # unique in its graph, stable across edits that keep the op
    kind: str  # canonical kind, a key of rules.RULES, or the host's own name where there is none
    inputs: tuple[Value | None, ...]  # tensor operands in the rule's order; None: absent
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    def __str__(self) -> str:
        outs = ", ".join(map(str, self.outputs))
        ins = ", ".join("_" if value is None else f"%{value.name}" for value in self.inputs)
        attrs = "".join(f" {key}={value}" for key, value in sorted(self.attrs.items()))
        return f"{outs} = {self.kind}({ins}){attrs}"

    @property
    def where(self) -> str:
        """How messages name this op."""
        return f"{self.origin or self.name} ({self.kind})"


@dataclass(eq=False)
class Graph:
    """Ops in execution order. ``parameters``: every weight, buffer and constant tensor by name.
    ``relations``: what the rules said of each op, by op name. ``maskers``: what masks a dim that no
    weight reads (queries with keys). ``norms``: those that are written out. ``choices``: what weighs positions of a dim
    against one another. ``lanes``: axes whose positions have ops of their own. ``tables``: names of stored numbers that
    the host knows not to be trained. Ops may be appended while it is built; afterwards it stays as it is."""

    ops: list[Op]
    inputs: list[Value]
    outputs: list[Value]
    parameters: dict[str, Value]
    relations: dict[str, Relation] = field(default_factory=dict)
    maskers: list[Masker] = field(default_factory=list)
    norms: list[WrittenNorm] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    lanes: list[Lanes] = field(default_factory=list)
    tables: frozenset[str] = frozenset()
    _known: _UseDef | None = field(default=None, init=False, repr=False)

    def maker(self, value: Value) -> Op | None:
        """The op that makes a value; None for inputs and parameters."""
        return self._use_def.makers.get(value)

    def users(self, value: Value) -> tuple[Op, ...]:
        """The ops that read a value, in order of execution, each once."""
        return self._use_def.users.get(value, ())

    def only_user(self, value: Value) -> Op | None:
        """The op that reads a value, in one place, where nobody else does: None where the value is an output
        of the graph."""
        users = self.users(value)
        alone = len(users) == 1 and users[0].inputs.count(value) == 1 and not self.is_output(value)
        return users[0] if alone else None

    def stored(self, value: Value) -> Value | None:
        """The parameter that a constant is, or is a transpose of, where nobody else reads it on the way; else None."""
        if self.only_user(value) is None:
            return None
        maker = self.maker(value)
        if maker is not None and maker.kind == "transpose" and maker.inputs[0] is not None:
            return self.stored(maker.inputs[0])
        return value if value.name in self.parameters else None

    def is_output(self, value: Value) -> bool:
        """Whether a value leaves the graph."""
        return value in self._use_def.outputs

    @property
    def weighed(self) -> frozenset[Dim]:
        """The leaves whose positions some op weighs against one another."""
        return frozenset(leaf for choice in self.choices for leaf in leaves(choice.dim))

    @property
    def _use_def(self) -> _UseDef:
        if self._known is None or self._known.ops != len(self.ops):
            self._known = _UseDef.of(self)
        return self._known

    def values(self) -> Iterator[Value]:
        yield from self.inputs
        yield from self.parameters.values()
        for op in self.ops:
            yield from op.outputs

    @property
    def draws(self) -> bool:
        """Whether an op draws random numbers."""
        return any(op.attrs.get("draws") for op in self.ops)

    def text(self) -> str:
        """The program as text: what tests compare and ``graphprune inspect --text`` prints."""
        lines = [f"input  {value}" for value in self.inputs]
        lines += [f"weight {value}" for value in self.parameters.values() if self.users(value)]
        lines += [str(op) for op in self.ops]
        lines += [f"output %{value.name}" for value in self.outputs]
        return "\n".join(lines)


@dataclass(frozen=True)
class _UseDef:
    """Who makes and who reads each value of a graph that has so many ``ops``."""

    ops: int
    makers: Mapping[Value, Op]
    users: Mapping[Value, tuple[Op, ...]]
    outputs: frozenset[Value]

    @classmethod
    def of(cls, graph: Graph) -> _UseDef:
        makers = {out: op for op in graph.ops for out in op.outputs}
        users: dict[Value, dict[Op, None]] = {}
        for op in graph.ops:
            for value in op.inputs:
                if value is not None:
                    users.setdefault(value, {})[op] = None
        return cls(len(graph.ops), makers, {v: tuple(found) for v, found in users.items()}, frozenset(graph.outputs))


@dataclass(frozen=True)
class Masker:
    """An axis of a parameter that, zeroed at a position of ``dim``, masks it where ``op`` (its name) contracts
    two activations along it, or (``across``) takes a mean over it, so that it must be zero where it is written."""

    dim: Dim
    parameter: str
    axis: int
    op: str
    across: bool = False


@dataclass(frozen=True)
class WrittenNorm:
    """A norm over ``dim`` that is written out in ops: the names of the one that takes the mean, of the one that adds a
    number to it (its attribute ``plus``; empty: none does), of the parameter that, ``shift`` added to it, scales what
    comes out, and of the op that applies it. What the weight scales goes with ``power`` of the mean (RMSNorm: -1/2),
    what the number is added to with ``eps_power``."""

    dim: Dim
    mean: str
    eps: str
    weight: str
    op: str
    shift: float = 0.0
    power: float = -0.5
    eps_power: float = 1.0


@dataclass(frozen=True)
class Choice:
    """An op, by name, that weighs the positions of an axis of its first operand against one another, such as softmax,
    or takes the ``best`` so many of them. One that is masked is minus infinity there, which counts for nothing."""

    op: str
    axis: int
    dim: Dim
    best: int = 1


def around(graph: Graph, op: Op, lines: int = 2) -> str:
    """The ops about one op, as text, that one marked: what errors show."""
    at = next(k for k, one in enumerate(graph.ops) if one is op)
    near = range(max(at - lines, 0), min(at + lines + 1, len(graph.ops)))
    return "\n".join(f"  {'>' if k == at else ' '} {_clipped(str(graph.ops[k]))}" for k in near)


def around_named(graph: Graph, message: str) -> str | None:
    """The same for the op whose name ``message`` begins with, the longest of them, as messages of hosts do."""
    found = [op for op in graph.ops if message.startswith((f"{op.origin or op.name} (", f"{op.name} ("))]
    return around(graph, max(found, key=lambda op: len(op.origin))) if found else None


def _clipped(line: str) -> str:
    return line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..."


_WIDTH = 160
"""Of a line in an error: attributes of some ops are long."""


@dataclass(frozen=True)
class Site:
    """A place before one operand of one op where an axis may be reindexed: see the rule of ``reindex``."""

    op: str
    operand: int
    axis: int
    inner: int = 1
    fills: bool = False


@dataclass(frozen=True)
class Branch:
    """One operand of an add of two: without it the add is its other operand."""

    op: str
    operand: int


@dataclass(frozen=True)
class Lanes:
    """An axis whose positions have ops of their own. By op, by name, that takes single positions of it, which, one an
    output, and that joins single positions to it, which, one an operand. ``ends``: for every position what of it is
    added to, or joined with, what others make: without these nothing is left of it."""

    dim: Dim
    takes: Mapping[str, tuple[int, ...]]
    joins: Mapping[str, tuple[int, ...]]
    ends: Mapping[int, tuple[Branch, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rank:
    """Ops, by name, that stand for a layer, or for several that read the same: ``dim`` is the rank of its weight, and
    lies between ``inner`` and ``outers``."""

    inner: str
    outers: tuple[str, ...]
    dim: Dim


@dataclass(frozen=True)
class Piece:
    """Positions, in order, of an axis of ``size`` of one operand of an op; -1 stands for zeros."""

    op: Op
    operand: int
    at: Indices
    size: int


@dataclass(frozen=True)
class Relation:
    """What a rule says of one op: its named axes, where each occurs, and the literals they set.

    ``inputs`` and ``outputs`` map an axis name to (operand position, axis number) pairs; ``picks`` to the operands
    whose numbers are positions of it.
    """

    dims: Mapping[str, Dim]
    inputs: Mapping[str, tuple[tuple[int, int], ...]]
    outputs: Mapping[str, tuple[tuple[int, int], ...]]
    literals: Mapping[str, str] = field(default_factory=dict)
    picks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
