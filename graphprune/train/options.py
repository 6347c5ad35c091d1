"""Numbers that a constructor is given: in their range, or refused by name."""

from __future__ import annotations

import math
from typing import Any

from ..errors import RecipeError


def within(who: str, interval: str, **values: Any) -> None:
    """Raise RecipeError for the first that is no finite number in ``interval``, written as in mathematics: ``(0, 1]``
    is above 0 and up to 1."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in values.items():
        number = _number(value)
        fits = (
            math.isfinite(number)
            and (low <= number if interval[0] == "[" else low < number)
            and (number <= high if interval[-1] == "]" else number < high)
        )
        if not fits:
            raise RecipeError(f"{who}: `{name}` cannot be {value!r}", f"a number in {interval}")


def whole(who: str, **values: Any) -> None:
    """Raise RecipeError for the first that is no whole number above zero."""
    for name, value in values.items():
        number = _number(value)
        if not (number >= 1 and number.is_integer()):
            raise RecipeError(f"{who}: `{name}` cannot be {value!r}", "a whole number, 1 or more")


def _number(value: Any) -> float:
    """Not a number where it is none: nothing contains that."""
    try:
        return math.nan if isinstance(value, (str, bool)) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
