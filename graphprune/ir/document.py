"""Reading a document that somebody else wrote: every value is refused with the place where it stands."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GraphpruneError, RecipeError, nearest
from .host import has_floats

LARGEST = 2**31 - 1
"""No axis, position or count is larger."""

DEEPEST = 16
"""Nor does anything that is kept as it stands nest deeper."""


@dataclass(frozen=True)
class Entry:
    """A value, the ``path`` to it, and the ``source`` that it is in: a file, or what was given.

    Every method returns the value as what it is wanted to be, or raises RecipeError with path and value.
    """

    value: Any
    source: str
    path: str = ""

    def error(self, message: str, hint: str | None = None) -> RecipeError:
        return RecipeError(": ".join(part for part in (self.source, self.path, message) if part), hint)

    def unlike(self, wanted: str) -> RecipeError:
        """The error for a value that is not what is ``wanted`` here."""
        return self.error(f"{reprlib.repr(self.value)} is not {wanted}")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What is wrong with what is made of the value is wrong here."""
        try:
            yield
        except GraphpruneError as error:
            raise self.error(error.message, error.hint) from error

    def holding(self, value: Any) -> Entry:
        """The same place with another value."""
        return Entry(value, self.source, self.path)

    def inside(self, key: str | int, value: Any) -> Entry:
        name = f"[{key!r}]" if isinstance(key, int) or not key.isidentifier() else f".{key}"
        return Entry(value, self.source, f"{self.path}{name}".removeprefix("."))

    def items(self) -> Iterator[tuple[str, Entry]]:
        """The entries of a mapping by name."""
        if not isinstance(self.value, Mapping):
            raise self.unlike("a mapping")
        for key in self.value:
            if not isinstance(key, str):
                raise self.error(f"the name {reprlib.repr(key)} is not text")
            yield key, self.inside(key, self.value[key])

    def table(self, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Entry]:
        """The entries of a mapping that has all the ``required`` names, and no other than the ``optional``."""
        found = dict(self.items())
        for name in found:
            if name not in (*required, *optional):
                raise self.error(f"unknown name {reprlib.repr(name)}", nearest(name[:100], (*required, *optional)))
        for name in required:
            if name not in found:
                raise self.error(f"`{name}` is missing")
        return found

    def entries(self, most: int = LARGEST) -> list[Entry]:
        if not isinstance(self.value, (list, tuple)):
            raise self.unlike("a list")
        if len(self.value) > most:
            raise self.error(f"{len(self.value)} entries, of which there may be {most}")
        return [self.inside(k, value) for k, value in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.unlike("text")
        return self.value

    def one_of(self, choices: tuple[str, ...]) -> str:
        if self.text() not in choices:
            raise self.error(f"unknown {reprlib.repr(self.value)}", nearest(self.text()[:100], choices))
        return self.text()

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.unlike("true or false")
        return self.value

    def whole(self, least: int = 0, most: int = LARGEST) -> int:
        """A whole number; neither true nor 1.0 is one."""
        if isinstance(self.value, bool) or not isinstance(self.value, (int, np.integer)):
            raise self.unlike("a whole number")
        if not least <= self.value <= most:
            raise self.unlike(f"a whole number from {least} to {most}")
        return int(self.value)

    def number(self) -> float:
        """A finite number."""
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float, np.integer, np.floating)):
            raise self.unlike("a number")
        try:
            found = float(self.value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise self.unlike("a finite number")
        return found

    def places(self, *, again: bool = False, none: bool = False) -> tuple[int, ...]:
        """Positions of an axis, in order. ``again``: one may stand there more than once; ``none``: there
        may be no position at all."""
        value = self.value
        if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu":
            value = value.tolist()
        if not isinstance(value, (list, tuple)):
            raise self.unlike("a list")
        wrong = next((k for k, at in enumerate(value) if type(at) is not int or not 0 <= at <= LARGEST), None)
        if wrong is not None:
            raise self.inside(wrong, value[wrong]).unlike("a position, a whole number from 0")
        if not value and not none:
            raise self.error("an empty list, which leaves no channel")
        if not again and len(set(value)) < len(value):
            first = {place: k for k, place in reversed(list(enumerate(value)))}
            twice = next(k for k, place in enumerate(value) if first[place] < k)
            raise self.inside(twice, value[twice]).error(f"{value[twice]} is there already")
        return tuple(value)

    def among(self, kept: tuple[int, ...]) -> tuple[int, ...]:
        """Some of the positions ``kept``, each once."""
        found, known = self.places(none=True), set(kept)
        wrong = next((k for k, place in enumerate(found) if place not in known), None)
        if wrong is not None:
            raise self.inside(wrong, found[wrong]).error(f"{found[wrong]} is not kept")
        return found

    def array(self) -> NDArray[Any]:
        """A tensor of finite numbers."""
        found = self.value
        if not isinstance(found, np.ndarray) or not (has_floats(found) or found.dtype.kind in "iu"):
            raise self.unlike("a tensor of numbers")
        if has_floats(found) and not np.isfinite(found).all():
            bad = int(found.size - np.isfinite(found).sum())
            raise self.error(f"{bad} of its {found.size} numbers are NaN or infinite")
        return found

    def plain(self, depth: int = DEEPEST) -> Any:
        """Whatever JSON can say, kept as it stands."""
        if self.value is None or isinstance(self.value, (bool, str)):
            return self.value
        if isinstance(self.value, (int, float)):
            self.number()
            return self.value
        if not depth:
            raise self.error("nests too deep")
        if isinstance(self.value, Mapping):
            return {name: entry.plain(depth - 1) for name, entry in self.items()}
        return [entry.plain(depth - 1) for entry in self.entries()]
