"""`graphprune new`: a package of one's own that brings a pass, a criterion or a target."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..backends.boards import boards
from ..backends.target import ALIASES, targets
from ..criteria import criteria
from ..errors import RecipeError, TargetError, shown
from ..pipeline.base import passes
from .output import new_folder

KINDS = {"pass": "passes", "criterion": "criteria", "target": "targets"}
"""What can be written, and the entry-point group that it is declared in."""
_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")


def new(kind: str, name: str, out: str | os.PathLike[str] | None = None, *, force: bool = False) -> Path:
    """Write an installable package with a ``kind`` (of KINDS) called ``name``, and a test that passes. Returns its
    folder: ``out``, or ``graphprune-NAME`` here. Raises RecipeError or TargetError for a name that is taken or none,
    OutputError."""
    raises = TargetError if kind == "target" else RecipeError
    if not _NAME.fullmatch(name):
        raise raises(f"`{shown(name)}` is no name for a {kind}", "small letters and digits, with - or _ in between")
    if name in _taken(kind):
        raise raises(f"there is a {kind} `{name}` already", "a plug-in replaces none; take another name")
    words = re.split("[_-]", name)
    distribution = "-".join(["graphprune", *words])
    facts = {
        "kind": kind,
        "name": name,
        "group": KINDS[kind],
        "distribution": distribution,
        "module": distribution.replace("-", "_"),
        "made": "_".join(words).upper() if kind == "criterion" else "".join(map(str.capitalize, [*words, kind])),
        "listed": "graphprune passes" if kind != "target" else "graphprune targets",
        "used": used(kind, name),
    }
    place = Path(out) if out is not None else Path(distribution)
    with new_folder(place, force, mark="pyproject.toml") as folder:
        assert folder is not None
        for template, path in {
            "pyproject.toml": "pyproject.toml",
            "README.md": "README.md",
            f"{kind}.py": f"{facts['module']}/__init__.py",
            f"test_{kind}.py": f"tests/test_{facts['module']}.py",
        }.items():
            file = folder / path
            file.parent.mkdir(exist_ok=True)
            file.write_text(_filled(template, facts), encoding="utf-8")
    return place


def used(kind: str, name: str) -> str:
    """A command that uses it."""
    recipe = {
        "pass": f"group,score,{name},propagate",
        "criterion": f"group,score{{by={name}}},mask{{macs=0.5x}},propagate",
    }
    option = f"--target {name}" if kind == "target" else f"--passes '{recipe[kind]}'"
    return f"graphprune compile model.onnx {option} -o out"


def _taken(kind: str) -> Iterable[str]:
    if kind == "pass":
        return passes()
    return criteria() if kind == "criterion" else {*targets(), *ALIASES, *boards()}


def _filled(template: str, facts: dict[str, str]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("graphprune.driver", "kit"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(f"{template}.j2").render(facts)
