"""What report.json holds of a compilation: plain data."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..backends.measure import Comparison
from ..backends.target import Target, host_cpu
from ..cost import static as costs
from ..cost.units import UNITS, cost
from ..coupling.groups import find_groups
from ..ir.facts import Group as Found
from ..ir.facts import Groups
from ..ir.host import Batch
from ..ir.program import Program
from ..passes.group import Group
from ..passes.mask import Mask
from ..pipeline.bypass import Bypass
from ..pipeline.compare import Check
from ..pipeline.correction import Correct
from ..pipeline.edits import kept, original
from ..pipeline.provenance import versions
from ..pipeline.recipe import Recipe
from ..report import branches
from .closeness import closeness
from .layers import Times, kinds, layers
from .measured import Measured, distance, slower


@dataclass(frozen=True)
class Compilation:
    """How ``source`` became ``done``. ``checks``: None where nothing was proved; ``measured``: at the end, by target;
    ``profile``: a target and what its ops take, if one tells; ``files``: the main file of each target's code, where it
    was written."""

    source: Program
    done: Program
    recipe: Recipe
    targets: Sequence[Target]
    checks: Sequence[Check] | None
    measured: Measured
    profile: tuple[str, Times] | None
    files: Mapping[str, Path]

    def report(
        self,
        model: str,
        data: str | None,
        judged: Sequence[Batch],
        auto: bool,
        default: bool,
        dry_run: bool,
        **more: Mapping[str, Any],
    ) -> dict[str, Any]:
        """``model`` and ``data`` are what reports call them; ``judged``: the samples that were held back; ``auto``,
        ``default``: nobody gave a recipe, or a budget; ``dry_run``: nothing was fitted. ``more``: further sections, of
        which the empty are left out."""
        source, done = self.source, self.done
        # not strict: ranks that a pattern names may be whole
        groups = find_groups(original(done).lift(), **_options(done), strict=False)
        budget = _budget(source, done, self.recipe, groups, more.get("latency") or {})
        change = closeness(source, done, judged or source.data) if source.data and not dry_run else {}
        target, times = self.profile or ("", None)
        report: dict[str, Any] = {
            "version": 1,
            "model": model,
            "data": data,
            "host": done.host.kind,
            "before": _side(source, {name: asdict(one.before) for name, one in self.measured.items()}),
            "after": _side(done, {name: _after(one) for name, one in self.measured.items()}),
            "sizes": _sizes(source),
            "samples": costs.samples(source.graph, source.host),
            "groups": _groups(done, groups),
            "frozen": [asdict(dim) for dim in groups.frozen],
            **_branches(done),
            **({"segments": list(done.plan.segments)} if done.plan.segments else {}),
            "passes": [asdict(step) for step in done.history],
            "verification": _verification(source, self.checks),
            "recipe": self.recipe.text(),
            "versions": versions(),
            "seed": done.seed,
            "machine": {"cpu": host_cpu(), "system": f"{platform.system()} {platform.machine()}"},
            "targets": {one.label: {**one.describe(), **_found(one, self.files)} for one in self.targets},
            "notes": [
                *done.notes,
                *_left_out(self.targets),
                *_over(source, done, budget),
                *slower(self.measured),
                *(distance(more["latency"]) if more.get("latency") else ()),
            ],
            "auto": auto,
            "network": layers(source, done, times),
            **({"time": {"target": target, "kinds": kinds(source, done, times)}} if times else {}),
            "budget": {**budget, "default": default},
            **({"dry_run": True} if dry_run else {}),
            **({"closeness": {**change, "held_back": bool(judged)}} if change else {}),
            **{name: section for name, section in more.items() if section},
        }
        if not any(edit.drops for edit in done.plan.edits):
            report["notes"] += _uncut(report)
        return report


def _uncut(report: Mapping[str, Any]) -> list[str]:
    """A note where nothing was pruned."""
    less = any(group["kept"] < group["size"] for group in report["groups"])
    if less or not all(branch["kept"] for branch in report.get("branches", ())):
        return []
    return [f"NOTHING was pruned: every group has all its channels after `{report['recipe']}`"]


def _groups(program: Program, groups: Groups) -> list[dict[str, Any]]:
    left = kept(program.plan)
    return [
        {
            "name": group.name,
            "size": group.size,
            "kept": left.get(group.name, group.size) if _there(group, program) else 0,
            "members": [{"parameter": m.parameter, "axis": m.axis, "role": m.role} for m in group.members],
        }
        for group in groups
    ]


def _there(group: Found, program: Program) -> bool:
    """Whether any of a group's parameters is left: all of them may have gone with a branch."""
    return any(member.parameter in program.graph.parameters for member in group.members)


