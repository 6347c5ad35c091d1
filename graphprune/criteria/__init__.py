"""The criteria: how much each channel of a group is worth. Adding one is a function with ``@criterion``
in a module that is imported here, or an entry point ``graphprune.criteria`` of another package."""

from collections.abc import Mapping
from functools import cache

from ..pipeline.base import plug_ins
from . import activation, experts, gradient, initial, lasso, magnitude, obs
from .scoring import COMBINE, CRITERIA, NORMALIZE, Criterion, Scoring

__all__ = ["COMBINE", "CRITERIA", "NORMALIZE", "Criterion", "Scoring", "criteria"]
_MODULES = (activation, experts, gradient, initial, lasso, magnitude, obs)


@cache
def criteria() -> Mapping[str, Criterion]:
    """Every criterion by name: the built-in ones and those of the entry-point group ``graphprune.criteria``, each a
    Criterion. Raises RecipeError for a plug-in that is none."""
    return {**plug_ins("graphprune.criteria", "criterion", Criterion), **CRITERIA}
