"""The criteria: how much each channel of a group is worth. Adding one is a function with ``@criterion``
in a module that is imported here."""

from . import activation, gradient, lasso, magnitude, obs
from .scoring import COMBINE, CRITERIA, NORMALIZE, Criterion, Scoring

__all__ = ["COMBINE", "CRITERIA", "NORMALIZE", "Criterion", "Scoring"]
_MODULES = (activation, gradient, lasso, magnitude, obs)
