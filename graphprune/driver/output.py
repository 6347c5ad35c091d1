"""Where results go: written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..hosts.given import PREFIX
from ..ir.atomic import Stage, followed, spelt, stage, system_error, unwritable
from ..ir.host import SUFFIXES

_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE)


def apart(*outputs: str | os.PathLike[str] | None) -> None:
    """Raises OutputError where one output is another, or lies in it."""
    places = [Path(one).resolve() for one in outputs if one is not None]
    for k, one in enumerate(places):
        for other in places[:k]:
            if one.is_relative_to(other) or other.is_relative_to(one):
                raise OutputError(f"{one} and {other} are both written, and one holds the other", "choose another path")


def outside(out: str | os.PathLike[str] | None, *read: Any) -> None:
    """Raises OutputError where the folder to be written is one that holds what is read: a model or data."""
    for one in read:
        if out is not None and isinstance(one, (str, os.PathLike)):
            path = Path(os.fspath(one).removeprefix(PREFIX))
            if path.exists() and path.resolve().is_relative_to(Path(out).resolve()):
                raise OutputError(f"{out} would be replaced, and what is read is in it: {path}", "choose another path")


@contextmanager
def new_folder(out: str | os.PathLike[str] | None, force: bool, mark: str = "plan.json") -> Iterator[Path | None]:
    """A folder beside ``out`` that takes its place when the block ends well, and vanishes otherwise.

    ``mark``: the file that says of a folder that graphprune wrote it; only such a folder, or an empty one, is ever
    replaced, with ``force``, also where it appears while the block runs. A link stays one, its target is replaced.
    Raises OutputError if ``out`` exists, is being written by another run, or cannot be written.
    """
    if out is None:
        yield None
        return
    path = followed(Path(out))
    if path.suffix in SUFFIXES and not path.exists():
        raise OutputError(f"{path}: a folder is written, and this names a file", f"give {path.with_suffix('')}")
    _check(path, force, mark)
    spelt(path)
    parents(path)
    with stage(path) as place:
        _check(path, force, mark)  # what a process that died had put aside is back
        try:
            yield place.new
            _publish(place, force, mark)
        except Exception as error:  # of a file in it, by whatever library writes that
            refused = system_error(error)
            if refused is not None and (refused.errno in _OUTPUT_ERRORS or _within(refused, place.folder)):
                raise unwritable(Path(out), refused) from error
            raise


def parents(path: Path) -> None:
    """Make the folders above ``path``. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def put(path: Path, text: str) -> None:
    """Write a file of text, in the place of one that is there. Raises OutputError."""
    with stage(path) as place:
        made = place.new / path.name
        try:
            made.write_text(text, encoding="utf-8")
            made.replace(path)
        except OSError as error:
            raise unwritable(path, error) from error


def _check(path: Path, force: bool, mark: str) -> None:
    if path.exists() and not force:
        raise OutputError(f"{path} exists", "choose another path, or replace it with --force")
    if path.exists() and not _ours(path, mark):
        raise OutputError(
            f"{path} exists and was not written by graphprune", "remove it yourself, or choose another path"
        )


def _ours(path: Path, mark: str) -> bool:
    return path.is_dir() and ((path / mark).is_file() or not any(path.iterdir()))


def _publish(place: Stage, force: bool, mark: str) -> None:
    try:
        if force and place.path.exists():
            place.swap(place.new, lambda old: _ours(old, mark))
        else:
            place.put(place.new)
    except FileExistsError as error:
        raise OutputError(
            f"{place.path} appeared while the result was being made, and was left as it is",
            "move it away and run again, or choose another path",
        ) from error
    except OSError as error:
        raise unwritable(place.path, error) from error


def _within(error: OSError, folder: Path) -> bool:
    return isinstance(error.filename, (str, os.PathLike)) and Path(error.filename).is_relative_to(folder)
