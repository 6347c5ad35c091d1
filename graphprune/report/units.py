"""Numbers as people read them, and how wide their terminal is."""

from __future__ import annotations

import math

COLUMNS = 80
"""Of a terminal."""

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(number: float) -> str:
    """``1234567`` -> ``1.23 M``."""
    for unit, letter in _UNITS:
        if abs(number) >= unit * 0.9995:
            return f"{_digits(number / unit)} {letter}"
    return f"{number:g}"


def size(number: float) -> str:
    """Bytes, in powers of 1000: ``46827520`` -> ``46.8 MB``."""
    text = count(number)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def duration(milliseconds: float) -> str:
    """``0.0421`` -> ``0.042 ms``, ``3.2`` -> ``3.20 ms``, ``61000`` -> ``61.0 s``."""
    if milliseconds == 0:
        return "0 ms"
    if milliseconds < 0.0005:
        return "< 0.001 ms"
    if milliseconds < 1:
        return f"{milliseconds:.3f} ms"
    return f"{_digits(milliseconds)} ms" if milliseconds < 1000 else f"{_digits(milliseconds / 1e3)} s"


def ratio(before: float, after: float) -> str:
    """What remains: ``0.50x``."""
    return f"{after / before:.2f}x" if before else "-"


def _digits(number: float) -> str:
    """Three significant digits, never in exponent notation."""
    rounded = float(f"{number:.2e}")
    magnitude = math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{number:.{max(0, 2 - magnitude)}f}"


def error(number: float | None) -> str:
    """A relative error: ``3.1e-15``, or ``0`` where the results are the same bits."""
    if number is None:
        return "-"
    return "0" if number == 0 else f"{number:.1e}".replace(".0e", "e")


def shortened(name: str, width: int) -> str:
    """A name with its middle left out where it is too long: both ends tell names apart."""
    if len(name) <= width:
        return name
    half = (width - 3) // 2
    return f"{name[: width - 3 - half]}...{name[len(name) - half :]}"
