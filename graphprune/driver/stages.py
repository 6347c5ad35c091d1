"""Stages of a run that was stopped: what long passes learned from calibration data, kept until a run ends well.

Of every pass that reads data and rewrites nothing (`score`, `mask` with measured distortions) the facts are in a file
of ``$GRAPHPRUNE_CACHE/stages``. Its name is a hash of all that they depend on: weights and graph, every calibration
sample, the passes so far, the seed, and the versions of graphprune, what it computes with and of plug-ins. A file is
whole or not there, holds numbers and text alone, and goes when the run that it is of ends well, or after a week.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration.curvature import Curvature, Reading
from ..cost.latency.table import cache_folder
from ..cost.static import params
from ..coupling.contractions import contractions
from ..ir.facts import Budget, Keep, Scores
from ..ir.host import Array
from ..ir.program import Program, Step
from ..pipeline.base import Pass
from ..pipeline.fingerprint import fingerprint
from ..pipeline.provenance import versions
from ..pipeline.run import run_pass

LONG_SECONDS = 5.0
"""Of a pass that takes less nothing is kept."""
MOST_BYTES = 4 << 30
"""Of one stage."""
DAYS = 7
"""What a run left that never was taken up again goes after so many."""
_GROUPS = ("passes", "edits", "rules", "criteria", "allocations", "targets")

Arrays = dict[str, Array]


@dataclass(frozen=True)
class Stages:
    """The stages of one run. ``perform`` stands in for ``pipeline.run.run_pass``."""

    folder: Path
    key: str
    made: set[str] = field(default_factory=set)  # in this run

    @classmethod
    def of(cls, program: Program) -> Stages | None:
        """Those of a program as it was loaded; None where nothing can be kept: no data, or something that has no
        fingerprint (a loss, facts of somebody's own)."""
        if not program.data or program.loss is not None or program.facts or program.plan.edits:
            return None
        key = hashlib.sha256(
            json.dumps([fingerprint(program), program.graph.text(), program.seed, _made_with()]).encode()
        )
        for batch in program.data:
            for array in batch:
                key.update(repr((array.shape, str(array.dtype))).encode())
                key.update(np.ascontiguousarray(array).tobytes())
        folder = cache_folder() / "stages"
        _forget(folder, time.time() - DAYS * 86400)
        return cls(folder, key.hexdigest()[:32])

    def perform(self, step: Pass, program: Program) -> Program:
        """Run a pass, or do what it did in a run that was stopped."""
        if step.rewrites or not step.wants_data():
            return run_pass(step, program)
        path = self._path(step, program)
        if (found := _read(path)) is not None:
            return self._resumed(step, program, path.name, *found)
        done = run_pass(step, program)
        seconds = done.history[-1].seconds
        learned = {kind: fact for kind, fact in done.facts.items() if program.facts.get(kind) is not fact}
        if seconds >= LONG_SECONDS and set(learned) <= set(_WRITE):
            notes = list(done.notes[len(program.notes) :])
            _write(path, learned, {"seconds": seconds, "notes": notes})
            self.made.add(path.name)
        return done

    def clear(self) -> None:
        """The run ended well."""
        _forget(self.folder, float("inf"), f"{self.key}-*.npz")

    def _path(self, step: Pass, program: Program) -> Path:
        passes = ",".join([*(done.text for done in program.history), step.text()])
        return self.folder / f"{self.key}-{hashlib.sha256(passes.encode()).hexdigest()[:16]}.npz"

    def _resumed(self, step: Pass, program: Program, name: str, meta: Mapping[str, Any], arrays: Arrays) -> Program:
        for kind, content in meta["facts"].items():
            program = program.learn(_READ[kind](content, arrays, step, program))
        if name not in self.made:
            program = program.note(f"`{step.text()}`: taken from a run that was stopped (--no-cache does it anew)")
        size = int(params(program.graph, program.host)())
        ran = Step(step.name, step.options(), step.text(), meta["seconds"], len(program.graph.ops), size)
        return program.note(*meta["notes"]).ran(ran)


def _made_with() -> list[Any]:
    """All versions that facts may depend on."""
    plug_ins = {
        f"{entry.value} {entry.dist.version if entry.dist else ''}"
        for group in _GROUPS
        for entry in entry_points(group=f"graphprune.{group}")
    }
    return [versions(), sorted(plug_ins)]


# ---- files -----------------------------------------------------------------------------------------


def _write(path: Path, learned: Mapping[type, Any], meta: dict[str, Any]) -> None:
    """Whole or not at all; a disk that has no room keeps nothing."""
    arrays: Arrays = {}
    meta["facts"] = {kind.__name__: _WRITE[kind](fact, arrays) for kind, fact in learned.items()}
    if sum(array.nbytes for array in arrays.values()) > MOST_BYTES:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(
                    file, allow_pickle=False, **{**arrays, "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}
                )
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)


def _read(path: Path) -> tuple[Mapping[str, Any], Arrays] | None:
    """None where there is none, or what is there is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return json.loads(arrays.pop("meta").tobytes()), arrays
    except Exception:  # whatever is the matter with it, the pass is run
        return None


def _forget(folder: Path, before: float, pattern: str = "*") -> None:
    for path in folder.glob(pattern) if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < before:
                path.unlink()


# ---- facts -----------------------------------------------------------------------------------------


def _put(arrays: Arrays, named: Mapping[str, Array]) -> dict[str, str]:
    """Where each array is put, once however often it is given: names of groups and ops are no names of files."""
    known = {id(array): place for place, array in arrays.items()}
    places = {}
    for name, array in named.items():
        places[name] = known.setdefault(id(array), f"a{len(arrays)}")
        arrays[places[name]] = array
    return places


def _take(places: Mapping[str, str], arrays: Arrays) -> Arrays:
    return {name: arrays[place] for name, place in places.items()}


def _scores(fact: Scores, arrays: Arrays) -> dict[str, Any]:
    return {"by": fact.by, "scores": _put(arrays, fact.scores)}


def _curvature(fact: Curvature, arrays: Arrays) -> dict[str, Any]:
    """Of a layer its name: it is found again in the graph. Layers of one window share what is large."""
    names = ("weight", "scale", "mean", "inverse")
    return {
        op: {"worth": own.worth, "arrays": _put(arrays, {name: getattr(own, name) for name in names})}
        for op, own in fact.readings.items()
    }


def _read_curvature(content: Mapping[str, Any], arrays: Arrays, step: Pass, program: Program) -> Curvature:
    layers = {layer.op.name: layer for layer in contractions(program.graph, own=True)}
    return Curvature(
        {op: Reading(layers[op], **_take(own["arrays"], arrays), worth=own["worth"]) for op, own in content.items()}
    )


def _keep(fact: Keep, arrays: Arrays) -> dict[str, Any]:
    flags: dict[str, Any] = {"exact": fact.exact, "constant": fact.constant}
    if fact.whole is not None:
        flags["whole"] = sorted(fact.whole)
    return {"keep": _put(arrays, fact.keep), "blank": _put(arrays, fact.blank), **flags}


def _read_keep(content: Mapping[str, Any], arrays: Arrays, step: Pass, program: Program) -> Keep:
    kept, blank = (_take(content[name], arrays) for name in ("keep", "blank"))
    whole = frozenset(content["whole"]) if "whole" in content else None
    return Keep(kept, blank, content["exact"], content["constant"], whole)


_WRITE: Mapping[type, Callable[[Any, Arrays], dict[str, Any]]] = {
    Scores: _scores,
    Curvature: _curvature,
    Keep: _keep,
    Budget: lambda fact, arrays: dict(vars(fact)),
}
_READ: Mapping[str, Callable[[Mapping[str, Any], Arrays, Pass, Program], Any]] = {
    "Scores": lambda content, arrays, step, program: Scores(content["by"], _take(content["scores"], arrays)).signed(
        step.text()
    ),
    "Curvature": _read_curvature,
    "Keep": _read_keep,
    "Budget": lambda content, arrays, step, program: Budget(**content),
}
