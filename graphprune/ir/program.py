"""One model being compiled: a host, the graph read from it, the facts known, the history, and the plan,
which says what was done to the model as it was given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NotRequired, Self, TypedDict, TypeVar

from ..errors import ModelError, RecipeError
from .document import Entry
from .facts import Role
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


class Axis(TypedDict):
    """What was kept of one axis of a parameter: positions of the axis as it was, in order. ``blank``: those
    of them that count for nothing, see facts.Keep."""

    role: Role
    keep: list[int]
    blank: NotRequired[list[int]]


Parameters = Mapping[str, Mapping[str, Axis]]
"""Per parameter and axis number (as text, as JSON has it) what was kept."""


@dataclass(frozen=True)
class Edit(ABC):
    """Something that was done to a model. Done to the same model again, it needs nothing measured again.

    A package adds a kind of its own by the entry-point group ``graphprune.edits``.
    """

    kind: ClassVar[str]  # what ``edit`` says in plan.json
    fitted: ClassVar[bool] = False  # it holds what was fitted to the weights, and is wrong for any others
    drops: ClassVar[bool] = False  # one that opens leaves out what is not of channels: it computes what `masked` does

    by: str = field(default="", kw_only=True)  # the pass that did it, as a recipe has it

    @abstractmethod
    def apply(self, program: Program) -> Program:
        """Do it. Raises RecipeError where the model has no place for it."""

    @abstractmethod
    def masked(self, program: Program, cut: Parameters) -> Program:
        """Do to the masked model what makes it compute what the cut one does after ``apply``. It has the
        original shapes, and what is not kept of ``cut`` (all that the plan cuts) reads as zero."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """All but ``edit`` and ``pass``, as JSON has it; only ``weights``, by name, may be arrays."""

    @classmethod
    @abstractmethod
    def read(cls, entry: Entry) -> Self:
        """The inverse of ``content``. Raises RecipeError with the place of what is amiss."""

    @property
    def opens(self) -> bool:
        """Whether it leaves what is computed as it was (but for what it ``drops``), for dims that can be pruned after
        it: the model that plans speak of, whose channels are masked, is the one with all such edits, which come before
        all others."""
        return False

    def check(self) -> None:  # noqa: B027 (most have nothing to check)
        """Whether it can be done at all, whatever the model. Raises RecipeError."""

    def step(self) -> dict[str, Any]:
        """As an entry of the plan's ``steps``."""
        return {"edit": self.kind, **self.content(), "pass": self.by}


E = TypeVar("E", bound=Edit)


@dataclass(frozen=True, eq=False)
class Plan(Mapping[str, Any]):
    """What was done to a model: every edit in order, and the ``parameters`` that all cuts together left.

    As a mapping it reads like plan.json: ``steps``, ``parameters``, and ``segments`` and ``fingerprint`` where
    there are any; nothing at all where nothing was done.
    """

    edits: tuple[Edit, ...] = ()
    parameters: Parameters = field(default_factory=dict)
    segments: tuple[Mapping[str, Any], ...] = ()  # what the report says of layers that share channels
    fingerprint: str = ""  # of the weights that it was made from
    about: Mapping[str, Any] = field(default_factory=dict)  # model, recipe and seed, where a file says them

    def of(self, kind: type[E]) -> list[E]:
        """The edits of a kind, in order."""
        return [edit for edit in self.edits if isinstance(edit, kind)]

    @property
    def openings(self) -> tuple[Edit, ...]:
        """The edits that opened dims, in order."""
        return tuple(edit for edit in self.edits if edit.opens)

    def signed(self, since: int, by: str) -> Plan:
        """The same, the edits from number ``since`` on being done ``by`` a pass."""
        new = (replace(edit, by=by) for edit in self.edits[since:])
        return replace(self, edits=(*self.edits[:since], *new))

    def __getitem__(self, key: str) -> Any:
        if key not in self._keys():
            raise KeyError(key)
        return [edit.step() for edit in self.edits] if key == "steps" else getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def _keys(self) -> list[str]:
        extra = [key for key in ("segments", "fingerprint") if getattr(self, key)]
        return ["parameters", "steps", *extra] if self.edits else []


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
    plan: Plan = field(default_factory=Plan)  # what was done to the source
    notes: tuple[str, ...] = ()  # what a pass left undone, and why
    first: Host | None = None  # of a network that was compiled before: what the first time began with,
    earlier: tuple[Parameters, ...] = ()  # and what was kept each time
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

    @property
    def origin(self) -> Host:
        """The model as the user made it, however often it was compiled since."""
        return self.source if self.first is None else self.first

    def __repr__(self) -> str:
        done = ",".join(step.text for step in self.history)
        return f"<Program: {self.host.kind}, {len(self.graph.ops)} ops{f', after {done}' if done else ''}>"

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

    def forget(self, kind: type) -> Program:
        """The same program without what it knows of a kind."""
        return self._with(facts={known: fact for known, fact in self.facts.items() if known is not kind})

    def rewrite(self, host: Host, edit: Edit | None = None, **plan: Any) -> Program:
        """The program after an edit: the graph is read anew and no fact survives.

        ``edit`` says how to do it again; where a pass makes none, replaying the plan runs the pass again.
        ``plan`` entries (``parameters``, ``segments``) replace those of the plan.
        """
        edits = self.plan.edits if edit is None else (*self.plan.edits, edit)
        return replace(self, host=host, facts={}, plan=replace(self.plan, edits=edits, **plan))

    def did(self, edit: Edit) -> Program:
        """The same program, whose plan has an edit more."""
        return self.planned(replace(self.plan, edits=(*self.plan.edits, edit)))

    def planned(self, plan: Plan) -> Program:
        """The same program with another account of what was done to its source."""
        return self._with(plan=plan)

    def afresh(self) -> Program:
        """The network as it is, as if it had been given like that: what is done from here on is proven against it,
        and planned for it. Facts stay."""
        earlier = (*self.earlier, self.plan.parameters)
        return self._with(source=self.host, history=(), plan=Plan(), first=self.origin, earlier=earlier)

    def note(self, *notes: str) -> Program:
        """The same program with remarks for the report: what was left undone, and why."""
        return self._with(notes=(*self.notes, *notes))

    def reporting(self, progress: Callable[[str, int, int], None]) -> Program:
        """The same program, whose passes tell ``progress`` how far they are."""
        return self._with(progress=progress)

    def seeing(self, data: Sequence[Batch]) -> Program:
        """The same program with other calibration data, and no loss."""
        return self._with(data=data, loss=None)

    def ran(self, step: Step) -> Program:
        return self._with(history=(*self.history, step))

    def _with(self, **changes: Any) -> Program:
        new = replace(self, **changes)
        if "graph" in self.__dict__:  # nothing that changed here changes the graph
            new.__dict__["graph"] = self.__dict__["graph"]
        return new


def must_be_program(given: object, by: str) -> None:
    """Raises ModelError where something else is given, such as the module that a program is made of."""
    if not isinstance(given, Program):
        raise ModelError(
            f"{by} takes a Program, not {type(given).__name__}",
            "gp.load(model, example_inputs) makes one, and artifact.program is one",
        )
