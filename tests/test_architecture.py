"""The page for those who change the code says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import architecture
import test_structure

import graphprune

TEXT = architecture.PAGE.read_text()
PACKAGE = Path(graphprune.__file__).parent


def test_the_example_is_what_the_passes_do():
    assert architecture.page(TEXT) == TEXT, "run `python tests/architecture.py`, and read what changed"


def test_the_layers_are_those_that_are_held():
    table = TEXT.partition("<!-- layers")[2].partition("\n\n## ")[0]
    rows = [tuple(re.findall(r"`([a-z_]+)`", line)) for line in table.splitlines() if line.startswith("| `")]
    names = {"": "graphprune"}
    assert rows[::-1] == [tuple(names.get(unit, unit) for unit in row) for row in test_structure.LAYERS]


def test_every_file_that_is_named_is_there():
    root = PACKAGE.parent
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.[a-z]+)?)`", TEXT):
        assert (PACKAGE / path).exists() or (root / path).exists(), path
