"""A process in which graphprune is not installed."""

from __future__ import annotations

WITHOUT = """
import sys
class Without:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("graphprune", "nets"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Without())
"""
# To begin a program with.
