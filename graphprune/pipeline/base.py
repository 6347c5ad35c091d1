"""What a pass is, and which passes there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

from ..errors import GraphpruneError, RecipeError
from ..ir.program import Program
from .contract import REPAIR, hold, noun, place
from .options import Named, unreadable

T = TypeVar("T", bound=Named)
Progress = Callable[[str, int, int], None]
"""Called from long work as ``progress(what, done, total)``: of a recipe, of all of its work."""


class Pass(Named):
    """One step of a recipe: a frozen dataclass whose fields are its options."""

    needs: ClassVar[tuple[type, ...]] = ()  # facts that must be known
    gives: ClassVar[tuple[type, ...]] = ()  # facts that it learns
    also: ClassVar[tuple[type, ...]] = ()  # facts that it learns besides, with some options
    rewrites: ClassVar[bool] = False  # it edits the host, which drops all facts
    opens: ClassVar[bool] = False  # what it rewrites is what is pruned then: see ir.program.Edit.opens
    carries: ClassVar[tuple[type, ...]] = ()  # facts that, known before it rewrites, are known of the result

    def __init_subclass__(cls) -> None:
        # what `run` returns is checked, with what else a pass says of itself, in border.py
        hold(cls, "pass", {"__post_init__": object, "run": object, "before": tuple, "wants_data": bool}, RecipeError)

    def run(self, program: Program) -> Program:
        raise RecipeError(f"{place('pass', type(self))} has no `run`", "write what it does to the program")

    @classmethod
    def choices(cls) -> Mapping[str, Mapping[str, str]]:
        """By option, what can be chosen by name, each with a line on it: for ``graphprune passes NAME``."""
        return {}

    def before(self) -> tuple[Pass, ...]:
        """The passes that, with these options, a recipe runs right before this one."""
        return ()

    def wants_data(self) -> bool:
        """Whether this pass, with these options, needs calibration data."""
        return False

    def makes_biases(self) -> bool:
        """Whether it may give a bias to layers that have none: a budget before it in a recipe counts them."""
        return False

    def wants_loss(self) -> bool:
        """Whether it needs a loss beside."""
        return False


@cache
def passes() -> Mapping[str, type[Pass]]:
    """Every pass by name: the built-in ones and those of the entry-point group ``graphprune.passes``."""
    return {**plug_in_classes("graphprune.passes", "pass", Pass, RecipeError), **_built_in()}


def plug_in_classes(group: str, what: str, base: type[T], raises: type[GraphpruneError]) -> dict[str, type[T]]:
    """The subclasses of ``base`` that other packages bring, by name. Raises ``raises`` where one is something else,
    has another name than it is entered by, or options that cannot be read from text."""
    found = plug_ins(group, what, type, raises)
    for name, kind in found.items():
        who = f"{what} `{name}` ({kind.__module__}.{kind.__qualname__})"
        if not issubclass(kind, base):
            raise raises(f"{who} is no subclass of {base.__name__}", REPAIR)
        if (own := getattr(kind, "name", None)) != name:
            raise raises(f"{who} calls itself `{own}`", f"set name = {name!r} in the class")
        if reason := unreadable(kind):
            raise raises(f"{who} {reason}", "put @dataclass(frozen=True) above it, and give every option a default")
    return found


def plug_ins(
    group: str, what: str, kind: type | None = None, raises: type[GraphpruneError] = RecipeError
) -> dict[str, Any]:
    """What other packages bring by an entry-point group, by name; each a ``kind``, or where that is None a class
    that its user checks. Raises ``raises``."""
    found: dict[str, Any] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        try:
            found[entry.name] = entry.load()
        except Exception as error:  # someone else's package: anything may be wrong with it
            raise raises(f"{what} `{entry.name}` ({entry.value}) does not load: {error}", REPAIR) from error
        if kind is not None and not isinstance(found[entry.name], kind):
            is_a = noun(found[entry.name])
            raise raises(f"{what} `{entry.name}` ({entry.value}) is {is_a}, not a {kind.__name__}", REPAIR)
    return found


def _built_in() -> dict[str, type[Pass]]:
    from importlib import import_module

    found = (
        "vocabulary",
        "rms",
        "rotate",
        "factor",
        "tokens",
        "group",
        "branches",
        "score",
        "loosen",
        "mask",
        "dead",
        "reorder",
        "propagate",
        "fold",
    )
    names = (*found, "compensate")
    modules = [import_module(f"graphprune.passes.{name}") for name in names]
    classes = [c for m in modules for c in vars(m).values() if isinstance(c, type) and c.__module__ == m.__name__]
    return {c.name: c for c in classes if issubclass(c, Pass)}
