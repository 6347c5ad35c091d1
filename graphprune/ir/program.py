"""One model being compiled: a host, the graph read from it, the facts known, the history."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from ..errors import RecipeError
from .graph import Graph
from .host import Batch, Host

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
