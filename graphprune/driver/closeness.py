"""How close the result is to the original network: its outputs, and the user's own figure."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration.batches import sample_axes, samples
from ..errors import ModelError, users_own
from ..ir.host import Array, Batch, Host
from ..ir.program import Program, must_be_program
from ..pipeline.compare import PIECE

Evaluate = Callable[[Any], Any]
"""Called with the network as its users call it (see ir.Host.deployed); a figure, or several by name."""


@dataclass(frozen=True)
class OutputChange:
    """How far one output is from the original's over all samples.

    ``relative``: ||a - b|| / ||a||, Euclidean norms over all entries; ``cosine``: the mean over samples. None where
    the output has no floats, or its shape is no longer the same. ``same``: of an output (samples, classes) the share
    of samples whose largest entry is the same one, of integers and flags the share of entries that are equal.
    """

    name: str
    relative: float | None
    cosine: float | None
    same: float | None


def closeness(source: Program, result: Program, batches: Iterable[Batch]) -> dict[str, Any]:
    """How far the outputs of ``result`` are from those of ``source``: plain data, the number of samples, and an
    OutputChange per output."""
    must_be_program(source, "closeness")
    must_be_program(result, "closeness")
    pairs: list[list[tuple[Array, Array]]] = [[] for _ in source.graph.outputs]
    count, axes = 0, sample_axes(batches, source.graph.inputs)
    for batch in batches:
        count += samples(batch, axes)
        for found, one in zip(pairs, zip(source.host.run(batch), result.host.run(batch), strict=True), strict=True):
            found.append(one)
    names = [value.name for value in source.graph.outputs]
    return {
        "samples": count,
        "outputs": [asdict(_change(name, found)) for name, found in zip(names, pairs, strict=True)],
    }


def _change(name: str, pairs: Sequence[tuple[Array, Array]]) -> OutputChange:
    if any(a.shape != b.shape for a, b in pairs):
        return OutputChange(name, None, None, None)
    if any(a.dtype.kind not in "fc" for a, _ in pairs):
        equal, entries = sum(int((a == b).sum()) for a, b in pairs), sum(a.size for a, _ in pairs)
        return OutputChange(name, None, None, equal / entries if entries else None)
    whole = gap = 0.0
    each: list[Array] = []
    for a, b in _rows(pairs):
        whole += float((np.abs(a) ** 2).sum())
        gap += float((np.abs(a - b) ** 2).sum())
        each.append(_cosines(a, b))
    cosines = np.concatenate(each) if each else np.zeros(0)
    classes = all(a.ndim == 2 and a.shape[1] > 1 for a, _ in pairs)
    same = np.concatenate([a.argmax(1) == b.argmax(1) for a, b in pairs]).mean() if classes else None
    return OutputChange(
        name,
        float(np.sqrt(gap / whole)) if whole else None,
        float(cosines.mean()) if len(cosines) else None,
        None if same is None else float(same),
    )


def _rows(pairs: Sequence[tuple[Array, Array]]) -> Iterator[tuple[Array, Array]]:
    """A row per sample, in double precision, some rows at once."""
    for pair in pairs:
        a, b = (one.reshape(len(one) if one.ndim else 1, -1) for one in pair)
        step = max(PIECE // max(a.shape[1], 1), 1)
        for k in range(0, len(a), step):
            yield _wide(a[k : k + step]), _wide(b[k : k + step])


def _wide(array: Array) -> Array:
    """What is not a number (a mask of -inf, say) counts as zero."""
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    return np.nan_to_num(wide, copy=False, posinf=0.0, neginf=0.0)


def _cosines(a: Array, b: Array) -> Array:
    """Per row; of rows that are zero on both sides 1, on one side 0."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    inner = np.abs((a.conj() * b).sum(1)) if a.dtype.kind == "c" else (a * b).sum(1)
    both = ~a.any(1) & ~b.any(1)
    return np.where(both, 1.0, inner / np.where(norms > 0, norms, 1.0))


def figures(evaluate: Evaluate, host: Host, what: str) -> dict[str, float]:
    """What the user's own function says, by name, of a network as it comes out of its file. Raises ModelError where
    the function fails, or returns neither a number nor a mapping of names to numbers; nan is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{host.suffix}"
        host.save(path)
        network = host.deployed(path)
    with users_own(what, "it is called with the network: an nn.Module, for ONNX an onnxruntime.InferenceSession"):
        found = evaluate(network)
    named = found if isinstance(found, Mapping) else {what.rpartition(":")[2]: found}
    numbers = {str(name): _number(value) for name, value in named.items()}
    if not numbers or None in numbers.values():
        raise ModelError(f"{what} returned {found!r:.60}", "return a number, or a dict of names to numbers")
    return {name: value for name, value in numbers.items() if value is not None}


def _number(value: Any) -> float | None:
    try:
        number = None if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError):
        return None
    return None if number is None or math.isnan(number) else number
