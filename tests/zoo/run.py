"""Measure every architecture and write the table: ``python -m tests.zoo.run --out docs/zoo.md``.

What was measured is kept in ``--cache``, an architecture a file, and measured again only when graphprune's
sources or the versions of the packages change (``--keep`` accepts results of older sources).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

import graphprune
from graphprune.report.progress import shown

from .table import document
from .work import COLUMNS, PEER, measured

Results = dict[str, dict[str, Any]]
PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "torch-pruning")
MEASURED = ("catalogue", "vision", "language", "others", "unet", "measure", "work")
"""The files here that a result depends on."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # two pools of threads on few cores are many times slower
    from .all import CATALOGUE

    unknown = sorted(set(options.only) - set(CATALOGUE))
    if unknown:
        raise SystemExit(f"no architecture {', '.join(unknown)}; there are: {', '.join(CATALOGUE)}")
    names = options.only or list(CATALOGUE)
    keys = {column: key(column) for column in COLUMNS}
    cache = {name: _Cache(options.cache, name) for name in names}
    missing = [
        (name, column)
        for name in names
        for column in COLUMNS
        if not cache[name].holds(column, keys[column], options.keep)
    ]
    with shown() as progress, ThreadPoolExecutor(options.jobs) as pool:
        futures = {pool.submit(measured, name, column): (name, column) for name, column in missing}
        for number, future in enumerate(as_completed(futures)):
            name, column = futures[future]
            cache[name].put(column, keys[column], future.result())
            progress(f"{name}, {column}", number + 1, len(missing))
    rows = {name: cache[name].results() for name in names}
    versions = {package: version(package) for package in PACKAGES}
    text = document({name: CATALOGUE[name].family for name in names}, rows, versions)
    if options.out:
        options.out.write_text(text)
    else:
        print(text)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.zoo.run", description=__doc__)
    parser.add_argument("--out", type=Path, help="the Markdown file to write; without it, standard output")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these architectures only")
    parser.add_argument("--cache", type=Path, default=Path("build/zoo"), help="where results are kept")
    parser.add_argument("--keep", action="store_true", help="accept results of older sources of graphprune")
    parser.add_argument("--jobs", type=int, default=1, help="measurements at a time")
    return parser.parse_args(arguments)


def key(column: str) -> dict[str, str]:
    """What a result depends on."""
    packages = {package: version(package) for package in PACKAGES}
    own = Path(__file__).parent
    names = (*MEASURED, "peer") if column == PEER else MEASURED
    found = {"packages": json.dumps(packages), "here": _hash(own / f"{name}.py" for name in names)}
    if column != PEER:
        found["graphprune"] = _hash(sorted(Path(graphprune.__file__).parent.rglob("*.py")))
    return found


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _Cache:
    """The results of one architecture, in one file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.json"
        self.entries: Results = json.loads(self.path.read_text()) if self.path.exists() else {}

    def holds(self, column: str, wanted: dict[str, str], keep: bool) -> bool:
        entry = self.entries.get(column)
        return entry is not None and (keep or entry["key"] == wanted)

    def put(self, column: str, key: dict[str, str], result: dict[str, Any]) -> None:
        self.entries[column] = {"key": key, "result": result}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(self.entries, indent=1))
        beside.replace(self.path)

    def results(self) -> Results:
        return {column: entry["result"] for column, entry in self.entries.items()}


if __name__ == "__main__":
    main()
