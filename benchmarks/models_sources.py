"""Where the files of docs/models.md are of: a folder, wheels that carry models, exports of the zoo."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .models_samples import CONTEXT, FRAME, RATE, direction_of, line_of, page_of
from .ort_macs import Feeds, random_feeds

VARIABLE = "GRAPHPRUNE_MODELS"
ZOO = (
    "BERT", "GPT-2", "Llama (GQA)", "ResNet", "MobileNetV2", "ConvNeXt", "ViT", "DistilBERT", "Whisper", "T5",
)  # fmt: skip


STATES = {"dtln1.onnx": "input_3"}


class Absent(Exception):
    """The file is not on this machine; says why."""


@dataclass(frozen=True)
class Source:
    """A file with its origin and licence; ``sizes``: by name the shape of an input, or its one value; ``shown``: inputs
    on which it has something to say, where noise is nothing to it; ``states``: inputs that the user feeds back from
    outputs, whose widths may be cut with all that has them."""

    name: str
    origin: str
    licence: str
    path: Callable[[Path], Path]  # given a folder for what is made; raises Absent
    sizes: Mapping[str, Any] = field(default_factory=dict)
    shown: Callable[[], Mapping[str, Any]] = dict
    states: str = ""

    def feeds(self, path: Path) -> Feeds:
        return {**random_feeds(path, self.sizes), **self.shown()}


def shared() -> Path:
    """The folder of files: what the variable says, or shared/data/onnx beside the checkout."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "onnx"
    return Path(os.environ.get("GRAPHPRUNE_MODELS") or beside)


def _placed(file: str, package: str, inside: str) -> Callable[[Path], Path]:
    """The file of the folder, or the one ``inside`` an installed wheel."""

    def path(_: Path) -> Path:
        if (found := shared() / file).is_file():
            return found
        if not inside:
            raise Absent(f"the folder that {VARIABLE} names does not have it")
        try:
            entries = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError as error:
            raise Absent(
                f"{package} is not installed, and the folder that {VARIABLE} names does not have it"
            ) from error
        for entry in entries:
            if entry.name == inside:
                return Path(str(entry.locate()))
        raise Absent(f"{package} {importlib.metadata.version(package)} has no {inside}")

    return path


def _exported(name: str) -> Callable[[Path], Path]:
    def path(made: Path) -> Path:
        try:
            from tests.zoo.all import CATALOGUE
            from tests.zoo.measure import exported
        except ImportError as error:
            raise Absent(f"the zoo needs `{error.name}`") from error
        found = made / f"{name}.onnx"
        if not found.exists():
            made.mkdir(parents=True, exist_ok=True)
            found.write_bytes(exported(CATALOGUE[name])[0])
        return found

    return path


def _sources() -> list[Source]:
    """In the page's order. A file that a wheel carries is taken from there where the folder is not."""
    face = "Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB"
    ocr, vad, pitch, magika = (
        (f"wheel {name}", licence)
        for name, licence in (
            ("rapidocr-onnxruntime", "Apache-2.0"), ("silero-vad", "MIT"),
            ("basic-pitch", "Apache-2.0"), ("magika", "Apache-2.0"),
        )
    )  # fmt: skip
    frame: dict[str, Any] = {"input": (1, CONTEXT + FRAME), "state": (2, 1, 128), "sr": RATE}
    shown: dict[str, Callable[[], Mapping[str, Any]]] = {
        "yunet26.onnx": lambda: {"input": 255 * (page_of(7)[None] + 1) / 2},
        "ppocr_det_infer.onnx": lambda: {"x": page_of(7)[None]},
        "ppocr_cls.onnx": lambda: {"x": direction_of(7)[None]},
        "ch_PP-OCRv4_rec_infer.onnx": lambda: {"x": line_of(7)[None]},
    }
    rows: tuple[tuple[str, tuple[str, str], str, dict[str, Any]], ...] = (
        ("version-RFB-320.onnx", (face, "MIT"), "", {}),
        ("version-slim-320_simplified.onnx", (face, "MIT"), "", {}),
        ("yunet26.onnx", ("OpenCV model zoo", "MIT"), "", {"input": (1, 3, 320, 320)}),
        ("ppocr_det_infer.onnx", ocr, "ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 320, 320)}),
        ("ppocr_cls.onnx", ocr, "ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": (1, 3, 48, 192)}),
        ("ch_PP-OCRv4_rec_infer.onnx", ocr, "ch_PP-OCRv4_rec_infer.onnx", {"x": (1, 3, 48, 320)}),
        ("magika.onnx", magika, "model.onnx", {}),
        ("crepe_tiny.onnx", ("a public repository", "not said"), "", {"audio": (1, 1024)}),
        ("basic_pitch.onnx", pitch, "nmp.onnx", {"serving_default_input_2:0": (1, 43844, 1)}),
        ("dtln1.onnx", ("breizhn/DTLN", "MIT"), "", {}),
        ("silero_vad.onnx", vad, "silero_vad.onnx", frame),
        ("silero_vad_openvino_16k.onnx", vad, "silero_vad_openvino_16k.onnx", {}),
        ("silero_vad_16k_op15.onnx", vad, "silero_vad_16k_op15.onnx", frame),
        ("silero_vad_16k_sequence.onnx", vad, "silero_vad_16k_sequence.onnx", {"input": (31, CONTEXT + FRAME)}),
        ("silero_vad_half.onnx", vad, "silero_vad_half.onnx", frame),
        ("silero_vad_op18_ifless.onnx", vad, "silero_vad_op18_ifless.onnx", frame),
    )
    found = [
        Source(
            file,
            *origin,
            _placed(file, origin[0].removeprefix("wheel "), inside),
            sizes,
            shown.get(file, dict),
            STATES.get(file, ""),
        )
        for file, origin, inside, sizes in rows
    ]
    made = ("transformers, random weights", "Apache-2.0")
    return found + [Source(f"zoo: {name}", *made, _exported(name)) for name in ZOO]


SOURCES = {source.name: source for source in _sources()}
