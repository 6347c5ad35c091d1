"""The artifact: a folder with the model, the plan, the report and code for each target."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..backends.measure import Runnable, interleave
from ..backends.target import Target, host_cpu
from ..cost import static as costs
from ..cost.units import UNITS, cost
from ..coupling.groups import find_groups
from ..errors import VerificationError
from ..ir.facts import Group as Found
from ..ir.facts import Latency
from ..ir.host import Array
from ..ir.program import Program
from ..passes.group import Group
from ..passes.mask import Mask
from ..pipeline.base import Progress
from ..pipeline.bypass import Bypass
from ..pipeline.compare import Check, compare
from ..pipeline.edits import kept, original
from ..pipeline.plan_file import write_plan
from ..pipeline.provenance import provenance, versions
from ..pipeline.recipe import Recipe
from ..report import branches


def emit(folder: Path, program: Program, targets: Sequence[Target], progress: Progress | None) -> dict[str, Path]:
    """Write the model and a folder of code per target; returns each target's main file."""
    model = model_file(folder, program)
    program.host.save(model, about=provenance(program))
    files = {}
    for number, one in enumerate(targets):
        files[one.label] = model
        if one.name != program.host.native_target:  # the model itself is the code for that one
            if progress:
                progress(f"emit {one.label}", number, len(targets))
            place = folder / one.label
            place.mkdir()
            files[one.label] = one.emit(program, place)
    return files


def model_file(folder: Path, program: Program) -> Path:
    return folder / f"model{program.host.suffix}"


def write(folder: Path, program: Program, report: dict[str, Any]) -> None:
    """plan.json (with plan.safetensors), report.json and report.html; of a module widths.json and what goes with it."""
    from ..report.page import render
    from .configured import pretrained, write_pretrained
    from .rebuilding import write_widths

    if program.host.trainable and (why := write_widths(folder, program)):
        report["notes"] = [*report["notes"], f"no widths.json was written: {why}"]
    if pretrained(program) and (why := write_pretrained(folder, program)):
        report["notes"] = [*report["notes"], f"nothing that from_pretrained loads was written: {why}"]

    about = {"model": report["model"], "recipe": report["recipe"], "seed": program.seed}
    write_plan(folder, replace(program.plan, about=about))
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render(report), encoding="utf-8")


def size_bytes(folder: Path, model: Path) -> int:
    """The model file with what it keeps beside itself."""
    return sum(path.stat().st_size for path in folder.glob(f"{model.name}*"))


def loaded(
    program: Program, targets: Sequence[Target], files: Mapping[str, Path], threads: int = 1
) -> dict[str, Runnable]:
    """The compiled code of each target that this machine can run, ready to: from ``files`` where it was
    emitted already."""
    example = program.host.example()
    return {
        one.label: one.load(files[one.label], threads=threads, example=example)
        if one.label in files
        else one.runnable(program, threads=threads)
        for one in targets
        if one.unable() is None
    }


def check_code(program: Program, targets: Sequence[Target], code: Mapping[str, Runnable]) -> list[Check]:
    """Each target's code computes what the program computes. Raises VerificationError."""
    example = program.host.example()
    expected = program.host.run(example)
    checks = []
    for one in targets:
        if one.label not in code:
            continue
        found = code[one.label].run(example)
        if program.graph.draws:
            checks.append(_alike(one.label, expected, found))
            continue
        check = compare(
            f"code for {one.label} = model, float32", [expected], [found], one.tolerance, program.host, [example]
        )
        if not check.holds:
            raise VerificationError(
                f"the code for `{one.label}` differs from the model by {check.error:.3g} relative "
                f"(allowed: {check.tolerance:.3g}{check.noise})",
                "compile for another target, or report it with the model",
            )
        checks.append(check)
    return checks


def _alike(label: str, expected: Sequence[Array], found: Sequence[Array]) -> Check:
    """All that can be told of code that draws random numbers of its own."""
    same = [(a.shape, a.dtype) for a in expected] == [(b.shape, b.dtype) for b in found]
    return Check(f"code for {label}: shapes alone, it draws random numbers", 0.0 if same else float("inf"), 0.0)


def latencies(
    source: Program,
    program: Program,
    targets: Sequence[Target],
    code: Mapping[str, Runnable],
    progress: Progress | None,
    threads: int = 1,
) -> dict[str, dict[str, Latency]]:
    """``{target: {"before": ..., "after": ...}}``, the two interleaved on each target."""
    out = {}
    for number, one in enumerate(targets):
        if one.unmeasured():
            continue
        # A device behind RPC runs what is sent to it, not what this machine could load.
        after = one.runnable(program, threads=threads) if one.options().get("rpc") else code[one.label]
        if progress:
            progress(f"measure {one.label}", number, len(targets))
        out[one.label] = interleave({"before": one.runnable(source, threads=threads), "after": after})
    return out


def profiled(
    source: Program, program: Program, targets: Sequence[Target], threads: int = 1
) -> tuple[str, tuple[Mapping[str, float], Mapping[str, float]]] | None:
    """What ops take before and after, in ms by op name, on the first target that tells without much ado, and its
    name; None where there is none."""
    for one in targets:
        if one.profiles and one.unmeasured() is None:
            return one.label, (one.profile(source, threads=threads), one.profile(program, threads=threads))
    return None


