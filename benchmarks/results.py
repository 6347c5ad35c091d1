"""Results by key in a JSON file, so that an interrupted benchmark goes on where it stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def between(page: Path, start: str, end: str, text: str) -> None:
    """Put a text between two marks of a page, in place of what is there."""
    before, rest = page.read_text(encoding="utf-8").split(start, 1)
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


class Results:
    """What ``path`` holds, by key; the file is written whole after each addition."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def __contains__(self, key: str) -> bool:
        return key in self.known

    def add(self, key: str, value: Any) -> None:
        self.known[key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.known, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)
        print(key, value, file=sys.stderr, flush=True)

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self:
            self.add(key, make())
        return self.known[key]
