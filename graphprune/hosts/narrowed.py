"""Inputs that became narrower, given as wide as they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..axes.index import Indices
from ..ir.host import Array


@dataclass(frozen=True)
class Narrowed:
    """One input by its number, of an axis of ``size`` of which ``keep`` is left."""

    number: int
    axis: int
    size: int
    keep: Indices

    def of(self, batch: Sequence[Array]) -> list[Array]:
        """The batch as the model takes it."""
        return [
            array.take(self.keep, self.axis) if number == self.number and self._whole(array) else array
            for number, array in enumerate(batch)
        ]

    def start(self, item: Array | tuple[int, ...]) -> Array | tuple[int, ...]:
        """What is known of an example's input, the array or its sizes, after the cut."""
        if isinstance(item, tuple):
            return (*item[: self.axis], len(self.keep), *item[self.axis + 1 :])
        return item.take(self.keep, self.axis)

    def _whole(self, array: Array) -> bool:
        return array.ndim > self.axis and array.shape[self.axis] == self.size


def narrowed(batch: Sequence[Array], cuts: Sequence[Narrowed]) -> Sequence[Array]:
    """The batch after all cuts, in the order in which they were made."""
    for cut in cuts:
        batch = cut.of(batch)
    return batch