def describe(
    model: str,
    data: str | None,
    source: Program,
    program: Program,
    recipe: str,
    checks: Sequence[Check] | None,
    targets: Sequence[Target],
    measured: dict[str, dict[str, Latency]],
    files: Mapping[str, Path] | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """The report: plain data, what report.json holds. ``folder``: where the model was written, if it was."""
    files = files or {}
    left = kept(program.plan)
    groups = find_groups(original(program).lift(), **_options(program))
    return {
        "version": 1,
        "model": model,
        "data": data,
        "host": program.host.kind,
        "before": _side(source, "before", measured, None),
        "after": _side(program, "after", measured, folder),
        "sizes": _sizes(source),
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "kept": left.get(group.name, group.size) if _there(group, program) else 0,
                "members": [{"parameter": m.parameter, "axis": m.axis, "role": m.role} for m in group.members],
            }
            for group in groups
        ],
        "frozen": [asdict(dim) for dim in groups.frozen],
        **_branches(program),
        **({"segments": list(program.plan.segments)} if program.plan.segments else {}),
        "passes": [asdict(step) for step in program.history],
        "verification": _verification(checks),
        "recipe": recipe,
        "versions": versions(),
        "seed": program.seed,
        "machine": {"cpu": host_cpu(), "system": f"{platform.system()} {platform.machine()}"},
        "targets": {one.label: {**one.describe(), **_found(one, files)} for one in targets},
        "notes": [*program.notes, *_left_out(targets)],
    }


def _there(group: Found, program: Program) -> bool:
    """Whether any of a group's parameters is left: all of them may have gone with a branch."""
    return any(member.parameter in program.graph.parameters for member in group.members)


def _branches(program: Program) -> dict[str, Any]:
    """Every residual branch, where some were offered or went."""
    gone = [branch for edit in program.plan.of(Bypass) for branch in edit.branches]
    if not gone and all(step.name != "branches" for step in program.history):
        return {}
    return {"branches": branches.rows(program.source.lift(), program.source, gone)[0]}


def asked(program: Program, done: Program, recipe: Recipe) -> dict[str, Any]:
    """The budget of a recipe, as it was given, and what came out: plain data, ``got`` None where it is measured and
    not counted. Empty where the recipe has no budget of its own, or several, the last not of the model as given."""
    masks = [step for step in recipe.steps if isinstance(step, Mask)]
    if not masks or not masks[-1].limited() or (len(masks) > 1 and masks[-1].of != "given"):
        return {}
    unit, wanted = masks[-1].budget()
    facts: dict[str, Any] = {"unit": unit, "asked": getattr(masks[-1], unit)}
    if not UNITS[unit].counted:
        return {**facts, "got": None}
    before, after = _both(program, done, unit)
    facts |= {"share": wanted.share(before), "got": after / before if before else None}
    return {**facts, "left": after} if wanted.absolute else facts


def uncut(report: Mapping[str, Any]) -> list[str]:
    """A note where nothing was pruned."""
    less = any(group["kept"] < group["size"] for group in report["groups"])
    if less or not all(branch["kept"] for branch in report.get("branches", ())):
        return []
    return [f"NOTHING was pruned: every group has all its channels after `{report['recipe']}`"]


def over(budget: Mapping[str, Any]) -> list[str]:
    """A note where more is left than was asked for: the cut holds its budget, passes after it may add biases."""
    if not budget.get("got") or budget["got"] <= budget["share"] * (1 + 1e-9):
        return []
    return [
        f"{budget['unit']}={budget['asked']}: {budget['got']:.4g}x is left; the cut is within the budget, and passes "
        "after it gave layers a bias that had none (ask for less to be within it)"
    ]


def _both(program: Program, done: Program, unit: str) -> tuple[float, float]:
    """What there was of a unit that is counted, and what there is."""
    groups = find_groups(original(done).lift(), **_options(done))
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


def _side(program: Program, side: str, measured: dict[str, dict[str, Latency]], folder: Path | None) -> dict[str, Any]:
    per_target = {name: asdict(times[side]) for name, times in measured.items()}
    return {
        "params": int(costs.params(program.graph, program.host)()),
        "macs": round(costs.macs(program.graph, program.host)()),
        "size_bytes": size_bytes(folder, model_file(folder, program)) if folder is not None else _saved_size(program),
        "latency_ms": next(iter(per_target.values()), None),
        "per_target": per_target,
    }


def _saved_size(program: Program) -> int:
    """The size of the model's own file; the model as it was given is written the same way as the result."""
    with tempfile.TemporaryDirectory() as folder:
        path = model_file(Path(folder), program)
        program.host.save(path, about=provenance(program))
        return size_bytes(Path(folder), path)


def _verification(checks: Sequence[Check] | None) -> dict[str, Any]:
    if checks is None:
        return {"used": False}
    worst = checks[0]
    return {
        "used": True,
        "compared_with": "masked model",
        "dtype": worst.what.rpartition(", ")[2],
        "max_relative_error": worst.error,
        "tolerance": worst.tolerance,
        "checks": [
            {"what": c.what, "max_relative_error": c.error, "tolerance": c.tolerance, "rounding": c.spread}
            for c in checks
        ],
    }
