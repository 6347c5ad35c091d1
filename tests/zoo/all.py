"""The catalogue, filled."""

from __future__ import annotations

from . import language, others, vision
from .catalogue import CATALOGUE

__all__ = ["CATALOGUE", "language", "others", "vision"]
