"""``name{option=value ...}``: how passes and targets are written, read and spelt."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, ClassVar

from ..errors import GraphpruneError, nearest, shown

_LARGEST = 2**63


class Named:
    """Something with a name; as a dataclass, its fields are its options."""

    name: ClassVar[str]

    def text(self) -> str:
        """Canonical text: the name, and the options that are not at their default."""
        changed = [f"{k}={spell(v)}" for k, v in self.changed().items()]
        return f"{self.name}{{{' '.join(changed)}}}" if changed else self.name

    def options(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def changed(self) -> dict[str, Any]:
        """The options that are not at their default."""
        defaults = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]
        defaults = {name: None if default is MISSING else default for name, default in defaults.items()}
        return {k: v for k, v in self.options().items() if v != defaults[k]}


@dataclass(frozen=True)
class Reader:
    """Reads the options of one named thing; what is amiss is raised as ``raises``, with ``what`` it is the name of."""

    name: str
    raises: type[GraphpruneError]
    what: str = ""  # "target "

    def split(self, body: str | None) -> dict[str, str]:
        """The options between the braces, as they are written."""
        options: dict[str, str] = {}
        for item in (body or "").split():
            key, equals, value = item.partition("=")
            if not equals or not value:
                raise self.raises(
                    f"`{shown(self.name)}`: cannot read option `{shown(item)}`",
                    "write option=value, separated by spaces",
                )
            if key in options:
                twice = f"option `{shown(key)}` is given twice: {shown(options[key])} and {shown(value)}"
                raise self.raises(f"{self.what}`{shown(self.name)}`: {twice}", "leave one out")
            options[key] = value
        return options

    def values(self, kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options given as text or TOML values, as ``kind`` takes them."""
        types, known = typing.get_type_hints(kind), [field.name for field in fields(kind)]
        values = {}
        for key, value in options.items():
            if key not in known:
                hint = nearest(key, known) if known else "it has none"
                raise self.raises(f"{self.what}`{shown(self.name)}` has no option `{shown(key)}`", hint)
            try:
                values[key] = _value(value, types[key])
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                takes = f"`{self.name}`: option `{key}` takes a {types[key].__name__}"
                raise self.raises(f"{takes}, not `{shown(value)}`") from error
        return values


def pattern(name: str, end: str = "") -> re.Pattern[str]:
    """Of a name, as the expression ``name`` has it, options in braces or none, and what comes after."""
    return re.compile(rf"\s*({name})(?:\s*\{{([^{{}}]*)\}})?\s*{end}")


def summary(of: object) -> str:
    """The first line of a docstring."""
    return (of.__doc__ or "").strip().partition("\n")[0].strip()


def spell(value: object) -> str:
    """As text, the same for 3 and 3.0."""
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


def unreadable(kind: type) -> str | None:
    """Why the options of a class cannot be read from text, or None."""
    if not is_dataclass(kind):
        return "is no dataclass"
    try:
        types, own = typing.get_type_hints(kind), {field.name: field for field in fields(kind)}
    except Exception as error:  # annotations are code of someone else's
        return f"has annotations that cannot be read ({error})"
    for key in vars(kind).get("__annotations__", {}):  # a subclass of a dataclass need not be one itself
        if key not in own and typing.get_origin(types[key]) is not ClassVar and types[key] is not ClassVar:
            return f"has the option `{key}` and is no dataclass"
    for key, field in own.items():
        if field.default is MISSING:
            return f"has no default for its option `{key}`"
        if not isinstance(types[key], type):
            return f"has the option `{key}` of type {types[key]}, which no text is read as"
    return None


def portion(text: str) -> float:
    """``0.5``, ``0.5x`` and ``50%`` are one thing. Raises ValueError."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text.removesuffix("x"))


def _value(value: Any, kind: Any) -> Any:
    if kind is float and isinstance(value, str):
        return portion(value)
    if kind is bool:
        return {"true": True, "false": False}[str(value).lower()]
    if isinstance(value, (bool, list, dict)) or (kind is int and isinstance(value, float)):
        raise ValueError
    made = kind(value)
    if kind is int and abs(made) >= _LARGEST:
        raise ValueError
    return made
