"""A plan from a mapping: one reader for plan.json, what is given to ``gp.apply``, and what passes made."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args

from ..ir.document import Entry
from ..ir.facts import Role
from ..ir.program import Axis, Edit, Parameters, Plan
from .correction import Correct
from .edits import Cut, Reindex, kinds
from .recipe import Recipe
from .run import Rewrite

VERSION = 2
MOST_STEPS = 1000
MOST_AXES = 64

ABOUT = ("model", "recipe", "seed")


def as_plan(plan: Mapping[str, Any], source: str = "the plan") -> Plan:
    """A plan, or a mapping that reads like plan.json (where `version` may be left out), as a plan.

    Raises RecipeError with the place in it of the first thing amiss, and what stands there.
    """
    return plan if isinstance(plan, Plan) else read(Entry(plan, source))


def read(entry: Entry) -> Plan:
    parts = entry.table(("steps",), ("version", "parameters", "segments", "fingerprint", *ABOUT))
    version = parts["version"].whole(1, VERSION) if "version" in parts else None
    segments = parts["segments"].entries() if "segments" in parts else ()
    return Plan(
        tuple(_edit(step, version) for step in parts["steps"].entries(MOST_STEPS)),
        _parameters(parts["parameters"]) if "parameters" in parts else {},
        tuple({name: part.plain() for name, part in segment.items()} for segment in segments),
        _fingerprint(parts["fingerprint"]) if "fingerprint" in parts else "",
        {name: _about(name, parts[name]) for name in ABOUT if name in parts},
    )


def _fingerprint(entry: Entry) -> str:
    if not re.fullmatch("sha256:[0-9a-f]{64}", entry.text()):
        raise entry.unlike("a fingerprint, sha256: and 64 digits")
    return entry.text()


def _about(name: str, entry: Entry) -> str | int:
    return entry.whole(-(2**63), 2**64) if name == "seed" else entry.text()


def _edit(entry: Entry, version: int | None) -> Edit:
    parts = dict(entry.items())
    by = parts.pop("pass") if "pass" in parts else entry.inside("pass", "")
    named = parts.pop("edit", None)
    if version == 1 and named is not None:
        raise named.error("there is no such name in version 1")
    if version == VERSION and named is None:
        raise entry.error("`edit` is missing")
    content = entry.holding({name: part.value for name, part in parts.items()})
    kind = None if named is None else kinds()[named.one_of(tuple(kinds()))]
    edit = _first_version(content, by) if kind is None else kind.read(content)
    edit = replace(edit, by=by.text())
    with by.reading():
        edit.check()
    return edit


def _first_version(content: Entry, by: Entry) -> Edit:
    """A step of version 1 is what it holds; nothing but the name of the pass for one that is run again."""
    for name, kind in (("reindex", Reindex), ("keep", Cut), ("bias", Correct)):
        if name in content.value:
            return kind.read(content)
    content.table(())
    with by.reading():
        steps = Recipe.parse(by.text()).steps
    if len(steps) != 1:
        raise by.unlike("one pass")
    return Rewrite.read(by.holding({"name": steps[0].name, "options": steps[0].changed()}))


def _parameters(entry: Entry) -> Parameters:
    return {name: {_number(axes, axis): _axis(kept) for axis, kept in axes.items()} for name, axes in entry.items()}


def _number(axes: Entry, axis: str) -> str:
    if axis not in map(str, range(MOST_AXES)):
        raise axes.error(f"{reprlib.repr(axis)} is not the number of an axis")
    return axis


def _axis(entry: Entry) -> Axis:
    parts = entry.table(("role", "keep"), ("blank",))
    keep = parts["keep"].places(again=True)
    made: Axis = {"role": cast(Role, parts["role"].one_of(get_args(Role))), "keep": list(keep)}
    if "blank" in parts:
        made["blank"] = list(parts["blank"].among(keep))
    return made
