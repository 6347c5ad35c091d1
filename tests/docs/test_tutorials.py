"""What the tutorials show runs as it stands, in a folder of its own: Python in order, and graphprune's commands."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from graphprune.cli import main

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "tutorials").glob("*.md"))


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(python|console)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.stem, marks=pytest.mark.slow if p.stem == "board" else ()) for p in PAGES]
)
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType(f"tutorial_{page.stem}")  # dataclasses look theirs up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = blocks(page)
    assert found
    for language, text in found:
        if language == "python":
            exec(compile(text, str(page), "exec"), vars(module))
            continue
        for line in re.findall(r"^\$ graphprune (.*)$", text, re.MULTILINE):
            done = CliRunner().invoke(main, shlex.split(line))
            assert done.exit_code == 0, f"{line}\n{done.output}"


def test_commands_that_are_only_shown_exist() -> None:
    for page in (
        *PAGES,
        DOCS / "faq.md",
        DOCS / "index.md",
        DOCS / "training.md",
        DOCS / "devices.md",
        DOCS.parent / "README.md",
    ):
        for line in re.findall(r"^    graphprune (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            words = shlex.split(line.partition("#")[0].replace("\\", " "))
            command = main.commands.get(words[0])
            assert command is not None, line
            known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
            assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, line
