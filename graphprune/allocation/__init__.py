"""How many channels of each group survive. An allocation takes an Allocation and returns counts; adding
one is a function and a line here, or an entry point ``graphprune.allocations`` of another package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from ..pipeline.base import plug_ins
from .choice import Counts
from .depthwise import depthwise
from .eagleeye import NEAR as eagleeye_near
from .eagleeye import eagleeye
from .knapsack import knapsack
from .problem import Allocation
from .rd import rd
from .stepwise import stepwise
from .threshold import greedy, lamp, one_threshold, uniform

__all__ = ["METHODS", "OF_ALIKE", "OF_BRANCHES", "Allocation", "Counts", "Method", "methods"]

METHODS: Mapping[str, Callable[[Allocation], Counts]] = {
    "uniform": uniform,
    "global": one_threshold,
    "lamp": lamp,
    "knapsack": knapsack,
    "greedy": greedy,
    "rd": rd,
    "eagleeye": eagleeye,
    "stepwise": stepwise,
    "depthwise": depthwise,
}
WANT_DATA = frozenset({"rd", "eagleeye"})
OF_BRANCHES = frozenset({"uniform", "global", "greedy", "knapsack", "rd", "stepwise"})
"""The methods that may be asked about branches."""
OF_ALIKE = frozenset({"uniform", "global", "lamp", "greedy", "knapsack", "rd"})
"""The methods that may be asked to keep layers alike."""
NEAR: Mapping[str, float] = {"eagleeye": eagleeye_near}


@dataclass(frozen=True)
class Method:
    """``counts`` says how many channels of every group survive; ``data``: it needs calibration data; ``near``: the
    share of the budget that it means to come within, which is said where it does not."""

    counts: Callable[[Allocation], Counts]
    data: bool = False
    near: float = 1.0


@cache
def methods() -> Mapping[str, Method]:
    """Every allocation by name: the built-in ones and those of the entry-point group ``graphprune.allocations``, each
    a Method. Raises RecipeError for a plug-in that is none."""
    built_in = {name: Method(counts, name in WANT_DATA, NEAR.get(name, 1.0)) for name, counts in METHODS.items()}
    return {**plug_ins("graphprune.allocations", "allocation", Method), **built_in}
