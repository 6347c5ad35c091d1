"""Where code goes: targets that emit it, and one way to measure them."""

from .measure import Runnable, interleave
from .target import Target, runnable, target, targets

__all__ = ["Runnable", "Target", "interleave", "runnable", "target", "targets"]
