"""The thin graph that passes see, and the Program that carries it.

The graph is a *view*: weights, literals and execution stay with the Host (a torch.fx GraphModule
or an onnx_ir Model). Passes read the view and ask the host for a handful of edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .dims import Dim, Indices, Size
from .errors import RecipeError

Array = NDArray[Any]
Batch = Sequence[Array]
"""One array per model input, in the model's order."""


@dataclass(eq=False, slots=True)
class Value:
    """A tensor. ``constant`` says that it depends on weights and literals alone."""

    name: str
    shape: tuple[Size, ...] | None  # None: unknown rank, nothing of it can be pruned
    dtype: str = "float32"
    constant: bool = False
    dims: tuple[Dim, ...] = ()  # filled in by rules.relate

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
    ``relations``: what the rules said of each op, by op name. ``maskers``: where no weight reads a
    dim (queries with keys), the parameter axes that mask it, with the op that contracts it."""

    ops: list[Op]
    inputs: list[Value]
    outputs: list[Value]
    parameters: dict[str, Value]
    relations: dict[str, Relation] = field(default_factory=dict)
    maskers: list[tuple[Dim, str, int, str]] = field(default_factory=list)

    def values(self) -> Iterator[Value]:
        yield from self.inputs
        yield from self.parameters.values()
        for op in self.ops:
            yield from op.outputs

    def text(self) -> str:
        """The program as text: what tests compare and ``graphprune inspect --text`` prints."""
        lines = [f"input  {value}" for value in self.inputs]
        used = {id(value) for op in self.ops for value in op.inputs}
        lines += [f"weight {value}" for value in self.parameters.values() if id(value) in used]
        lines += [str(op) for op in self.ops]
        lines += [f"output %{value.name}" for value in self.outputs]
        return "\n".join(lines)


@dataclass(frozen=True)
class Site:
    """A place before one operand of one op where an axis may be reindexed: see the rule of ``reindex``."""

    op: str
    operand: int
    axis: int
    inner: int = 1
    fills: bool = False


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

    ``inputs`` and ``outputs`` map an axis name to (operand position, axis number) pairs.
    """

    dims: Mapping[str, Dim]
    inputs: Mapping[str, tuple[tuple[int, int], ...]]
    outputs: Mapping[str, tuple[tuple[int, int], ...]]
    literals: Mapping[str, str] = field(default_factory=dict)


