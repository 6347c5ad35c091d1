"""Samples that calibration does not see: what a result is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..ir.host import Array, Batch
from ..ir.program import Loss, Program, must_be_program
from .batches import Axes, bound, rows, sample_axes, samples
from .files import Folder

ONE_IN = 8
"""Of so many samples one is held back,"""
MOST = 64
"""and no more than about so many."""


def hold_back(program: Program) -> tuple[Program, Sequence[Batch]]:
    """The program with the calibration data that is left, and what is held back, for ``closeness``: no sample is in
    both. Every eighth sample, or every so many that about ``MOST`` are held back, is taken out; where the model is
    bound to a batch size, whole batches are. Nothing is, where there are fewer than eight. The same data is always
    parted alike."""
    must_be_program(program, "hold_back")
    data, loss, inputs = program.data, program.loss, program.graph.inputs
    axes = sample_axes(data, inputs)
    counts = data.counts() if isinstance(data, Folder) else [samples(batch, axes) for batch in data]
    free = bound(data, inputs) is None
    units = sum(counts) if free else len(counts)  # what can be held back
    if units < ONE_IN:
        return program, ()
    every = max(ONE_IN, -(-sum(counts) // MOST))
    places = np.repeat(np.arange(len(counts)), counts) if free else np.arange(len(counts))
    numbers = np.concatenate([np.arange(count) for count in counts]) if free else None
    out = np.arange(units) % min(every, units) == ONE_IN - 1

    def part(whole: Sequence[Batch], chosen: Array, axes: Axes | None = None) -> _Some:
        batches = dict.fromkeys(places[chosen].tolist())
        at = [(k, numbers[chosen & (places == k)] if numbers is not None else None) for k in batches]
        return _Some(whole, at, axes)

    rest = Loss(loss.function, part(loss.rest, ~out)) if loss else None
    return replace(program, data=part(data, ~out, axes), loss=rest), part(data, out, axes)


class _Some(Sequence[Batch]):
    """Some samples of some batches, taken when they are read: ``parts`` are the number of a batch and rows of it
    (None: all)."""

    def __init__(
        self, whole: Sequence[Batch], parts: Sequence[tuple[int, Array | None]], axes: Axes | None = None
    ) -> None:
        self._whole, self._parts, self._axes = whole, parts, axes
        self.fixed: Sequence[str] = getattr(whole, "fixed", ())

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return _Some(self._whole, self._parts[number], self._axes)
        place, at = self._parts[number]
        batch = self._whole[place]
        return batch if at is None else rows(batch, at, self._axes)
