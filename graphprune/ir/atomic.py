"""Results that appear whole: renames that never remove what they were not told to, and a place beside each
output that one process at a time has, cleared of what dead ones left there."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import OutputError, printable

NOREPLACE, EXCHANGE = 1, 2
_HERE = -100  # AT_FDCWD


@dataclass(frozen=True)
class Stage:
    """A folder beside ``path`` that this process alone has: ``new`` takes what is being made. ``old``, ``claim`` and
    ``drop`` are there between two steps of a change only, and tell a later run how to end it."""

    path: Path
    folder: Path

    @property
    def new(self) -> Path:
        return self.folder / "new"

    @property
    def old(self) -> Path:
        return self.folder / "old"

    @property
    def claim(self) -> Path:
        return self.folder / "claim"

    @property
    def drop(self) -> Path:
        return self.folder / "drop"

    def put(self, new: Path) -> None:
        """``new`` becomes ``path``. Raises FileExistsError if there is anything, which stays."""
        if _rename(new, self.path, NOREPLACE):
            return
        if not new.is_dir():
            os.link(new, self.path)
            new.unlink()
            return
        self.claim.touch()
        self.path.mkdir()  # fails where anything is
        try:
            new.rename(self.path)  # onto an empty folder only
        except OSError as error:
            with suppress(OSError):
                self.path.rmdir()
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.path)) from error
            raise
        finally:
            self.claim.unlink(missing_ok=True)

    def swap(self, new: Path, ours: Callable[[Path], bool]) -> None:
        """``new`` and what is at ``path`` change places; back again unless that is ``ours``, which raises
        FileExistsError."""
        if _rename(new, self.path, EXCHANGE):
            if not ours(new):
                _rename(new, self.path, EXCHANGE)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.path))
            return
        self.path.rename(self.old)
        try:
            if not ours(self.old):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.path))
            self.put(new)
        except BaseException:
            self._restore()
            raise
        _remove(self.old)

    def put_model(self, replace: bool, beside: Sequence[str] = (), drop: Sequence[str] = ()) -> None:
        """The file ``path.name`` of ``new`` becomes ``path``, the files ``beside`` go with it, and ``drop``, what the
        model that is replaced alone used, goes. Where the model is renamed the result is new, before that old.
        Raises FileExistsError for what is there already, of ``path`` unless ``replace``."""
        for name in beside:
            os.link(self.new / name, self.path.with_name(name))
        self.drop.write_text(json.dumps(list(drop)), encoding="utf-8")
        if replace:
            (self.new / self.path.name).replace(self.path)
        else:
            self.put(self.new / self.path.name)
        self._clear()

    def _restore(self) -> None:
        """What was put aside goes back, unless the result took its place; for what else is there now it is kept."""
        if not self.old.exists():
            return
        if not self.new.exists():
            _remove(self.old)
            return
        try:
            self.put(self.old)
        except FileExistsError:
            self.old.rename(self.folder / "kept")

    def _clear(self) -> None:
        """End what was begun and not ended: back if the result was not renamed yet, else forth; then remove all
        that this module made here."""
        if self.claim.exists():
            with suppress(OSError):
                self.path.rmdir()  # claimed, and empty still
        self._restore()
        made = self.new / self.path.name
        done = self.drop.exists() and (not made.exists() or (self.path.exists() and made.samefile(self.path)))
        for name in _names(self.drop) if done else ():
            self.path.with_name(name).unlink(missing_ok=True)
        for file in () if done or not self.new.is_dir() else list(self.new.iterdir()):
            beside = self.path.with_name(file.name)
            if beside != self.path and file.is_file() and beside.is_file() and file.samefile(beside):
                beside.unlink()
        # `drop` without the model in `new` says that the model is in its place.
        for path in (self.claim, *((self.new, self.drop) if done else (self.drop, self.new))):
            _remove(path)


@contextmanager
def stage(path: Path) -> Iterator[Stage]:
    """The stage of an output, with an empty folder ``new``; gone when the block ends, and so is the folder of a
    process that died. The folder above must be there. Raises OutputError while another run has it, or if it
    cannot be made."""
    try:
        made = Stage(path, path.parent / f".{path.name}.graphprune")
        lock = _locked(made)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        try:
            made._clear()
            made.new.mkdir()
        except OSError as error:
            raise unwritable(path, error) from error
        yield made
    finally:
        with suppress(OSError):
            made._clear()
        with suppress(OSError):
            _lock_file(made).unlink()
            made.folder.rmdir()
        os.close(lock)


def followed(path: Path) -> Path:
    """Where a link leads, so that the target is replaced and the link stays. Raises OutputError for a circle."""
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path} is a link that leads nowhere", "choose another path") from error


def spelt(path: Path) -> str:
    """A path as ONNX Runtime and TVM read it. Raises OutputError where its name is no text."""
    try:
        return os.fsencode(path.absolute()).decode()
    except UnicodeDecodeError as error:
        raise OutputError(f"{printable(str(path))}: its name is not UTF-8", "choose another path") from error


def unwritable(path: Path, error: OSError) -> OutputError:
    """The error to raise where ``path`` cannot be written."""
    full = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    above = next((one for one in path.parents if one.exists()), path)
    hint = f"{above} is a file" if above.is_file() else f"choose another path, or make room in {above}"
    return OutputError(f"{path} cannot be written ({full})", hint)


def system_error(error: BaseException) -> OSError | None:
    """What the system refused, where that is why ``error`` was raised: by Python, or by a library that says so in words
    of its own (Rust's, with the number)."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        if said := re.search(r"\(os error (\d+)\)", str(seen)):
            return OSError(int(said[1]), os.strerror(int(said[1])))
        seen = seen.__cause__
    return None


def _lock_file(made: Stage) -> Path:
    return made.folder / "lock"


def _locked(made: Stage) -> int:
    """An open file whose lock this process has; it ends with the process. Raises OutputError if another has it."""
    while True:
        made.folder.mkdir(exist_ok=True)
        try:
            file = os.open(_lock_file(made), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # removed in between by the one that had it
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _lock_file(made).exists() and os.path.samestat(os.fstat(file), _lock_file(made).stat()):
                return file
        except BlockingIOError as error:
            os.close(file)
            raise OutputError(
                f"{made.path} is being written by another run", "wait for it, or choose another path"
            ) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Linux's renameat2 with a flag. False where system or file system does not have it."""
    call = _renameat2()
    if call is None:
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(target))


@cache
def _renameat2() -> Callable[[int, bytes, int, bytes, int], int] | None:
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return call


def _names(drop: Path) -> list[str]:
    try:
        return [Path(name).name for name in json.loads(drop.read_text(encoding="utf-8"))]
    except (ValueError, TypeError):  # torn: the process died while it was written, before the rename
        return []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
