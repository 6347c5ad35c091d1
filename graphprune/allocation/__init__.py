"""How many channels of each group survive. An allocation takes an Allocation and returns counts; adding
one is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .choice import Counts
from .eagleeye import eagleeye
from .knapsack import knapsack
from .problem import Allocation
from .rd import rd
from .threshold import greedy, lamp, one_threshold, uniform

__all__ = ["METHODS", "WANT_DATA", "Allocation", "Counts"]

METHODS: Mapping[str, Callable[[Allocation], Counts]] = {
    "uniform": uniform,
    "global": one_threshold,
    "lamp": lamp,
    "knapsack": knapsack,
    "greedy": greedy,
    "rd": rd,
    "eagleeye": eagleeye,
}
WANT_DATA = frozenset({"rd", "eagleeye"})
