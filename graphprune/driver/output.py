"""Where results go: written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError


def apart(*outputs: str | os.PathLike[str] | None) -> None:
    """Raises OutputError where one output is another, or lies in it."""
    places = [Path(one).resolve() for one in outputs if one is not None]
    for k, one in enumerate(places):
        for other in places[:k]:
            if one.is_relative_to(other) or other.is_relative_to(one):
                raise OutputError(f"{one} and {other} are both written, and one holds the other", "choose another path")


@contextmanager
def new_folder(out: str | os.PathLike[str] | None, force: bool, mark: str = "plan.json") -> Iterator[Path | None]:
    """A folder beside ``out`` that takes its place when the block ends well, and vanishes otherwise.

    ``mark``: the file that says of a folder that graphprune wrote it. Raises OutputError if ``out`` exists
    (unless ``force``) or cannot be written.
    """
    if out is None:
        yield None
        return
    path = Path(out)
    if path.exists() and not force:
        raise OutputError(f"{path} exists", "choose another path, or replace it with --force")
    if path.exists() and not (path / mark).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(
            f"{path} exists and was not written by graphprune", "remove it yourself, or choose another path"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror})") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        _replace(temporary, path)
    except OSError as error:
        full = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OutputError(f"{path} cannot be written ({full})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    path.rename(old / path.name)
    try:
        new.rename(path)
    except OSError:
        (old / path.name).rename(path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
