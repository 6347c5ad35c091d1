"""What calibration data says of the inputs of layers: a fact, for whoever leaves some of them out."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..coupling.affine import affine
from ..coupling.contractions import Contraction
from ..ir.graph import Graph
from ..ir.host import Array, Batch, Host
from ..ir.large import Room, give_back
from .activations import Walk
from .least_squares import Covariance, draw, rows_wanted
from .processes import count, mine, rank, sent, turns

DAMP = 0.01
"""Ridge of a layer's H, in mean variances of its inputs."""
SEGMENT_BYTES = 1 << 29
"""Covariances that are summed at once take no more, but for a layer whose own does."""
HALVED = 4096
"""A larger matrix is inverted by its halves."""


@dataclass(frozen=True)
class Reading:
    """What a layer does with its inputs, H their damped covariance. ``weight`` is (groups, outputs, taps x inputs) and
    has been multiplied by ``scale`` (groups, outputs), by what an error of each output counts."""

    layer: Contraction
    weight: Array
    scale: Array
    mean: Array  # of the inputs, (groups, taps x inputs)
    inverse: Array  # of H, (groups, taps x inputs, taps x inputs)
    worth: float  # the reciprocal of the variance of what the layer gives


@dataclass(frozen=True)
class Curvature:
    """A fact: by op name, the layers that read something, in order of execution."""

    readings: Mapping[str, Reading]


def measured(
    found: Sequence[Contraction],
    graph: Graph,
    host: Host,
    batches: Sequence[Batch],
    seed: int,
    told: Callable[[int, int], None] = lambda done, total: None,
    look: Callable[[Sequence[Contraction], Mapping[str, Covariance]], None] = lambda layers, sums: None,
) -> Curvature:
    """The curvature of layers over calibration data. Where their covariances are large it is found one segment of the
    network after the other, and put into temporary files: no more is in memory than a segment's, and values that are
    still read (see activations.Walk). ``told``: called with how much is done, of how much; ``look``: with the layers of
    each segment and their covariances."""
    room, readings = Room() if len(segments(found)) > 1 else None, dict[str, Reading]()
    for part, sums in summed(found, graph, host, batches, seed, told):
        look(part, sums)
        readings |= curvature(part, graph, host, sums, room).readings
        if room is not None:
            give_back()
    return Curvature({layer.op.name: readings[layer.op.name] for layer in found})


def summed(
    found: Sequence[Contraction],
    graph: Graph,
    host: Host,
    batches: Sequence[Batch],
    seed: int,
    told: Callable[[int, int], None] = lambda done, total: None,
    precise: bool = False,
) -> Iterator[tuple[list[Contraction], dict[str, Covariance]]]:
    """The covariances of what layers read, by op name, one segment of the network after the other. Layers of one
    window share theirs. ``precise``: as a Covariance has it."""
    parts, place = segments(found), {op.name: number for number, op in enumerate(graph.ops)}
    with Walk(host, graph, batches if count() == 1 else mine(batches), edited=False) as walk:
        for number, part in enumerate(parts):
            at = max(place[layer.op.name] for layer in part)
            seen = walk.at(at, sorted({layer.value.name for layer in part}), last=number == len(parts) - 1)
            begun = number * len(batches)

            def values(batch: int, begun: int = begun, seen: Iterator[dict[str, Array]] = seen) -> dict[str, Array]:
                told(begun + batch, len(parts) * len(batches))
                return next(seen)

            yield part, _summed(part, host, len(batches), values, seed, precise)


def segments(found: Sequence[Contraction]) -> list[list[Contraction]]:
    """Layers in order of execution, those of one window together, whose covariances take ``SEGMENT_BYTES`` or less."""
    parts, size = list[list[Contraction]](), 0
    for layers in _windows(found).values():
        own = 8 * layers[0].groups * layers[0].inputs ** 2
        if not parts or size + own > SEGMENT_BYTES:
            parts, size = [*parts, []], 0
        parts[-1] += layers
        size += own
    return parts


def _windows(found: Sequence[Contraction]) -> dict[tuple[object, ...], list[Contraction]]:
    """Layers that read the same rows share their covariance."""
    windows: dict[tuple[object, ...], list[Contraction]] = {}
    for layer in found:
        windows.setdefault(layer.window, []).append(layer)
    return windows


