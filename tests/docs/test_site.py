"""The site builds as `make docs` does: strictly, every link checked, nothing fetched; and its lists are whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from graphprune import train
from graphprune.allocation import METHODS as ALLOCATIONS
from graphprune.cli import main
from graphprune.compensation import METHODS as REPAIRS
from graphprune.criteria import CRITERIA
from graphprune.criteria.branches import METHODS as BRANCHES
from graphprune.pipeline.published import published

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_pages_fetch_nothing_and_hold_what_is_made(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]*\bsrc=\"?(?:https?:)?//[^>]*>", text)
        fetched += re.findall(
            r"<link[^>]*rel=\"?(?:stylesheet|preconnect|preload)\"?[^>]*href=\"?(?:https?:)?//[^>]*>", text
        )
        assert not fetched, (page, fetched)
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert all(f"graphprune {name}" in commands for name in main.commands)
    assert "graphprune.api.compile" in (site / "reference" / "python.html").read_text(encoding="utf-8")


def test_the_pages_that_the_site_names_are_all_there_are() -> None:
    named = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert named == there


def test_every_method_is_on_the_page_of_methods() -> None:
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    taught = {name for name in train.__all__ if name[0].isupper()} - {"Gated", "Masked", "Penalty", "Ranked"}
    for name in {*CRITERIA, *ALLOCATIONS, *REPAIRS, *BRANCHES, *taught, *published()}:
        assert f"`{name}`" in page, name
    for name in re.findall(r"^\| `(\w+)`", page.split("## Training")[1], re.MULTILINE):
        assert name in train.__all__, name


def test_commands_are_as_the_parser_has_them() -> None:
    sys.path.insert(0, str(DOCS / "reference"))
    try:
        from commands import text  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    found = text()
    for name, command in main.commands.items():
        own = found.split(f"## graphprune {name}\n")[1].split("\n## ")[0]
        assert "\b" not in own
        if "Example" in (command.help or ""):
            assert re.search(r"^Examples?:\n\n```\ngraphprune ", own, re.MULTILINE), name
        for option in command.params:
            if option.opts[0].startswith("--") and not getattr(option, "hidden", False):
                assert option.opts[0] in own, (name, option.opts)
