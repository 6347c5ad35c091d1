"""Calibration data in files: arrays and images, read as they are needed."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ..errors import DataError, absent
from ..ir.graph import Value
from ..ir.host import Array, Batch
from .images import Images

CHUNK = 64
"""Samples a batch where the model takes any number, at most."""
CHUNK_BYTES = 1 << 22
"""What the samples of such a batch take, at most: what is computed of them takes many times as much."""


def chunk(sample_bytes: int) -> int:
    """Samples a batch where the model takes any number."""
    return max(1, min(CHUNK, CHUNK_BYTES // max(sample_bytes, 1)))


def arrays_of(path: Path) -> list[Array]:
    """The arrays of an ``.npy`` or ``.npz`` file. Raises DataError."""
    with _plain(path):
        loaded = np.load(path, allow_pickle=False)
        return [loaded[name] for name in loaded.files] if isinstance(loaded, np.lib.npyio.NpzFile) else [loaded]


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of an ``.npz`` file by name. Raises DataError."""
    with _plain(path), ExitStack() as opened:
        return {name: member.shape for name, member in _members(path, opened).items()}


def read_npz(path: Path, rows: int, whole: Sequence[str] = ()) -> Iterator[dict[str, Array]]:
    """The arrays of an ``.npz`` file by name, ``rows`` positions of axis 0 at a time, so that no more than
    these are held; those of ``whole`` all of them every time. Raises DataError."""
    with _plain(path), ExitStack() as opened:
        members = _members(path, opened)
        always = {name: member.take(member.left) for name, member in members.items() if name in whole}
        if always.keys() == members.keys():
            yield always
        while any(member.left for member in members.values()):
            yield {name: always[name] if name in always else member.take(rows) for name, member in members.items()}


def _members(path: Path, opened: ExitStack) -> dict[str, _Member]:
    archive = opened.enter_context(zipfile.ZipFile(path))
    return {name.removesuffix(".npy"): _Member(opened.enter_context(archive.open(name))) for name in archive.namelist()}


class _Member:
    """An array that is read from its first row to its last."""

    def __init__(self, file: IO[bytes], read: bool = True) -> None:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, self.dtype = read_header(file)
        if self.dtype.hasobject:
            raise ValueError("it holds Python objects")
        self._file, self._row, self.left = file, shape[1:], shape[0] if shape else 1
        self.shape: tuple[int, ...] = shape
        self._whole: Array | None = None
        self._scalar: Array | None = None
        if not read:  # its shape alone
            return
        if not shape:
            self._scalar = self._read(())
        elif fortran and len(shape) > 1:  # its rows are not together
            self._whole = self._read(shape[::-1]).T

    def take(self, rows: int) -> Array:
        count = min(rows, self.left)
        self.left -= count
        if self._scalar is not None:
            return self._scalar
        if self._whole is not None:
            taken, self._whole = self._whole[:count], self._whole[count:]
            return taken
        return self._read((count, *self._row))

    def _read(self, shape: Sequence[int]) -> Array:
        size = prod(shape) * self.dtype.itemsize
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("it ends too early")
        return np.frombuffer(bytearray(data), self.dtype).reshape(shape)


@contextmanager
def _plain(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", absent(path)) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        why = "it holds Python objects, or is of another kind" if "pickle" in str(error) else error
        raise DataError(
            f"{path}: not an .npz or .npy file of plain arrays ({why})",
            "write it with numpy.savez; text, of hf:FOLDER, is a .txt file",
        ) from error


def samples_of(path: Path) -> list[Path]:
    """The ``.npz`` files of a folder in order of their names: one sample each."""
    return sorted(path.rglob("*.npz"))


class Folder(Sequence[Batch]):
    """The files of a folder in order of their names, read when a batch is asked for, so that no more than
    one batch is held. ``.npy``: one sample each (without the batch axis), those of one length that follow each
    other in a batch. Images: RGB (or grey, where the model takes one channel), resized to the model's size or, of
    open axes, to ``sizes``, and made numbers as ``images`` says. For models of one input.

    ``size``: samples a batch, by default as ``chunk`` says; ``full``: a rest that does not fill one is dropped.
    ``check``: what is done to the arrays of a batch."""

    IMAGES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp"))

    def __init__(
        self,
        path: Path,
        inputs: Sequence[Value],
        size: int | None,
        full: bool,
        check: Callable[[Sequence[Array]], list[Array]],
        sizes: Mapping[str, int],
        images: Images,
    ) -> None:
        if len(inputs) != 1:
            hint = "write an .npz, or one for each sample"
            raise DataError(f"{path}: a folder of single arrays feeds one input, the model takes {len(inputs)}", hint)
        self.path, self.value, self.check, self.images = path, inputs[0], check, images
        self.shape = [sizes.get(n, n) if isinstance(n, str) else n for n in self.value.shape or ()]
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in {".npy", *self.IMAGES})
        self.batches: list[list[Path]] = []
        for _, alike in groupby(files, self._shape):
            some = list(alike)
            step = size or chunk(self._sample(some[0]).nbytes)
            self.batches += [some[k : k + step] for k in range(0, len(some), step)]
        if full:
            self.batches = [batch for batch in self.batches if len(batch) == size]
        if not self.batches:
            raise self._nothing(path, files, size)
        self[0]  # what does not fit is said now

    def classes(self) -> Iterator[Array]:
        """Per batch, the numbers of the folders that its samples are in. Raises DataError where they are in none."""
        parts = [[file.relative_to(self.path).parts[0] for file in batch] for batch in self.batches]
        loose = [file for batch in self.batches for file in batch if file.parent == self.path]
        if loose:
            raise DataError(
                f"{loose[0]}: in no folder of its own, which would say what class it is of",
                "a folder a class, or an .npz with `labels`",
            )
        names = sorted({name for batch in parts for name in batch})
        return (np.array([names.index(name) for name in batch]) for batch in parts)

    def _nothing(self, path: Path, files: Sequence[Path], size: int | None) -> DataError:
        if files:
            few = f"{path}: {len(files)} .npy files or images do not fill a batch of {size}"
            return DataError(few, "give more, or a model whose batch axis is open")
        there = sorted(file.name for file in path.rglob("*") if file.is_file())[:3]
        return DataError(
            f"{path}: no calibration data: {f'no .npy, .npz or image, but {there[0]}' if there else 'an empty folder'}",
            f"samples are .npy or .npz files, or images ({', '.join(sorted(self.IMAGES))})",
        )

    def __len__(self) -> int:
        return len(self.batches)

    def counts(self) -> list[int]:
        """The samples of every batch; no file is read."""
        return list(map(len, self.batches))

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            some = copy.copy(self)
            some.batches = self.batches[number]
            return some
        files = self.batches[number]
        try:
            return self.check([np.stack([self._sample(file) for file in files])])
        except DataError as error:
            if not error.message.startswith(str(self.path)):
                error.message = f"{files[0]}: {error.message}"
            raise

    def _shape(self, file: Path) -> tuple[int, ...]:
        """Of an array; images are all of one."""
        if file.suffix.lower() != ".npy":
            return ()
        with _plain(file), file.open("rb") as opened:
            return _Member(opened, read=False).shape

    def _sample(self, file: Path) -> Array:
        if file.suffix.lower() == ".npy":
            (read,) = arrays_of(file)
            return read
        return self.images.read(file, self.value, self.shape)