def _summed(
    found: Sequence[Contraction],
    host: Host,
    batches: int,
    values: Callable[[int], Mapping[str, Array]],
    seed: int,
    precise: bool = False,
) -> dict[str, Covariance]:
    """``values``: of a batch, what the layers read; called for this process's own, in order. Raises DataError where
    what a layer reads is infinite."""
    windows = _windows(found)
    first = [layers[0] for layers in windows.values()]
    sums = [Covariance(layer.groups, layer.inputs, precise) for layer in first]

    def made(number: int) -> Iterator[tuple[Array, ...]]:
        seen = values(number)
        for place, (layer, own) in enumerate(zip(first, sums, strict=True)):
            x = seen[layer.value.name]
            rng = np.random.default_rng([seed, number, zlib.crc32(layer.op.name.encode())])
            at = draw(rng, layer.positions(x), -(-rows_wanted(own.size) // batches))
            for block in own.blocks(layer.rows(x, at)):
                rows, square, total = own.products(block)
                yield np.array(place), np.array(rows), square, total

    ahead: dict[int, list[tuple[Array, ...]]] = {}
    if count() > 1:  # rows are taken about the means of the first batch
        if rank() == 0:
            ahead[0] = [*made(0)]
        for own, (about,) in zip(sums, sent([[own.about] for own in sums] if ahead else [], 0), strict=True):
            own.about = about
    for parts in turns(batches, lambda number: ahead.pop(number, None) or made(number)):
        for place, rows, square, total in parts:
            sums[int(place)].put(int(rows), square, total)
    for layer, own in zip(first, sums, strict=True):
        own.check(layer.op.where)
    return {layer.op.name: own for layers, own in zip(windows.values(), sums, strict=True) for layer in layers}


def curvature(
    found: Sequence[Contraction], graph: Graph, host: Host, sums: dict[str, Covariance], room: Room | None = None
) -> Curvature:
    """Of the layers ``found``. ``sums`` is emptied on the way: a covariance and its inverse are large. ``room``: where
    the result is put, if not in memory."""
    weigh, made = scales(graph, host), dict[str, Reading]()
    shared: dict[int, list[Contraction]] = {}
    for layer in found:
        shared.setdefault(id(sums[layer.op.name]), []).append(layer)
    for layers in shared.values():
        gram, mean = [sums.pop(layer.op.name) for layer in layers][-1].centred()
        own = dict[str, tuple[Array, Array, float]]()
        for layer in layers:
            weight, scale = scaled(layer, host, weigh)
            energy = float(np.sum((weight @ gram) * weight))
            own[layer.op.name] = weight if room is None else room.put(weight), scale, 1 / (energy or 1.0)
        wide = room is not None and room.wants(gram.nbytes)
        inverse = room.empty(gram.shape, gram.dtype) if room is not None and wide else np.empty_like(gram)
        for part, out in zip(gram, inverse, strict=True):
            _damp(part)
            invert(part, out)
        for layer in layers:
            weight, scale, worth = own[layer.op.name]
            made[layer.op.name] = Reading(layer, weight, scale, mean, inverse, worth)
    return Curvature({layer.op.name: made[layer.op.name] for layer in found})


def _damp(gram: Array) -> None:
    size = len(gram)
    gram.flat[:: size + 1] += DAMP * np.trace(gram) / size or 1.0


def invert(matrix: Array, out: Array) -> None:
    """The inverse of a symmetric positive definite matrix, which is lost on the way. A large one is inverted by its
    halves [[P, Q], [Q', R]], the Schur complement S = R - Q' P^-1 Q of P taking the place of R: a third of the work,
    and a fraction of the memory, of doing it at once."""
    half = len(matrix) // 2
    if len(matrix) <= HALVED:
        out[...] = np.linalg.inv(matrix)
        return
    inner, cross, outer = matrix[:half, :half], matrix[:half, half:], matrix[half:, half:]
    top, side, last = out[:half, :half], out[:half, half:], out[half:, half:]
    invert(inner, top)
    solved = top @ cross
    outer -= cross.T @ solved
    invert(outer, last)
    side[...] = solved @ last
    np.negative(side, out=side)
    top -= side @ solved.T
    out[half:, :half] = side.T


def scaled(layer: Contraction, host: Host, scales: Mapping[str, Array]) -> tuple[Array, Array]:
    """Its weight (groups, outputs, taps x inputs) times what an error of each output counts, and that by itself."""
    matrix = layer.flat_matrix(host)
    scale = scales.get(layer.op.name, np.ones(matrix.shape[0] * matrix.shape[1])).reshape(matrix.shape[:2])
    return matrix * scale[:, :, None], scale


def scales(graph: Graph, host: Host) -> dict[str, Array]:
    """By op name, what an error of each output counts: |gamma / sigma| of a BatchNorm right behind it."""
    out = {}
    for op in graph.ops:
        x = op.inputs[0] if op.kind == "batch_norm" else None
        maker = graph.maker(x) if x is not None else None
        if x is not None and maker is not None and (maker.kind == "conv" or len(x.dims) == 2):
            out[maker.name] = np.abs(affine(op, host)[0])
    return out
