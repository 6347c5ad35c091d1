"""Boards: what a compiler has to know of a device, as small data files that anybody can add to."""

from __future__ import annotations

import math
import platform
import shlex
import shutil
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import TargetError, absent, nearest
from .tvm.winograd import GROWTH

_FOLDER = Path(__file__).with_name("boards")


@dataclass(frozen=True)
class Board:
    """A device. A file may start from another board, ``base = "aarch64"``, and say what differs."""

    name: str
    summary: str = ""  # one line for `graphprune targets`
    code: str = "object"  # object: machine code from LLVM; c: C99 source, for any compiler
    triple: str = ""  # as LLVM spells it
    mcpu: str = ""  # as LLVM names it
    mattr: tuple[str, ...] = ()  # features beyond the CPU's own
    float_abi: str = ""  # of 32-bit Arm
    abi: str = ""  # of RISC-V
    compiler: str = ""  # a C compiler that links for the device; empty: TRIPLE-gcc
    flags: tuple[str, ...] = ()  # of that compiler
    emulator: str = ""  # the command that runs the device's programs on another machine
    cores: int = 1
    growth: float = GROWTH  # of weights that may be added to save time; 0 where memory for them is short
    bare: bool = False  # no operating system: a static library with the weights in it, and no program

    @property
    def cc(self) -> str:
        return self.compiler or f"{self.triple}-gcc"

    @property
    def machine(self) -> str:
        """The architecture, as ``uname -m`` says it; empty where any will do."""
        return self.triple.partition("-")[0]

    def runner(self) -> list[str]:
        """What to put before the device's programs to run them here. Raises TargetError where they cannot."""
        if self.bare:
            raise TargetError(f"`{self.name}` has no operating system to run a program", "link libmodel.a to yours")
        if self.machine in ("", platform.machine()):
            return []
        command = shlex.split(self.emulator)
        if command and shutil.which(command[0]):
            return command
        absent = f"no `{command[0]}` on the PATH" if command else "the board names no emulator"
        raise TargetError(f"programs for `{self.name}` do not run here: {absent}", "Debian: apt-get install qemu-user")

    def llvm(self) -> dict[str, Any]:
        """The fields of a TVM target."""
        if self.code == "c":
            return {"kind": "c"}
        given = {"mtriple": self.triple, "mcpu": self.mcpu, "mattr": list(self.mattr),
                 "mfloat-abi": self.float_abi, "mabi": self.abi}  # fmt: skip
        return {"kind": "llvm", **{key: value for key, value in given.items() if value}, "num-cores": self.cores}


@cache
def boards() -> Mapping[str, Board]:
    """The boards that come with graphprune, by name."""
    return {path.stem: read(path) for path in sorted(_FOLDER.glob("*.toml"))}


def board(name: str) -> Board:
    """A board by its name, or by the path of a file of one's own. Raises TargetError for neither."""
    if name.endswith(".toml"):
        return read(Path(name))
    if name not in boards():
        raise TargetError(f"unknown board `{name}`", f"{nearest(name, boards())} Or give a .toml file of your own")
    return boards()[name]


def read(path: Path) -> Board:
    """The board that a file describes. Raises TargetError, naming the file and the entry."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TargetError(f"{path}: no such file", absent(path)) from error
    except (OSError, ValueError) as error:
        such = 'a board is a .toml file with base = "aarch64" and what differs'
        raise TargetError(f"{path}: not a board ({error})", such) from error
    while (base := given.pop("base", None)) is not None:
        start = _FOLDER / f"{base}.toml"
        if not start.is_file() or start == path:
            raise TargetError(f"{path}: base `{base}` is not a board", nearest(str(base), _names()))
        given = {**tomllib.loads(start.read_text(encoding="utf-8")), **given}
    types = typing.get_type_hints(Board)
    known = [field.name for field in fields(Board) if field.name != "name"]
    for key, value in given.items():
        if key not in known:
            raise TargetError(f"{path}: a board has no `{key}`", nearest(key, known))
        wanted = list if types[key] == tuple[str, ...] else types[key]
        if wanted is float and type(value) is int:
            given[key] = value = float(value)
        if not isinstance(value, wanted) or (wanted is list and not all(isinstance(one, str) for one in value)):
            raise TargetError(f"{path}: `{key}` is {value!r}", f"it takes {_KINDS[wanted]}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    made = Board(path.stem, **values)
    if made.code not in ("object", "c") or (made.code == "object" and not made.triple):
        raise TargetError(f"{path}: `code` is object, which needs a `triple`, or c")
    if not 0 <= made.growth < math.inf:
        message = f"{path}: `growth` is a share of the weights, 0 or more, not {made.growth}"
        raise TargetError(message, "growth = 1 lets them become twice as many")
    return made


_KINDS = {str: "a text", int: "a whole number", bool: "true or false", float: "a number", list: "a list of texts"}


def _names() -> list[str]:
    return [path.stem for path in _FOLDER.glob("*.toml")]
