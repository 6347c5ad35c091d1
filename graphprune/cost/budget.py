"""Budgets as people write them: ``0.5x``, ``50%`` and ``0.5`` are one thing; ``200k``, ``3MB``, ``12ms`` another."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import BudgetError, shown

_NUMBER = r"(\d*\.?\d+(?:e[-+]?\d+)?)"
_SHARE = {"": 1.0, "x": 1.0, "%": 0.01}
_COUNT = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_OWN = {
    "params": _COUNT,
    "macs": _COUNT,
    "size": _BYTES,
    "memory": _BYTES,
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
}
"""What an amount of a unit itself may end in, and what one of it is: of latency, in milliseconds."""
_SUCH = {
    "params": "200k, 1.5M",
    "macs": "200M, 1.5G",
    "size": "200kB, 3MB",
    "memory": "512kB, 3MB",
    "latency": "12ms, 800us",
}


@dataclass(frozen=True)
class Amount:
    """What may remain: a share of what there is, or ``absolute``, so much of the unit (MACs, bytes, milliseconds)."""

    number: float
    absolute: bool = False

    def share(self, whole: float) -> float:
        """Of what there is."""
        return self.number / whole if self.absolute and whole else self.number


def amount(text: str, unit: str) -> Amount:
    """What a budget says. Raises BudgetError for what is none: a share of 1 or more, nothing, another unit's."""
    found = re.fullmatch(rf"{_NUMBER} ?([a-zA-Z%]*)", text.strip())
    number, end = (float(found[1]), found[2]) if found else (0.0, "")
    own = _OWN.get(unit, {})
    whole = bool(end) or (number >= 2 and number.is_integer())
    if 0 < number < float("inf") and end in own and whole:
        return Amount(number * own[end], absolute=True)
    if end in _SHARE and 0 < number * _SHARE[end] < 1:
        return Amount(number * _SHARE[end])
    such = f", or so much: {_SUCH[unit]}" if unit in _SUCH else ""
    raise BudgetError(
        f"{unit}={shown(text)} is not a budget", f"say what remains, between 0 and 1: {unit}=0.5x, 50%{such}"
    )


def written(number: float, unit: str) -> str:
    """So much of a unit that is counted, as messages have it: ``230.4 kB``, ``2,132``."""
    if _OWN.get(unit) is not _BYTES:
        return f"{round(number):,}"
    end = next((end for end in ("GB", "MB", "kB") if number >= _BYTES[end]), "B")
    return f"{number / _BYTES[end]:.4g} {end}"


def per(unit: str) -> str:
    """What an amount is of, where it is not the whole network's."""
    return " for one sample" if unit in ("macs", "memory") else ""


def spelt(budget: object) -> str:
    """A budget given in Python as a recipe has it: ``0.5`` is ``0.5x``, ``200_000`` so many."""
    share = isinstance(budget, float) and 0 < budget < 1
    return f"{budget}x" if share else str(budget)
