"""How long a search for schedules may take."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import TargetError, shown


@dataclass(frozen=True)
class Budget:
    """How long to search: trials over all ops, or minutes; the first that is used up ends it."""

    trials: int = 0
    minutes: float = 0.0

    def __post_init__(self) -> None:
        if self.trials < 0 or self.minutes < 0 or not self.trials + self.minutes > 0:
            raise TargetError(
                f"a tuning budget of {self.trials} trials and {self.minutes} minutes is not one",
                "say 10min, 90s, 1h, or a number of trials such as 2000",
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``10min``, ``90s``, ``1h``, or a number of trials. Raises TargetError."""
        found = re.fullmatch(r"(\d{0,15}\.?\d{1,15}) ?(s|min|m|h)?", text.strip())
        if found is None or (not found[2] and "." in found[1]):
            raise TargetError(
                f"`{shown(text)}` is not a tuning budget", "10min, 90s, 1h, or a number of trials such as 2000"
            )
        if not found[2]:
            return cls(trials=int(found[1]))
        return cls(minutes=float(found[1]) * {"s": 1 / 60, "m": 1, "min": 1, "h": 60}[found[2]])
