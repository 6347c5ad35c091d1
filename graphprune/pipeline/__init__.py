"""Passes and recipes, running and replaying them, and the proof that the result is right."""

from .base import Pass, passes
from .recipe import Recipe

__all__ = ["Pass", "Recipe", "passes"]
