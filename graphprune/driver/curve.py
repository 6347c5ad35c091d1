"""The trade-off curve: one network compiled to several budgets, a folder each, and a page over all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..allocation.rd import measured_losses
from ..cost.budget import amount
from ..errors import BudgetError, OutputError, RecipeError
from ..ir.facts import Groups
from ..ir.program import Program
from ..passes.mask import Mask
from ..pipeline.base import Progress
from ..pipeline.fingerprint import fingerprint
from ..pipeline.options import portion
from ..pipeline.recipe import Recipe
from ..pipeline.run import Begun, run
from ..report import page
from ..report.curve import charts, render
from .output import parents, put

FACTS, PAGE = "curve.json", "curve.html"
STEPS = 7
"""Points of a range that does not say how many."""
MOST = 99


def budgets(text: str, unit: str) -> list[str]:
    """``0.3..0.9`` (seven points), ``0.3..0.9/4`` (four) or ``0.3x,0.5x,12ms``, as a list. Raises RecipeError, and
    BudgetError for what is no budget of the unit."""
    first, dots, rest = text.partition("..")
    if not dots:
        found = [one.strip() for one in text.split(",") if one.strip()]
        if not found:
            raise RecipeError("no budgets were given", "write 0.3..0.9, 0.3..0.9/4 or 0.3,0.5,0.8")
        for one in found:
            amount(one, unit)
        return list(dict.fromkeys(found))
    last, _, many = rest.partition("/")
    try:
        low, high, steps = portion(first), portion(last), int(many or STEPS)
    except ValueError as error:
        raise RecipeError(f"cannot read the budgets `{text}`", "write 0.3..0.9 or 0.3..0.9/4") from error
    if not (0 < low < high < 1 and 2 <= steps <= MOST):
        raise RecipeError(
            f"`{text}`: {steps} points from {low:g} to {high:g}", f"from more than 0 to less than 1, 2 to {MOST} points"
        )
    return [f"{share:.4g}x" for share in np.linspace(low, high, steps).tolist()]


def begun(program: Program, recipe: Recipe, progress: Progress | None) -> Program:
    """The program, knowing what is the same at every budget of a recipe: all before its `mask`, and where that
    allocates by measured distortions those too."""
    at = next(k for k, step in enumerate(recipe.steps) if isinstance(step, Mask))
    scored = run(Recipe(recipe.steps[:at]), program, progress)
    mask = recipe.steps[at]
    if isinstance(mask, Mask) and mask.allocate == "rd":
        scored = scored.learn(measured_losses(scored, scored.fact(Groups)))
    return program.learn(Begun(recipe.expanded().steps[:at], scored))


def identity(program: Program, **options: Any) -> str:
    """Of what a curve is: the same weights, data, options and graphprune give the same."""
    found = hashlib.sha256(fingerprint(program).encode())
    for batch in program.data:
        for array in batch:
            found.update(repr((array.shape, str(array.dtype))).encode() + np.ascontiguousarray(array).tobytes())
    found.update(repr((__version__, sorted(options.items()))).encode())
    return f"sha256:{found.hexdigest()}"


def trace(
    folder: Path,
    facts: Mapping[str, Any],
    texts: Sequence[str],
    compiled: Callable[[str, Path], Mapping[str, Any]],
    progress: Progress | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Compile to every budget of ``texts`` by ``compiled(text, folder of the point)``, which gives its report; after
    each, ``curve.json`` and ``curve.html`` say what there is so far. Points that a run of the same ``facts`` has
    made already are not made again. Returns what ``curve.json`` holds. Raises OutputError where the folder holds
    something else, unless ``force`` and it is a curve, BudgetError where no budget can be met."""
    known = _known(folder, facts, force)
    parents(folder / FACTS)
    try:
        done = _points(folder, facts, texts, known, compiled, progress)
    finally:
        with suppress(OSError):
            folder.rmdir()  # while nothing is in it
    _show(folder, done)
    if progress:
        progress("done", len(texts), len(texts))
    return done


def _points(
    folder: Path,
    facts: Mapping[str, Any],
    texts: Sequence[str],
    known: dict[str, Any],
    compiled: Callable[[str, Path], Mapping[str, Any]],
    progress: Progress | None,
) -> dict[str, Any]:
    """The curve, with those that are ``known`` and the others. Raises BudgetError where none can be met."""
    refused: BudgetError | None = None
    for number, text in enumerate(texts):
        if progress:
            progress(f"{facts['unit']}={text}", number, len(texts))
        if text not in known:
            place = folder / f"{facts['unit']}-{text}"
            try:
                known[text] = point(text, place.name, compiled(text, place))
            except BudgetError as error:  # the others may well be met
                refused = error
                known[text] = {"budget": text, "error": error.message}
        done = {**facts, "points": [known[one] for one in texts if one in known], "asked": list(texts)}
        if any("error" not in one for one in done["points"]):
            put(folder / FACTS, json.dumps(done, indent=1) + "\n")
            put(folder / PAGE, render(done))
    if refused is not None and all("error" in one for one in done["points"]):
        raise BudgetError(f"no budget can be met: {refused.message}", refused.hint) from refused
    return done


def _show(folder: Path, curve: Mapping[str, Any]) -> None:
    """The curve in the report of each point."""
    drawn = charts(curve)
    for number, made in enumerate(one for one in curve["points"] if "error" not in one):
        place = folder / made["folder"]
        report = json.loads((place / "report.json").read_text(encoding="utf-8"))
        put(place / "report.html", page.render(report, drawn, number))


def point(text: str, folder: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """What a curve says of one report."""
    kept = ("before", "after", "closeness", "evaluation", "recipe", "contest", "verification", "notes")
    return {"budget": text, "folder": folder, **{key: report[key] for key in kept if key in report}}


def _known(folder: Path, facts: Mapping[str, Any], force: bool) -> dict[str, Any]:
    """The points that are there already, by budget."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return {}
    try:
        there = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        same = there["identity"] == facts["identity"]
        points = {one["budget"]: one for one in there["points"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{folder} exists and holds no curve", "choose another path") from error
    if same:
        return {text: one for text, one in points.items() if "error" in one or (folder / one["folder"]).is_dir()}
    if not force:
        raise OutputError(
            f"{folder} holds the curve of another model, data or options", "choose another path, or replace it: --force"
        )
    return {}


def table(curve: Mapping[str, Any]) -> str:
    """A line per point, aligned."""
    from ..report.curve import columns

    rows: list[Sequence[str]] = list(columns(curve))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Iterable[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