class Host(Protocol):
    """Who owns weights, literals and execution. Editing methods change the host they are called on:
    a pass edits a ``copy``, never the host it was given."""

    kind: str  # "torch" or "onnx"

    @property
    def model(self) -> Any:
        """The fx.GraphModule or onnx_ir.Model."""

    def lift(self) -> Graph:
        """The thin graph, built anew, its axes related by ``rules.relate``."""

    def copy(self, dtype: str | None = None) -> Host:
        """An independent host that shares weight storage until edited; ``dtype`` casts every
        floating tensor (``"float64"``)."""

    def own(self) -> None:
        """Share no storage with the host this one was copied from: the result may be trained in place."""

    def parameter(self, name: str) -> Array:
        """The tensor as numpy (bf16 and fp16 widened to float32). Not to be written to."""

    def set_parameter(self, name: str, value: Array) -> None:
        """Replace a tensor; the dtype it has is kept."""

    def take(self, name: str, axis: int, keep: Indices) -> None:
        """Keep only ``keep`` of one axis of a tensor, in that order, exactly."""

    def zero(self, name: str, axis: int, drop: Indices) -> None:
        """Set the given slices of a tensor to zero, in a copy of its own. In a quantised tensor the zero
        point is what stands for zero."""

    def set_literal(self, op: Op, name: str, value: Any) -> None:
        """Set a literal of the op (rules.py says which ops have which): an int or a list of ints.
        In a list, None stands for a dynamic size, which stays what it was."""

    def add_bias(self, op: Op, bias: Array) -> None:
        """Add ``bias`` (one entry per output channel) to a conv's or linear's bias, making one if
        there is none."""

    def insert_reindex(self, site: Site) -> None:
        """Put an op of the kind ``reindex`` there. It changes nothing until ``set_reindex``."""

    def set_reindex(self, op: Op, pieces: Sequence[Piece]) -> None:
        """Replace a ``reindex`` op by the concatenation of ``pieces``: by nothing where that is all of its
        operand, a slice where it is a run, else by a gather."""

    def remove(self, op: Op) -> None:
        """Drop an op; its readers read its first input instead."""

    def example(self) -> list[Array]:
        """Inputs of the right names, shapes and dtypes to run on."""

    def run(self, batch: Batch) -> list[Array]:
        """The outputs for one batch of inputs."""

    def watch(self, batch: Batch, names: Sequence[str], known: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run once and return intermediate values by name. ``known`` values are taken as they are:
        nothing that only they depend on is computed."""

    def gradients(
        self, batch: Batch, loss: Callable[..., Any], rest: Batch, probe: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """The gradient of ``loss(output, *rest)``, a scalar, for every parameter; with ``probe`` v, a vector
        per parameter, v * (H v) entry by entry, H the Hessian. Raises GraphpruneError on a host that has
        no gradients."""

    def shapes(self) -> dict[str, tuple[Size, ...]]:
        """Every value's shape, inferred anew. Raises ShapeError naming the op that disagrees."""

    def save(self, path: Path) -> None:
        """Write the model in the host's own format (``model.pt2``, ``model.onnx``)."""


Fact = TypeVar("Fact")


@dataclass(frozen=True)
class Loss:
    """``function(output, *rest)`` to a scalar; ``rest``, per batch, is what the calibration data has beside
    the model's inputs (labels)."""

    function: Callable[..., Any]
    rest: Sequence[Batch]


@dataclass(frozen=True)
class Step:
    """One pass that ran: its options, its canonical text, its time, and what it left behind."""

    name: str
    options: Mapping[str, Any]
    text: str
    seconds: float
    ops: int
    params: int


def _quiet(what: str, done: int, total: int) -> None:
    """Nobody asked to be told."""


@dataclass(frozen=True)
class Program:
    """One model being compiled: a host, the graph read from it, the facts known, the history.

    A Program never changes: passes return a new one, sharing what they did not touch.
    """

    host: Host
    source: Host  # the model as it was given; what verification compares with
    data: Sequence[Batch] = ()  # calibration batches
    loss: Loss | None = None  # what gradient criteria differentiate
    facts: Mapping[type, Any] = field(default_factory=dict)
    history: tuple[Step, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)  # what was done to the source
    notes: tuple[str, ...] = ()  # what a pass left undone, and why
    seed: int = 0
    progress: Callable[[str, int, int], None] = field(default=_quiet, compare=False)  # (what, done, total)

    @cached_property
    def graph(self) -> Graph:
        """The thin graph of the model as it is now."""
        return self.host.lift()

    @property
    def model(self) -> Any:
        """The user's model as it is now: a torch.fx GraphModule or an onnx_ir.Model."""
        return self.host.model

    def knows(self, fact: type) -> bool:
        return fact in self.facts

    def fact(self, kind: type[Fact]) -> Fact:
        """What an earlier pass learned. Raises RecipeError if none did."""
        if kind not in self.facts:
            raise RecipeError(
                f"{kind.__name__} is not known here",
                "run the pass that gives it first (`graphprune passes` lists them); a rewrite drops all facts",
            )
        value: Fact = self.facts[kind]
        return value

    def learn(self, fact: object) -> Program:
        """The same program, knowing one fact more."""
        return self._with(facts={**self.facts, type(fact): fact})

    def rewrite(self, host: Host, step: Mapping[str, Any] | None = None, **plan: Any) -> Program:
        """The program after an edit: the graph is read anew and no fact survives.

        ``step`` is what replaying the edit needs beside the pass's own options; ``plan`` entries
        replace those of the plan.
        """
        steps = [*self.plan.get("steps", ()), dict(step or {})]
        return replace(self, host=host, facts={}, plan={**self.plan, **plan, "steps": steps})

    def note(self, *notes: str) -> Program:
        """The same program with remarks for the report: what was left undone, and why."""
        return self._with(notes=(*self.notes, *notes))

    def reporting(self, progress: Callable[[str, int, int], None]) -> Program:
        """The same program, whose passes tell ``progress`` how far they are."""
        return self._with(progress=progress)

    def ran(self, step: Step) -> Program:
        return self._with(history=(*self.history, step))

    def _with(self, **changes: Any) -> Program:
        new = replace(self, **changes)
        if "graph" in self.__dict__:  # nothing that changed here changes the graph
            new.__dict__["graph"] = self.__dict__["graph"]
        return new


def random_array(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> Array:
    """Example data of a dtype: normal floats, small non-negative integers, coin flips."""
    if dtype == "bool":
        return rng.random(tuple(shape)) < 0.5
    if dtype.startswith(("int", "uint")):
        return rng.integers(0, 2, tuple(shape)).astype(dtype)
    return rng.standard_normal(tuple(shape)).astype(dtype)
