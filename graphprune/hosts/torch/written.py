"""Files that torch writes: where the system takes no more, that is an error and not the end of the process."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written(path: Path) -> Iterator[io.FileIO]:
    """A new file for torch.save and torch.export.save. Raises OSError at the end for what could not be written."""
    with _Patient(path, "wb") as file:  # torch itself opens no name beyond the locale
        yield file
        if file.error is not None:
            raise file.error


class _Patient(io.FileIO):
    """A file that takes whatever it is given. The C++ behind torch writes once more where it gives up, in a destructor,
    and an error there ends the process."""

    error: OSError | None = None

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            done = 0
            while self.error is None and done < len(data):
                done += super().write(memoryview(data)[done:])
        except OSError as error:
            self.error = error
        return len(data)
