"""What the models of docs/models.md are shown: files of this machine, rendered text, voice-like sound and noise."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .ort_macs import Array

RATE, FRAME, CONTEXT = 16000, 512, 64

# File types: how magika reads bytes (its config: the first and last 1,024 of what is left without blanks, 256 pads).

KINDS = (
    "py", "h", "hpp", "cpp", "c", "html", "css", "js", "json", "txt", "md", "rst", "toml", "xml", "csv", "so", "pyc",
    "png", "ttf", "afm", "npz", "gz", "pdf", "svg", "yaml", "whl", "exe", "ipynb", "npy", "pyi",
)  # fmt: skip


def files(count: int) -> list[Path]:
    """Of Python's library and what is installed beside it, kinds turn about, so that none has the most."""
    roots = {Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("stdlib")), Path("/usr/share")}
    by_kind: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for root in sorted(roots):
        for path in root.rglob("*.*"):
            if (own := by_kind.get(path.suffix[1:])) is not None and path.is_file() and path.stat().st_size >= 64:
                own.append(path)
    rng = np.random.default_rng(0)
    mixed = [[sorted(own)[k] for k in rng.permutation(len(own))[:16]] for own in by_kind.values()]
    return [own[turn] for turn in range(16) for own in mixed if turn < len(own)][:count]


def as_bytes(path: Path) -> Array:
    found = np.full(2048, 256, np.int32)
    content = path.read_bytes()
    head, tail = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    found[: len(head)], found[2048 - len(tail) :] = list(head), list(tail)
    return found


# Rendered text: random words in the fonts that come with matplotlib, as PP-OCR normalises them.

WORDS = (
    "the quick brown fox jumps over a lazy dog while seven wizards box five dozen liquor jugs and 42 judges vow to "
    "quiz Big Ben about Invoice No. 2024 total amount 1,250.00 EUR Tuesday 17 March Street Berlin"
).split()


def text(rng: np.random.Generator, length: int) -> str:
    return " ".join(rng.choice(WORDS, length))


def font(rng: np.random.Generator, size: int) -> Any:
    import matplotlib
    from PIL import ImageFont

    names = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "DejaVuSerif-Italic")
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{rng.choice(names)}.ttf", size)


def drawn(rng: np.random.Generator, width: int, height: int, lines: Sequence[tuple[float, float, str, int]]) -> Any:
    """Dark lines (x, y, text, size) on a light ground, with noise."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), tuple(rng.integers(190, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for x, y, line, size in lines:
        pen.text((x, y), line, tuple(rng.integers(0, 90, 3).tolist()), font(rng, size))
    noisy = np.asarray(image, np.float32) + rng.normal(0, 6, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def normalised(image: Array) -> Array:
    return (np.asarray(image, np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5


def page_of(seed: int) -> Array:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(14, 26))
    lines = [
        (rng.uniform(4, 60), y + rng.uniform(0, 6), text(rng, int(rng.integers(1, 4))), size)
        for y in range(8, 300, int(size * 2.4))
        if rng.random() < 0.8
    ]
    return normalised(drawn(rng, 320, 320, lines))


def one_line(rng: np.random.Generator, words: int) -> tuple[float, float, str, int]:
    return rng.uniform(2, 12), rng.uniform(4, 12), text(rng, words), int(rng.integers(20, 28))


def line_of(seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return normalised(
        drawn(rng, 320, 48, [(rng.uniform(2, 12), rng.uniform(4, 12), text(rng, 3), int(rng.integers(20, 28)))])
    )


def direction_of(seed: int) -> Array:
    """A short line, half of them upside down."""
    rng = np.random.default_rng(seed)
    image = drawn(rng, 192, 48, [one_line(rng, 2)])
    return normalised(image[::-1, ::-1] if seed % 2 else image)


# Voice: pulses of a falling and rising pitch through three formants, in syllables; noise of several colours.


def sound(seed: int, seconds: float = 2.0) -> Array:
    """Odd seeds: speech-like, with pauses; even ones: noise alone."""
    rng = np.random.default_rng(seed)
    count = int(seconds * RATE)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    noise = np.fft.irfft(spectrum / (1 + np.arange(len(spectrum))) ** rng.uniform(0, 0.7), count)
    noise *= rng.uniform(0.002, 0.05) / noise.std()
    return (noise + (speech(rng, count) if seed % 2 else 0)).astype(np.float32)


def speech(rng: np.random.Generator, count: int) -> Array:
    from scipy.signal import lfilter

    voice, at = np.zeros(count), int(rng.uniform(0, 0.2) * RATE)
    pitch = rng.uniform(90, 220)
    while at < count:
        length = min(int(rng.uniform(0.09, 0.26) * RATE), count - at)
        time = np.arange(length) / length
        turns = np.cumsum(pitch * (1 + 0.15 * np.sin(np.pi * time + rng.uniform(0, 6))) / RATE)
        part = np.diff(np.floor(turns), prepend=0) + 0.02 * rng.standard_normal(length)
        for formant, width in zip(rng.uniform((300, 900, 2200), (800, 2000, 3000)), (80, 110, 170), strict=True):
            r = np.exp(-np.pi * width / RATE)
            part = lfilter([1 - r], [1, -2 * r * np.cos(2 * np.pi * formant / RATE), r * r], part)
        voice[at : at + length] = part * np.hanning(length) ** 0.5 / (np.abs(part).max() + 1e-9)
        at += length + int(rng.choice([0.01, 0.04, 0.5], p=[0.5, 0.4, 0.1]) * RATE)
    return 0.3 * voice
