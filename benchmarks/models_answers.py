"""What users of three products care for: does the pruned model still answer the same?

File types of files that are on this machine (magika), lines and words of rendered text (the text detector,
recogniser and direction classifier of PP-OCR), voice against noise (silero-vad). Nothing is labelled: an answer is
right that is the original's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .models_samples import CONTEXT, FRAME, RATE, as_bytes, direction_of, files, line_of, page_of, sound
from .ort_macs import Array, session

CALIBRATION, JUDGED = 32, 64


@dataclass(frozen=True)
class Task:
    """``calibration`` takes the original file; ``answers`` a session, and gives one answer a judged sample."""

    name: str
    source: str  # in models_sources.SOURCES
    what: str
    calibration: Callable[[Path], dict[str, Array]]
    answers: Callable[[Any], Iterable[Any]]
    same: Callable[[Any, Any], bool]
    fixed: tuple[str, ...] = ()


def answered(task: Task, path: Path) -> list[Any]:
    return list(task.answers(session(path)))


def equal(a: Any, b: Any) -> bool:
    return bool(a == b)


def file_types(model: Any) -> list[int]:
    judged = files(CALIBRATION + 4 * JUDGED)[CALIBRATION:]
    return [int(model.run(None, {"bytes": as_bytes(path)[None]})[0].argmax()) for path in judged]


def images(make: Callable[[int], Array]) -> Callable[[Path], dict[str, Array]]:
    return lambda _: {"x": np.stack([make(seed) for seed in range(CALIBRATION)])}


def outputs(make: Callable[[int], Array], read: Callable[[Array], Any]) -> Callable[[Any], list[Any]]:
    seeds = range(1000, 1000 + JUDGED)
    return lambda model: [read(model.run(None, {"x": make(seed)[None]})[0][0]) for seed in seeds]


def boxes(found: Array) -> list[tuple[int, ...]]:
    """The lines of text: bounding boxes of what is over PP-OCR's threshold, of 16 pixels at least."""
    from scipy import ndimage

    labels, _ = ndimage.label(found[0] > 0.3)
    return [
        (y.start, x.start, y.stop, x.stop)
        for number, (y, x) in enumerate(ndimage.find_objects(labels), 1)
        if (labels[y, x] == number).sum() >= 16
    ]


def overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Intersection over union."""
    high, wide = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(high, 0) * max(wide, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def same_boxes(a: list[tuple[int, ...]], b: list[tuple[int, ...]]) -> bool:
    """As many lines, each where one of the others is (overlap 0.7)."""
    return len(a) == len(b) and all(max(overlap(one, other) for other in b) >= 0.7 for one in a)


def characters(found: Array) -> tuple[int, ...]:
    """The text as numbers of characters: the likeliest of each step, repeats and blanks (0) left out."""
    best = found.argmax(-1)
    return tuple(int(now) for before, now in zip([-1, *best[:-1]], best, strict=True) if now not in (0, before))


def heard(model: Any, seed: int) -> tuple[list[dict[str, Array]], list[float]]:
    """What the model was given and said, frame by frame: it has its own state, and the last frame's end before each."""
    state, wave, given, said = np.zeros((2, 1, 128), np.float32), sound(seed), [], []
    wave = np.concatenate([np.zeros(CONTEXT, np.float32), wave])
    for start in range(0, len(wave) - FRAME - CONTEXT, FRAME):
        given.append({"input": wave[None, start : start + CONTEXT + FRAME], "state": state})
        probability, state = model.run(None, {**given[-1], "sr": np.asarray(RATE)})
        said.append(float(probability[0, 0]))
    return given, said


def frames(path: Path) -> dict[str, Array]:
    model = session(path)
    given = [one for seed in range(8) for one in heard(model, seed)[0]]
    return {
        "input": np.concatenate([one["input"] for one in given]),
        "state": np.concatenate([one["state"] for one in given], 1),
        "sr": np.asarray(RATE),
    }


def voiced(model: Any) -> list[bool]:
    return [one > 0.5 for seed in range(1000, 1000 + JUDGED // 4) for one in heard(model, seed)[1]]


def direction(found: Array) -> int:
    return int(found.argmax())


def some_files(_: Path) -> dict[str, Array]:
    return {"bytes": np.stack([as_bytes(path) for path in files(CALIBRATION)])}


TASKS = (
    Task("magika", "magika.onnx", "type of a file", some_files, file_types, equal),
    Task(
        "PP-OCR detector", "ppocr_det_infer.onnx", "lines of a rendered page",
        images(page_of), outputs(page_of, boxes), same_boxes,
    ),
    Task(
        "PP-OCR classifier", "ppocr_cls.onnx", "direction of a rendered line",
        images(direction_of), outputs(direction_of, direction), equal,
    ),
    Task(
        "PP-OCR recogniser", "ch_PP-OCRv4_rec_infer.onnx", "every character of a rendered line",
        images(line_of), outputs(line_of, characters), equal,
    ),
    Task("silero-vad", "silero_vad.onnx", "voice or not, 32 ms of sound", frames, voiced, equal, ("sr",)),
)  # fmt: skip
