"""A folder per pass: the graph as text, what is known as JSON, time and sizes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cost.static import macs, params, weights_bytes
from ..errors import GraphpruneError
from ..ir.program import Program
from ..pipeline.base import Pass
from ..report.facts import facts
from .output import new_folder

INDEX = "passes.json"


@dataclass(frozen=True)
class Dump:
    """An Instrument that writes ``00-source``, ``01-group``, ... into ``folder``: graph.txt and facts.json each,
    and for all of them passes.json: what ran, seconds, ops, parameters, MACs and bytes of weights."""

    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def before(self, step: Pass, program: Program) -> None:
        if not self.rows:
            self._write("source", "", program, 0.0)

    def after(self, step: Pass, program: Program, seconds: float) -> None:
        self._write(step.name, step.text(), program, seconds)

    def _write(self, name: str, text: str, program: Program, seconds: float) -> None:
        graph, host = program.graph, program.host
        place = self.folder / f"{len(self.rows):02}-{name}"
        place.mkdir()
        (place / "graph.txt").write_text(graph.text() + "\n", encoding="utf-8")
        (place / "facts.json").write_text(json.dumps(facts(program), indent=1) + "\n", encoding="utf-8")
        self.rows.append(
            {
                "folder": place.name,
                "pass": text,
                "seconds": seconds,
                "ops": len(graph.ops),
                "params": round(params(graph, host)()),
                "macs": round(macs(graph, host)()),
                "weights_bytes": weights_bytes(graph),
            }
        )


@contextmanager
def dumped(folder: str | os.PathLike[str] | None, force: bool) -> Iterator[tuple[Dump, ...]]:
    """The instruments for one run: a Dump into ``folder``, or none where that is None.

    The folder is written whole, when the block ends: also where it ends with a GraphpruneError, which is
    then in error.txt. Raises OutputError if it exists (unless ``force``) or cannot be written.
    """
    failed: GraphpruneError | None = None
    with new_folder(folder, force, mark=INDEX) as place:
        if place is None:
            yield ()
            return
        dump = Dump(place)
        try:
            yield (dump,)
        except GraphpruneError as error:
            failed = error
            (place / "error.txt").write_text(f"{error}\n", encoding="utf-8")
        (place / INDEX).write_text(json.dumps(dump.rows, indent=1) + "\n", encoding="utf-8")
    if failed is not None:
        raise failed
