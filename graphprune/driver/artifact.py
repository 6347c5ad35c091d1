"""The artifact: a folder with the model, the plan, the report and code for each target."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..backends.measure import Runnable
from ..backends.target import Target
from ..errors import ModelError, VerificationError
from ..ir.host import Array
from ..ir.program import Program
from ..pipeline.base import Progress
from ..pipeline.compare import Check, compare
from ..pipeline.plan_file import write_plan
from ..pipeline.provenance import provenance
from ..pipeline.vocabulary import Vocabulary
from .configured import once, pretrained, write_pretrained
from .measured import Measured, latencies
from .renumbered import renumbered

ONCE = "weights are large, and written once, as from_pretrained loads them: there is no model.pt2 and no weights.pt"
RENUMBERED = (
    "from_pretrained loads tokens by new numbers: `keep` in plan.json has the old, in order; model.pt2 takes these"
)


@dataclass(frozen=True)
class Code:
    """What a program became: each target's main file, its code ready to run, and how that compares with the original's;
    empty where nothing was written, loaded or measured."""

    files: Mapping[str, Path] = field(default_factory=dict)
    ready: Mapping[str, Runnable] = field(default_factory=dict)
    measured: Measured = field(default_factory=dict)


def coded(
    folder: Path | None,
    source: Program,
    program: Program,
    targets: Sequence[Target],
    threads: int,
    load: bool,
    measure: bool,
    progress: Progress | None,
) -> Code:
    """The code of ``program``, written into ``folder`` where there is one, and measured beside that of ``source``."""
    files = emit(folder, program, targets, progress) if folder is not None else {}
    ready = loaded(program, targets, files, threads) if load else {}
    return Code(files, ready, latencies(source, program, targets, ready, progress, threads) if measure else {})


def emit(folder: Path, program: Program, targets: Sequence[Target], progress: Progress | None) -> dict[str, Path]:
    """Write the model (but where it is written ``once``, by ``write``) and a folder of code per target; returns each
    target's main file."""
    model, files = model_file(folder, program), {}
    if not once(program):
        program.host.save(model, about=provenance(program))
        files = {one.label: model for one in targets}
    for number, one in enumerate(targets):
        if one.name != program.host.native_target:  # the model itself is the code for that one
            if progress:
                progress(f"emit {one.label}", number, len(targets))
            place = folder / one.label
            shutil.rmtree(place, ignore_errors=True)  # of what was slower
            place.mkdir()
            files[one.label] = one.emit(program, place)
    return files


def model_file(folder: Path, program: Program) -> Path:
    return folder / f"model{program.host.suffix}"


def no_folder(program: Program) -> str | None:
    """Why nothing can be written that from_pretrained loads, if so: it is tried."""
    trimmed = program.plan.of(Vocabulary)
    try:
        own = renumbered(program, trimmed[0]) if trimmed else program
    except ModelError as error:
        return error.message
    with TemporaryDirectory() as folder:
        return write_pretrained(Path(folder), own, trimmed[0].keep if trimmed else ())


def write(folder: Path, program: Program, report: dict[str, Any]) -> None:
    """plan.json (with plan.safetensors), report.json and report.html, and what ``write_classes`` does."""
    from ..report.page import render

    notes = write_classes(folder, program)
    report["notes"] = [*report["notes"], *(note for note in notes if note not in report["notes"])]  # saved once before

    about = {"model": report["model"], "recipe": report["recipe"], "seed": program.seed}
    write_plan(folder, replace(program.plan, about=about))
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render(report), encoding="utf-8")


def write_classes(folder: Path, program: Program) -> list[str]:
    """Write what classes are made from at the new widths, beside the model that ``emit`` wrote: of a module widths.json
    and what goes with it, of a folder of transformers what from_pretrained loads. Returns what is to be noted."""
    from ..report.next_steps import NO_FOLDER, UNWRITTEN
    from .rebuilding import write_widths

    notes, own, trimmed = [], program, program.plan.of(Vocabulary) if pretrained(program) else []
    try:
        own = renumbered(program, trimmed[0]) if trimmed else program
    except ModelError as error:
        notes.append(error.message)
    if program.host.trainable and (why := write_widths(folder, own, values=not once(program))):
        notes.append(f"{UNWRITTEN}: {why}")
    if pretrained(program) is not None:
        from ..hosts.torch.own_class import CLASS_FILE, NOTE

        why = write_pretrained(folder, own, trimmed[0].keep if trimmed else ())
        if why:
            notes.append(f"{NO_FOLDER}: {why}")
        elif trimmed:
            notes.append(RENUMBERED)
        if (folder / CLASS_FILE).exists():
            notes.append(NOTE)
        if once(program) and why:
            program.host.save(model_file(folder, program), about=provenance(program))
        elif once(program):
            notes.append(ONCE)
    return notes


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


def profiled(
    source: Program, program: Program, targets: Sequence[Target], threads: int = 1
) -> tuple[str, tuple[Mapping[str, float], Mapping[str, float]]] | None:
    """What ops take before and after, in ms by op name, on the first target that tells without much ado, and its
    name; None where there is none."""
    for one in targets:
        if one.profiles and one.unmeasured() is None:
            return one.label, (one.profile(source, threads=threads), one.profile(program, threads=threads))
    return None