def _branches(program: Program) -> dict[str, Any]:
    """Every residual branch, where some were offered or went."""
    gone = [branch for edit in program.plan.of(Bypass) for branch in edit.branches]
    if not gone and all(step.name != "branches" for step in program.history):
        return {}
    return {"branches": branches.rows(program.source.lift(), program.source, gone)[0]}


def _budget(
    program: Program, done: Program, recipe: Recipe, groups: Groups, latency: Mapping[str, Any]
) -> dict[str, Any]:
    """The budget of a recipe with one mask, as it was given, and what came out: plain data. What is measured and not
    counted is as the facts of the search for a ``latency`` have it, ``got`` None where nothing could be measured. Empty
    where the recipe has no budget of its own, or several."""
    masks = [step for step in recipe.steps if isinstance(step, Mask)]
    if not masks or not masks[-1].limited() or (len(masks) > 1 and masks[-1].of != "given"):
        return {}
    unit, wanted = masks[-1].budget()
    facts: dict[str, Any] = {"unit": unit, "asked": getattr(masks[-1], unit)}
    if not UNITS[unit].counted:
        whole, got = latency.get("whole_ms"), latency.get("measured_ms")
        return {**facts, "got": got / whole if whole and got is not None else None}
    before, after = _both(program, done, unit, groups)
    facts |= {"share": wanted.share(before), "got": after / before if before else None}
    return {**facts, "left": after} if wanted.absolute else facts


def _over(program: Program, done: Program, budget: Mapping[str, Any]) -> list[str]:
    """A note where more is left than was asked for, though the cut holds its budget, which is counted: sizes that
    depend on data are others in the pruned network, or passes after it added biases."""
    if not budget.get("share") or not budget["got"] or budget["got"] <= budget["share"] * (1 + 1e-9):
        return []
    before, after = program.host.sizes(), done.host.sizes()
    if moved := [name for name in before.keys() & after if before[name] != after[name]]:
        why = (
            f"sizes that depend on data ({len(moved)}) are others in the pruned network, which computes something else"
        )
    elif any(edit.bias for edit in done.plan.of(Correct)):
        why = "passes after it gave layers a bias that had none"
    else:
        why = "what passes after it did is counted too"
    return [
        f"{budget['unit']}={budget['asked']}: {budget['got']:.4g}x is left; the cut is within the budget, and {why} "
        "(ask for less to be within it)"
    ]


def _both(program: Program, done: Program, unit: str, groups: Groups) -> tuple[float, float]:
    """What there was of a unit that is counted, and what there is."""
    if unit == "channels":
        left, sizes = kept(done.plan), {group.name: group.size for group in groups}
        return sum(sizes.values()), sum(left.get(name, size) for name, size in sizes.items())
    before, after = (cost(unit, one.graph, one.host, groups)() for one in (program, done))
    return before, after


def _found(one: Target, files: Mapping[str, Path]) -> dict[str, Any]:
    return one.found(files[one.label]) if one.label in files else {}


def _left_out(targets: Sequence[Target]) -> list[str]:
    """What was not done with a target's code, and why."""
    unable = [f"{one.label}: not run, {reason}" for one in targets if (reason := one.unable())]
    return unable + [
        f"{one.label}: not timed, {reason}" for one in targets if (reason := one.unmeasured()) and not one.unable()
    ]


def _options(program: Program) -> dict[str, Any]:
    """The options that `group` ran with, so that the report lists what it saw."""
    options = next((step.options for step in program.history if step.name == "group"), {})
    return Group(**options).settings()


def _sizes(program: Program) -> dict[str, list[int]]:
    """The shapes of the inputs at which MACs are counted and latencies taken: those of the example."""
    pairs = zip(program.graph.inputs, program.host.example(), strict=True)
    return {value.name: list(map(int, array.shape)) for value, array in pairs}


def _after(one: Comparison) -> dict[str, Any]:
    """The latency of the result, and what it is of the original's."""
    return {**asdict(one.after), "share": one.share, "share_error": one.error}


def _side(program: Program, per_target: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "params": int(costs.params(program.graph, program.host)()),
        "macs": round(costs.macs(program.graph, program.host)()),
        "weights_bytes": costs.weights_bytes(program.graph),
        "latency_ms": next(iter(per_target.values()), None),
        "per_target": dict(per_target),
    }


def _verification(source: Program, checks: Sequence[Check] | None) -> dict[str, Any]:
    if checks is None:
        return {"used": False}
    worst = checks[0]
    return {
        "used": True,
        "compared_with": "masked model",
        "dtype": worst.what.rpartition(", ")[2],
        "max_relative_error": worst.error,
        "tolerance": worst.tolerance,
        "unmoved": [source.graph.outputs[number].name for number in worst.unmoved],
        "checks": [
            {"what": c.what, "max_relative_error": c.error, "tolerance": c.tolerance, "rounding": c.spread}
            for c in checks
        ],
    }
