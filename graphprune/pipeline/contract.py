"""What a class of another package promises, kept: what its methods raise or return amiss becomes one clear error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from ..errors import GraphpruneError, first_line

REPAIR = "repair or uninstall the plug-in"


def hold(kind: type, what: str, returns: Mapping[str, Any], raises: type[GraphpruneError]) -> None:
    """Have the methods that ``kind`` itself defines return what ``returns`` says (``object``: anything), and raise
    nothing but GraphpruneError: ``raises`` says who did what, from the cause. ``what``: a word for what ``kind`` is.

    graphprune's own classes stay as they are: an error of theirs is a fault to report, with its traceback.
    """
    if not foreign(kind):
        return
    for name, expected in returns.items():
        if callable(method := vars(kind).get(name)):
            setattr(kind, name, _held(method, what, expected, raises))


def foreign(kind: type) -> bool:
    """Whether a class is another package's."""
    return kind.__module__.partition(".")[0] != "graphprune"


def place(what: str, kind: type) -> str:
    """Which one, and from where: ``pass `mine` (package.module.Mine)``."""
    name = getattr(kind, "name", None)
    return f"{what} `{name}` ({_path(kind)})" if name else f"{what} {_path(kind)}"


def noun(value: object) -> str:
    """What a value is, in an error."""
    return "None" if value is None else f"a {type(value).__name__}"


def _held(method: Callable[..., Any], what: str, expected: Any, raises: type[GraphpruneError]) -> Callable[..., Any]:
    name = method.__name__

    @wraps(method)
    def call(self: object, *args: Any, **kwargs: Any) -> Any:
        who = place(what, type(self))
        with _blaming(f"{who}: `{name}`", raises):
            made = method(self, *args, **kwargs)
        if not isinstance(made, expected):
            wanted = expected.__name__ if isinstance(expected, type) else str(expected)
            raise raises(f"{who}: `{name}` returned {noun(made)}, not a {wanted}", REPAIR)
        return _each(made, f"{who}: `{name}`", raises) if isinstance(made, Iterator) else made

    return call


def _each(made: Iterator[Any], who: str, raises: type[GraphpruneError]) -> Iterator[Any]:
    """A generator raises while it is read."""
    with _blaming(who, raises):
        yield from made


@contextmanager
def _blaming(who: str, raises: type[GraphpruneError]) -> Iterator[None]:
    try:
        yield
    except GraphpruneError:
        raise
    except Exception as error:  # someone else's code: anything may be wrong with it
        raise raises(f"{who} raised {type(error).__name__}: {first_line(error)}", REPAIR) from error


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
