"""What a pass is, and which passes there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar

from ..errors import RecipeError
from ..ir.program import Program

Progress = Callable[[str, int, int], None]
"""Called from long work as ``progress(what, done, total)``."""


class Pass:
    """One step of a recipe: a frozen dataclass whose fields are its options."""

    name: ClassVar[str]
    needs: ClassVar[tuple[type, ...]] = ()  # facts that must be known
    gives: ClassVar[tuple[type, ...]] = ()  # facts that it learns
    rewrites: ClassVar[bool] = False  # it edits the host, which drops all facts
    carries: ClassVar[tuple[type, ...]] = ()  # facts that, known before it rewrites, are known of the result

    def run(self, program: Program) -> Program:
        raise NotImplementedError

    def before(self) -> tuple[Pass, ...]:
        """The passes that, with these options, a recipe runs right before this one."""
        return ()

    def wants_data(self) -> bool:
        """Whether this pass, with these options, needs calibration data."""
        return False

    def text(self) -> str:
        """Canonical text: the name, and the options that are not at their default."""
        options = [f"{k}={_spell(v)}" for k, v in self.changed().items()]
        return f"{self.name}{{{' '.join(options)}}}" if options else self.name

    def options(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def changed(self) -> dict[str, Any]:
        """The options that are not at their default."""
        return {k: v for k, v in self.options().items() if v != _default(type(self), k)}


@cache
def passes() -> Mapping[str, type[Pass]]:
    """Every pass by name: the built-in ones and those of the entry-point group ``graphprune.passes``."""
    found = plug_ins("graphprune.passes", "pass", type)
    for name, kind in found.items():
        if not issubclass(kind, Pass):
            raise RecipeError(f"pass `{name}` ({kind.__module__}.{kind.__qualname__}) is no subclass of Pass")
    return {**found, **_built_in()}


def plug_ins(group: str, what: str, kind: type | None = None) -> dict[str, Any]:
    """What other packages bring by an entry-point group, by name; each a ``kind``, or where that is None a class
    that its user checks. Raises RecipeError."""
    found: dict[str, Any] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        try:
            found[entry.name] = entry.load()
        except Exception as error:  # someone else's package: anything may be wrong with it
            raise RecipeError(
                f"{what} `{entry.name}` ({entry.value}) does not load: {error}", "repair or uninstall the plug-in"
            ) from error
        if kind is not None and not isinstance(found[entry.name], kind):
            raise RecipeError(
                f"{what} `{entry.name}` ({entry.value}) is a {type(found[entry.name]).__name__}, not a {kind.__name__}",
                "repair or uninstall the plug-in",
            )
    return found


def _built_in() -> dict[str, type[Pass]]:
    from importlib import import_module

    names = ("group", "score", "loosen", "mask", "dead", "reorder", "propagate", "fold", "compensate")
    modules = [import_module(f"graphprune.passes.{name}") for name in names]
    classes = [c for m in modules for c in vars(m).values() if isinstance(c, type) and c.__module__ == m.__name__]
    return {c.name: c for c in classes if issubclass(c, Pass)}


def _default(kind: type[Pass], key: str) -> Any:
    default = next(field.default for field in fields(kind) if field.name == key)  # type: ignore[arg-type]
    return None if default is MISSING else default


def _spell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
