"""Weights that are large beside the machine's memory: what is made of them lies in temporary files, mapped.

What was read from safetensors, or from a file beside an ONNX model, is a map of that file already. The system takes
pages of maps back when memory runs short, and reads them again when they are needed.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ..errors import OutputError
from .host import Array

LARGE_BYTES = 1 << 29
"""Weights that are mapped and take more are large."""
COLLECTED_BYTES = 1 << 28
"""An edited model of more is looked for when the edit is done."""
SMALL_BYTES = 1 << 16
"""What takes less stays in memory."""
FILE_BYTES = 1 << 26
"""What takes more has a file of its own, which goes with it; the rest shares files of four times that: a process may
have a thousand open."""
ALIGNED = 64


def are_large(sizes: Iterable[int]) -> bool:
    """Whether weights of so many bytes each are."""
    return sum(sizes) > LARGE_BYTES


def give_back() -> None:
    """What was freed goes back to the system. glibc keeps it, in pieces that the arrays of the next layer do not fit
    into, so that a walk through many layers would hold more with each."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # another libc
            trim(0)


def in_turn(arrays: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Arrays by name. What was freed on the way goes back to the system after every ``FILE_BYTES`` of them: pieces of
    what is made of one are held by what is small and stays, and the next does not fit in between."""
    size = 0
    for name, array in arrays.items():
        yield name, array
        size += array.nbytes
        if size > FILE_BYTES:
            size = 0
            give_back()


def released(size: int, edited: bool) -> None:
    """After work with a model of so many bytes: what nobody has any more goes back to the system, such as a model that
    was ``edited``. Those refer to themselves, so that the collector alone finds them, which does not know how large
    they are. It walks over all that torch has imported, a quarter of a second: not for models that fit in beside it."""
    if size > (COLLECTED_BYTES if edited else LARGE_BYTES):
        gc.collect()
        give_back()


class Room:
    """Room for arrays in temporary files. A file goes when nothing in it is used any more."""

    def __init__(self) -> None:
        self._shared = memoryview(b"")

    @staticmethod
    def wants(size: int) -> bool:
        """Whether an array of so many bytes is to be there."""
        return size >= SMALL_BYTES

    def take(self, size: int) -> memoryview:
        """So many bytes, to be written. Raises OutputError where the disk is full."""
        if size > FILE_BYTES:
            return self._file(size)
        if len(self._shared) < size:
            self._shared = self._file(4 * FILE_BYTES)
        found, self._shared = self._shared[:size], self._shared[-(-size // ALIGNED) * ALIGNED :]
        return found

    def put(self, array: Array) -> Array:
        """A copy of an array there; one that is small stays as it is."""
        if not self.wants(array.nbytes):
            return array
        made = self.empty(array.shape, array.dtype)
        made[...] = array
        return made

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """An array there, to be written."""
        size = prod(shape) * dtype.itemsize
        return np.frombuffer(self.take(size), dtype, prod(shape)).reshape(shape)

    def _file(self, size: int) -> memoryview:
        try:
            with tempfile.TemporaryFile(prefix="graphprune-") as file:
                if hasattr(os, "posix_fallocate"):  # a map of a file that the disk has no room for ends the process
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                return memoryview(mmap.mmap(file.fileno(), size))
        except OSError as error:
            where, why = tempfile.gettempdir(), error.strerror or error
            raise OutputError(f"{where}: no room for {size:,} bytes ({why})", "TMPDIR names another folder") from error
