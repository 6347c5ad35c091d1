"""Which pass first makes the outputs differ, and which groups in it: a bisection of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

from ..errors import DataError, RecipeError, ShapeError
from ..ir.facts import Groups, Keep
from ..ir.host import Array, Batch
from ..ir.program import Program
from ..pipeline.base import Pass, Progress
from ..pipeline.compare import relative
from ..pipeline.recipe import Recipe
from ..pipeline.replay import replay
from ..pipeline.run import run_pass

AGAINST = ("original", "masked")
T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """A pass that ran: how far the outputs are from the reference's after it, max |a - b| / max |a| over all
    batches (infinite where it failed: ``error`` says how)."""

    text: str
    difference: float
    error: str = ""


@dataclass(frozen=True)
class Part:
    """A group of the least set: what the pass keeps of it, and the difference when it alone is cut."""

    group: str
    kept: int
    size: int
    alone: float


@dataclass(frozen=True)
class Bisection:
    """``stages`` end with the first pass over the tolerance, if there is one (``found``). ``groups``: a least set of
    that pass's groups whose cut alone, the others kept whole, is over it too: without any one of them it is not.
    Empty where the pass cuts nothing, or is over the tolerance with no group cut."""

    against: str
    tolerance: float
    stages: tuple[Stage, ...]
    found: Stage | None = None
    groups: tuple[Part, ...] = ()
    trials: int = 0


def bisect(
    program: Program,
    recipe: str | Recipe,
    *,
    tolerance: float = 1e-3,
    against: str = "original",
    progress: Progress | None = None,
) -> Bisection:
    """Run a recipe until a pass makes the outputs differ by more than ``tolerance`` from those of the model as it
    was given, or (``against="masked"``) of that model with the same channels zeroed where they are read, which no
    right cut does. Tried are the calibration data, or without any the example inputs.

    Raises RecipeError for an unknown reference, DataError for a tolerance that is none, and what a pass raises
    other than a ShapeError, which is a finding.
    """
    steps = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    if against not in AGAINST:
        raise RecipeError(f"cannot compare with `{against}`", f"one of: {', '.join(AGAINST)}")
    if not 0 <= tolerance < float("inf"):
        raise DataError(f"tolerance {tolerance:g} is not a relative error", "give 0 or more, such as 1e-3")
    steps.check(known=program.facts, has_data=bool(program.data))
    steps = steps.expanded()
    compare = _Compared(program, against)
    stages: list[Stage] = []
    for number, step in enumerate(steps.steps):
        if progress:
            progress(step.text(), number, len(steps.steps))
        stage, made = compare.after(step, program)
        stages.append(stage)
        if made is None or not stage.difference <= tolerance:
            return _searched(step, program, compare, Bisection(against, tolerance, tuple(stages), stage), progress)
        program = made
    return Bisection(against, tolerance, tuple(stages))


class _Compared:
    """Outputs of programs beside those of the reference on the same batches."""

    def __init__(self, program: Program, against: str) -> None:
        self.masked = against == "masked"
        self.batches: Sequence[Batch] = program.data or [program.host.example()]
        self.original = [program.source.run(batch) for batch in self.batches]

    def after(self, step: Pass, program: Program) -> tuple[Stage, Program | None]:
        try:
            made = run_pass(step, program)
            return Stage(step.text(), self.difference(made)), made
        except ShapeError as error:
            return Stage(step.text(), float("inf"), str(error)), None

    def difference(self, made: Program) -> float:
        want = self._reference(made)
        pairs = [
            (a, b)
            for expected, batch in zip(want, self.batches, strict=True)
            for a, b in zip(expected, made.host.run(batch), strict=True)
        ]
        return max((relative(a, b) for a, b in pairs), default=0.0)

    def _reference(self, made: Program) -> list[list[Array]]:
        if not self.masked or not made.plan.edits:
            return self.original
        host = replay(made.plan, made.source, masked=True).host
        return [host.run(batch) for batch in self.batches]


def _searched(
    step: Pass, program: Program, compare: _Compared, so_far: Bisection, progress: Progress | None
) -> Bisection:
    """The bisection with the groups that make ``step`` differ."""
    if not (program.knows(Keep) and program.knows(Groups) and step.rewrites):
        return so_far
    sizes = {group.name: group.size for group in program.fact(Groups)}
    keep = program.fact(Keep)
    cut = [name for name, kept in keep.keep.items() if name in sizes and _cuts(kept, sizes[name])]
    known: dict[frozenset[str], float] = {}

    def difference(names: Sequence[str]) -> float:
        chosen = frozenset(names)
        if chosen not in known:
            if progress:
                progress(f"{len(chosen)} of {len(cut)} groups cut", len(known), len(known) + 1)
            known[chosen] = compare.after(step, program.learn(_only(keep, chosen, sizes)))[0].difference
        return known[chosen]

    def over(names: Sequence[str]) -> bool:
        return not difference(names) <= so_far.tolerance

    if not cut or over(()) or not over(cut):
        return replace(so_far, trials=len(known))
    least = least_failing(cut, over)
    parts = tuple(Part(name, len(keep.keep[name]), sizes[name], difference([name])) for name in least)
    return replace(so_far, groups=parts, trials=len(known))


def _only(keep: Keep, names: frozenset[str], sizes: Mapping[str, int]) -> Keep:
    def part(lists: Mapping[str, Any]) -> dict[str, Any]:
        return {name: at for name, at in lists.items() if name in names or name not in sizes}

    return Keep(part(keep.keep), part(keep.blank))


def _cuts(kept: Array, size: int) -> bool:
    return len(kept) != size or any(int(at) != k for k, at in enumerate(kept))


def least_failing(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """A least sublist of ``items`` (which fail) that fails: no item of it can be left out. Halves, then ever finer
    shares, and their complements are tried: ddmin of Zeller and Hildebrandt (2002), 2 log2(n) trials for one
    culprit. Where several sets fail, one with early items is found."""
    items, shares = list(items), 2
    while len(items) > 1:
        cuts = [k * len(items) // shares for k in range(shares + 1)]
        parts = [items[a:b] for a, b in pairwise(cuts)]
        found = next((part for part in parts if fails(part)), None)
        if found is not None:
            items, shares = found, 2
            continue
        rests = [[*items[:a], *items[b:]] for a, b in pairwise(cuts)] if shares > 2 else []
        found = next((rest for rest in rests if fails(rest)), None)
        if found is not None:
            items, shares = found, max(shares - 1, 2)
        elif shares >= len(items):
            break
        else:
            shares = min(2 * shares, len(items))
    return items


def table(found: Bisection) -> str:
    """The passes with what each made the outputs differ by, then the verdict and its groups."""
    width = max((len(stage.text) for stage in found.stages), default=4)
    lines = [f"{'pass':<{width}}  difference from the {found.against}"]
    lines += [f"{stage.text:<{width}}  {stage.difference:.3g}" for stage in found.stages]
    if found.found is None:
        return "\n".join([*lines, "", f"no pass makes the outputs differ by more than {found.tolerance:g}"])
    lines += ["", f"`{found.found.text}` is the first over {found.tolerance:g}"]
    if found.found.error:
        lines.append(found.found.error)
    if found.groups:
        names = max(len("group"), *(len(part.group) for part in found.groups))
        lines.append(f"least set of its groups that is over it as well ({found.trials} cuts tried):")
        lines.append(f"  {'group':<{names}}  {'keeps':>12}  alone")
        lines += [f"  {p.group:<{names}}  {f'{p.kept} of {p.size}':>12}  {p.alone:.3g}" for p in found.groups]
    return "\n".join(lines)
