"""What the texts of rules are made from: shapes, names of axes, reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..axes.dim import Dim, Size, find, freeze
from ..ir.graph import Op, Value

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def shape_of(value: Value | None) -> tuple[Size, ...]:
    assert value is not None and value.shape is not None
    return value.shape


def rank_of(value: Value | None) -> int:
    return len(shape_of(value))


def all_static(values: Sequence[Value | None], axis: int) -> bool:
    return all(isinstance(shape_of(value)[axis], int) for value in values)


def axes_of(rank: int, special: Mapping[int, str]) -> str:
    return " ".join(special.get(k, f"a{k}") for k in range(rank))


def because(op: Op, axes: Sequence[Dim]) -> None:
    """Freeze axes for a reason that the host gives (``why``)."""
    for axis in axes:
        freeze(axis, f"{op.origin or op.name}: {op.attrs['why']}")


def picks(value: Value | None, size: Size) -> bool:
    """Whether the numbers of a value are positions of an axis of that size."""
    return value is not None and value.picks is not None and find(value.picks).size == size


def per_channel(value: Value | None, channels: str) -> str:
    """An operand that holds one number for all, or one per channel."""
    return "_" if value is None else "" if not rank_of(value) else "1" if shape_of(value) == (1,) else channels


def joined(parts: Sequence[str]) -> str:
    return f"({' + '.join(parts)})" if len(parts) > 1 else parts[0].partition(":")[0]
