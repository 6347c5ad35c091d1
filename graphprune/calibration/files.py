"""Calibration data in files: arrays and images, read as they are needed."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ..errors import DataError
from ..ir.graph import Value
from ..ir.host import Array, Batch


def arrays_of(path: Path) -> list[Array]:
    """The arrays of an ``.npy`` or ``.npz`` file. Raises DataError."""
    with _plain(path):
        loaded = np.load(path, allow_pickle=False)
        return [loaded[name] for name in loaded.files] if isinstance(loaded, np.lib.npyio.NpzFile) else [loaded]


def read_npz(path: Path, rows: int) -> Iterator[dict[str, Array]]:
    """The arrays of an ``.npz`` file by name, ``rows`` positions of axis 0 at a time, so that no more than
    these are held. Raises DataError."""
    with _plain(path), ExitStack() as opened:
        archive = opened.enter_context(zipfile.ZipFile(path))
        members = {
            name.removesuffix(".npy"): _Member(opened.enter_context(archive.open(name))) for name in archive.namelist()
        }
        while any(member.left for member in members.values()):
            yield {name: member.take(rows) for name, member in members.items()}


class _Member:
    """An array that is read from its first row to its last."""

    def __init__(self, file: IO[bytes]) -> None:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, self.dtype = read_header(file)
        if self.dtype.hasobject:
            raise ValueError("it holds Python objects")
        self._file, self._row, self.left = file, shape[1:], shape[0] if shape else 1
        self._whole: Array | None = None
        self._scalar: Array | None = None
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
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not an .npz or .npy file of plain arrays ({error})", "write it with numpy.savez"
        ) from error


class Folder(Sequence[Batch]):
    """The files of a folder in order of their names, read when a batch is asked for, so that no more than
    one batch is held. ``.npy``: one sample each (without the batch axis). Images: RGB (or grey, where the
    model takes one channel), resized to the model's size, floats from 0 to 1; normalisation is the model's
    own, or write ``.npy`` files. For models of one input.

    ``size``: samples a batch; ``full``: a rest that does not fill one is dropped. ``check``: what is done
    to the arrays of a batch."""

    IMAGES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp"))

    def __init__(
        self,
        path: Path,
        inputs: Sequence[Value],
        size: int,
        full: bool,
        check: Callable[[Sequence[Array]], list[Array]],
    ) -> None:
        if len(inputs) != 1:
            raise DataError(f"{path}: a folder feeds one input, the model takes {len(inputs)}", "write an .npz")
        self.value, self.size, self.check = inputs[0], size, check
        files = [file for file in path.rglob("*") if file.suffix.lower() in {".npy", *self.IMAGES}]
        self.files = sorted(files)[: len(files) // size * size if full else None]
        if not self.files:
            raise DataError(f"{path}: {len(files)} .npy files or images do not fill a batch of {self.size}")
        self[0]  # what does not fit is said now

    def __len__(self) -> int:
        return -(-len(self.files) // self.size)

    def counts(self) -> list[int]:
        """The samples of every batch; no file is read."""
        return [min(self.size, len(self.files) - start) for start in range(0, len(self.files), self.size)]

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            some, places = copy.copy(self), range(*number.indices(len(self)))
            some.files = [file for k in places for file in self.files[k * self.size : (k + 1) * self.size]]
            return some
        number = range(len(self))[number]
        files = self.files[number * self.size : (number + 1) * self.size]
        samples = [self._sample(file) for file in files]
        odd = next((f for f, sample in zip(files, samples, strict=True) if sample.shape != samples[0].shape), None)
        if odd is not None:
            raise DataError(f"{odd}: not of the shape of {files[0].name}")
        return self.check([np.stack(samples)])

    def _sample(self, file: Path) -> Array:
        if file.suffix.lower() == ".npy":
            (read,) = arrays_of(file)
            return read
        from PIL import Image

        shape = self.value.shape or ()
        if len(shape) != 4 or not all(isinstance(n, int) for n in shape[1:]) or shape[1] not in (1, 3):
            raise DataError(f"{file}: the model takes no images of a fixed size", "write .npy files")
        try:
            with Image.open(file) as image:
                fitted = image.convert("RGB" if shape[1] == 3 else "L").resize((int(shape[3]), int(shape[2])))
        except OSError as error:
            raise DataError(f"{file}: not an image ({error})") from error
        pixels = np.asarray(fitted, np.float32) / 255
        return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
