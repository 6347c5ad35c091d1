"""One model written to a file or a folder, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from ..errors import OutputError
from ..ir.host import SUFFIXES
from ..ir.program import Program
from ..pipeline.plan_file import write_plan
from ..pipeline.provenance import provenance
from .artifact import emit, model_file, write_classes
from .configured import pretrained
from .output import new_folder, parents


def save(program: Program, out: Path, force: bool = False) -> tuple[Path, list[str]]:
    """Write the model; returns where it is, and what is to be noted of it.

    ``out`` is the file itself where it ends in .onnx or .pt2 (external data lies beside it), and
    without letters for an ending a folder for the model and its plan.json; what was read from a folder of transformers
    becomes one, as ``compile`` writes it. Raises OutputError if it exists (unless ``force``), has another ending or
    cannot be written.
    """
    suffix = program.host.suffix
    if out.suffix not in SUFFIXES and not out.suffix[1:].isalpha():
        with new_folder(out, force) as folder:
            assert folder is not None
            emit(folder, program, (), None)
            notes = write_classes(folder, program) if pretrained(program) else []
            write_plan(folder, program.plan)
        return out if pretrained(program) else model_file(out, program), notes
    if out.suffix != suffix:
        raise OutputError(f"{out}: this model is saved as {suffix}", f"name the output {out.with_suffix(suffix)}")
    if out.exists() and not (force and out.is_file()):
        raise OutputError(f"{out} exists", "choose another path, or replace it with --force")
    parents(out)
    program.host.save(out, replace=force, about=provenance(program))
    return out, []
