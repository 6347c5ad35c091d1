"""Where code goes: targets that emit it, and one way to measure them."""

from .measure import Runnable, interleave, share
from .target import Target, runnable, target, targets

__all__ = ["Runnable", "Target", "interleave", "runnable", "share", "target", "targets"]
