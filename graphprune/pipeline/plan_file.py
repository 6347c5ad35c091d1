"""plan.json, and the new weights of a correction in plan.safetensors beside it.

Indices are text that people read and diff; fitted weights are neither, and as text would be several
times the model. ``plan.json`` holds ``{"file": "plan.safetensors", "digest": "sha256:...", "names": [...]}`` in their
place: the weights of another run, of the same names and shapes, are not those. They are mapped when a plan is read: the
system reads a page when it is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecipeError
from ..ir.document import Entry
from ..ir.host import HALVES, Array
from ..ir.program import Plan
from .plan_reader import VERSION, read

WEIGHTS = "plan.safetensors"
TOGETHER = f"plan.json and {WEIGHTS} belong together"
DTYPES = {
    "BF16": HALVES["bfloat16"],
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"{kind[0].upper()}{bits}": np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
"""By their names in safetensors, those that a plan may have."""


def write_plan(folder: Path, plan: Plan) -> None:
    """Write ``plan.json``, and ``plan.safetensors`` where the plan has weights."""
    tensors: dict[str, Array] = {}
    steps, named = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, edit in enumerate(plan.edits):
        step = edit.step()
        if "weights" in step:
            tensors |= {f"{number}:{name}": array for name, array in step["weights"].items()}
            step["weights"] = {"file": WEIGHTS, "names": sorted(step["weights"])}
            named.append(step["weights"])
        steps.append(step)
    if tensors:
        from safetensors.numpy import save_file

        save_file(tensors, folder / WEIGHTS)
        digest = _digest(folder / WEIGHTS)
        for weights in named:
            weights["digest"] = digest
    content = {"version": VERSION, **plan.about, **plan, "steps": steps}
    text = folder / "plan.json"
    text.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if tensors:
        shutil.copymode(text, folder / WEIGHTS)  # it is written for its owner alone


def _digest(path: Path) -> str:
    """Of a file's bytes, of which few are held at once."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def read_plan(path: Path) -> Plan:
    """A plan.json of version 1 or 2, or of a folder the one in it. Raises RecipeError if it is not one, or its weights
    are not beside it."""
    if path.is_dir():
        path = path / "plan.json"
    if not path.exists():
        raise RecipeError(f"{path}: no such file", "give the folder that `graphprune compile` wrote, or its plan.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{path}: not a plan ({error})", "give the folder that `graphprune compile` wrote, or its plan.json"
        ) from error
    version = content.get("version") if isinstance(content, dict) and "steps" in content else None
    if type(version) is not int or version > VERSION:
        raise RecipeError(
            f"{path}: not a plan of version 1 or {VERSION}", "plan.json is written by `graphprune compile`"
        )
    steps = content.get("steps")
    if isinstance(steps, list) and any(isinstance(step, dict) and "weights" in step for step in steps):
        content["steps"] = _with_weights(Entry(steps, str(path), "steps"), path.parent / WEIGHTS)
    return read(Entry(content, str(path)))


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON text, every name in it once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"`{next(name for name in names if names.count(name) > 1)}` stands twice in one object")
    return found


def _with_weights(steps: Entry, path: Path) -> list[Any]:
    """The steps with tensors in the place of their names."""
    from safetensors import SafetensorError

    named = {number: dict(step.items())["weights"] for number, step in enumerate(steps.entries()) if _holds(step)}
    names = {number: _names(weights) for number, weights in named.items()}
    said = {one.value["digest"] for one in named.values() if "digest" in one.value}  # not in plans of earlier versions
    wanted = {f"{number}:{name}" for number, own in names.items() for name in own}
    if not path.is_file():
        raise RecipeError(f"{path}: no such file, and the plan has {len(wanted)} fitted weights in it", TOGETHER)
    try:
        there = {_digest(path)} if said else said
        if there != said:
            one, other = (", ".join(sorted(digest[:15] for digest in digests)) for digests in (there, said))
            raise ValueError(f"{one}, and plan.json has {other}")
        tensors = _mapped(path)
        if odd := sorted(wanted ^ tensors.keys()):
            raise ValueError(f"`{odd[0]}` is in {'plan.json' if odd[0] in wanted else WEIGHTS} alone")
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise RecipeError(f"{path}: not the weights of this plan ({error})", TOGETHER) from error
    found = {number: {name: tensors[f"{number}:{name}"] for name in own} for number, own in names.items()}
    return [
        {**step.value, "weights": found[number]} if number in found else step.value
        for number, step in enumerate(steps.entries())
    ]


def _mapped(path: Path) -> dict[str, Array]:
    """Every tensor of a file, as a map of it; what is written into one does not reach the file."""
    from safetensors import safe_open

    with safe_open(path, "numpy"):  # that the header is sound, and what it says of the file
        data = np.asarray(np.memmap(path, np.uint8, "c"))
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    return {name: _tensor(data[start:], **about) for name, about in header.items()}


def _tensor(data: Array, dtype: str, shape: Sequence[int], data_offsets: Sequence[int]) -> Array:
    if dtype not in DTYPES:
        raise ValueError(f"numbers of the type {dtype}")
    found: Array = data[slice(*data_offsets)].view(DTYPES[dtype])
    return found.reshape(shape)


def _holds(step: Entry) -> bool:
    return isinstance(step.value, Mapping) and "weights" in step.value


def _names(weights: Entry) -> list[str]:
    parts = weights.table(("file", "names"), ("digest",))
    parts["file"].one_of((WEIGHTS,))
    if "digest" in parts:
        parts["digest"].text()
    return [name.text() for name in parts["names"].entries()]
