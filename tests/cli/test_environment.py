"""Every environment variable that graphprune reads or sets is documented in one place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from click.testing import CliRunner

from graphprune.cli import main

ROOT = Path(__file__).parents[2]


def variables(folder: str) -> set[str]:
    """The names given to os.environ (and os.getenv) in a folder's code; fails where one is not a literal."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and re.match(r"os\.(environ\.\w+|getenv)$", ast.unparse(node.func)):
                found.add(ast.literal_eval(node.args[0]))
            elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                found.add(ast.literal_eval(node.slice))
    return found


def test_the_list_is_complete() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "environment.md").read_text(encoding="utf-8"), re.M))
    read = variables("graphprune") | variables("benchmarks")
    assert {"GRAPHPRUNE_CACHE", "GRAPHPRUNE_DATA", "TVM_NUM_THREADS"} <= read
    assert listed == read


def test_the_help_names_variables_that_there_are() -> None:
    epilog = CliRunner().invoke(main, ["--help"]).stdout.partition("Environment")[2]
    named = set(re.findall(r"^\s+([A-Z_]{4,})  ", epilog, re.M))
    assert {"GRAPHPRUNE_CACHE", "XDG_CACHE_HOME"} <= named <= variables("graphprune")
