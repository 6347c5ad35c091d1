"""What it is to read an ATen op: to say which kind of ops/rules.py it is, of which operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Args = Mapping[str, Any]
"""An op's arguments by their schema names, defaults filled in."""

Reading = tuple[str, list[Any], dict[str, Any]]
"""Kind, tensor operands in the rule's order, attributes."""

Table = dict[str, Callable[[Args], Reading]]
"""By the name of the op, or its name and overload."""


def rank_of(node: Any) -> int:
    rank: int = node.meta["val"].ndim
    return rank


def listed(axes: Any) -> list[int]:
    """Axes as a list: none where all are meant."""
    return [] if axes is None else [axes] if isinstance(axes, int) else list(axes)
