"""Least squares for layers: what a layer reads as a matrix, and normal equations summed over batches.

The equations are float64 and centred, so that an intercept comes with them; of a batch no more is held
than the rows drawn from it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..coupling.contractions import Contraction
from ..ir.host import Array, Batch, Host


class NormalEquations:
    """Sums over rows of inputs x and targets t: x x' and x t', per group of a layer, about the means of the first
    rows. Products are made in the precision of x, block by block, and summed in float64: about a mean, float32
    loses nothing that the data has."""

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        self.rows = 0
        self._gram = np.zeros((groups, inputs, inputs))
        self._input = np.zeros((groups, inputs))
        self._about: tuple[Array, Array] | None = None  # what is taken off every row of inputs, and of targets
        self._outputs = outputs
        self._forget()

    def _forget(self) -> None:
        """As if no target had been added."""
        groups, inputs = self._input.shape
        self._cross = np.zeros((groups, inputs, self._outputs // groups))
        self._target = np.zeros((groups, self._outputs // groups))

    def add(self, x: Array, target: Array) -> None:
        """``x``: (rows, groups, inputs); ``target``: (rows, outputs)."""
        self.rows += len(x)
        for own, t in self._blocks(x, target):
            self._gram += own.swapaxes(1, 2) @ own  # a product of a matrix with itself takes half the time
            self._input += own.sum(1, dtype=np.float64)
            self._aim(own, t)

    def aim(self, rows: Iterable[tuple[Array, Array]]) -> None:
        """The same rows once more, with other targets in place of those they had."""
        self._forget()
        for x, target in rows:
            for own, t in self._blocks(x, target):
                self._aim(own, t)

    def _aim(self, own: Array, target: Array) -> None:
        self._cross += own.swapaxes(1, 2) @ target
        self._target += target.sum(1, dtype=np.float64)

    def _blocks(self, x: Array, target: Array) -> Iterator[tuple[Array, Array]]:
        """Blocks of rows, (groups, rows, inputs) and (groups, rows, outputs)."""
        whole = target.reshape(len(x), len(self._gram), -1)
        if self._about is None:
            self._about = tuple(part[:BLOCK].mean(0, np.float64).astype(x.dtype) for part in (x, whole))
        assert self._about is not None
        for k in range(0, len(x), BLOCK):
            own, t = (
                np.ascontiguousarray((part[k : k + BLOCK] - about).swapaxes(0, 1), x.dtype)
                for part, about in zip((x, whole), self._about, strict=True)
            )
            yield own, t

    def state(self) -> dict[str, Array]:
        """All of it as arrays."""
        about = dict(zip(("about_x", "about_t"), self._about or (), strict=False))
        sums = {"gram": self._gram, "input": self._input, "cross": self._cross, "target": self._target}
        return {"rows": np.array(self.rows), **sums, **about}

    @classmethod
    def of(cls, state: Mapping[str, Array]) -> NormalEquations:
        """The inverse of ``state``."""
        groups, inputs = state["input"].shape
        made = cls(groups, inputs, state["target"].size)
        made.rows = int(state["rows"])
        made._gram, made._input, made._cross, made._target = (state[k] for k in ("gram", "input", "cross", "target"))
        made._about = (state["about_x"], state["about_t"]) if "about_x" in state else None
        return made

    def centred(self) -> tuple[Array, Array, Array, Array]:
        """Covariances of x with itself and with t, and the means of both."""
        assert self._about is not None
        mean, target = self._input / self.rows, self._target / self.rows
        gram = self._gram / self.rows - mean[:, :, None] * mean[:, None, :]
        cross = self._cross / self.rows - mean[:, :, None] * target[:, None, :]
        return gram, cross, mean + self._about[0], target + self._about[1]

    def solve(self, start: Array, damp: float, intercept: bool = True) -> tuple[Array, Array]:
        """The weight (groups, outputs, inputs) and intercept (outputs) of the least squared error,
        ``damp`` x the mean variance of the inputs pulling the weight to ``start``. An input that no
        output reads in ``start`` stays unread. Without ``intercept`` it is zero, and the weight fits the means too."""
        gram, cross, mean, target = self.centred()
        if not intercept:
            gram, cross = gram + mean[:, :, None] * mean[:, None, :], cross + mean[:, :, None] * target[:, None, :]
        new = start.swapaxes(1, 2).copy()
        for part, read in enumerate((new != 0).any(-1)):
            inner, old = gram[part][np.ix_(read, read)], new[part][read]
            size = max(len(inner), 1)
            ridge = max(damp * np.trace(inner) / size, np.finfo(np.float64).tiny)
            new[part, read] += np.linalg.solve(inner + ridge * np.eye(len(inner)), cross[part][read] - inner @ old)
        bias = target - np.einsum("gi,gio->go", mean, new) if intercept else np.zeros_like(target)
        return new.swapaxes(1, 2), bias.ravel()


@dataclass(frozen=True)
class Curvature:
    """A fact: per layer (op name), the normal equations of its inputs and outputs over the calibration
    data, for whoever comes next."""

    sums: Mapping[str, NormalEquations]


BLOCK = 4096
"""Rows that are multiplied at once."""
ROWS, FEW, MANY = 100, 30, 16_384
"""Rows drawn per unknown of a layer (neighbouring positions say much the same), and per unknown where those are more
than ``MANY``: their products cost the cube of the unknowns."""


def rows_wanted(unknowns: int) -> int:
    """How many rows the fit of a layer draws from the whole data."""
    return min(ROWS * unknowns, max(FEW * unknowns, MANY))


def draw(rng: np.random.Generator, positions: int, wanted: int) -> Array | None:
    """A random share of the positions of a batch; None: all of them."""
    return None if wanted >= positions else np.sort(rng.choice(positions, wanted, replace=False))


def equations(
    found: Sequence[Contraction],
    host: Host,
    batches: Sequence[Batch],
    seed: int,
    told: Callable[[int], None] = lambda batches: None,
) -> dict[str, NormalEquations]:
    """By op name, the normal equations of layers for what they give now: one pass over the data. ``told``: called
    with how many batches are done."""
    sums: dict[str, NormalEquations] = {}
    names = sorted({value.name for layer in found for value in (layer.value, layer.out)})
    shapes = [layer.flat_matrix(host).shape for layer in found]
    for number, batch in enumerate(batches):
        told(number)
        seen = host.watch(batch, names)
        for layer, (groups, outputs, inputs) in zip(found, shapes, strict=True):
            x, y = seen[layer.value.name], seen[layer.out.name]
            rng = np.random.default_rng([seed, number, zlib.crc32(layer.op.name.encode())])
            at = draw(rng, layer.positions(y), -(-rows_wanted(inputs) // len(batches)))
            own = sums.setdefault(layer.op.name, NormalEquations(groups, inputs, groups * outputs))
            own.add(layer.rows(x, at), layer.targets(y, at))
    return sums
