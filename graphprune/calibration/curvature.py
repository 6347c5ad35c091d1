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
from .least_squares import Covariance, draw, rows_wanted
from .processes import count, rank, sent, turns

DAMP = 0.01
"""Ridge of a layer's H, in mean variances of its inputs."""


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


def covariances(
    found: Sequence[Contraction],
    host: Host,
    batches: Sequence[Batch],
    seed: int,
    told: Callable[[int], None] = lambda batches: None,
) -> dict[str, Covariance]:
    """By op name, those of the inputs of layers: one pass over the data. Layers of one window share theirs. ``told``:
    called with how many batches are done."""
    windows: dict[tuple[object, ...], list[Contraction]] = {}
    for layer in found:
        windows.setdefault(layer.window, []).append(layer)
    first = [layers[0] for layers in windows.values()]
    sums = [Covariance(layer.groups, layer.flat_matrix(host).shape[2]) for layer in first]
    names = sorted({layer.value.name for layer in first})

    def made(number: int) -> Iterator[tuple[Array, ...]]:
        told(number)
        seen = host.watch(batches[number], names)
        for place, (layer, own) in enumerate(zip(first, sums, strict=True)):
            x = seen[layer.value.name]
            rng = np.random.default_rng([seed, number, zlib.crc32(layer.op.name.encode())])
            at = draw(rng, layer.positions(x), -(-rows_wanted(own.size) // len(batches)))
            for block in own.blocks(layer.rows(x, at)):
                rows, square, total = own.products(block)
                yield np.array(place), np.array(rows), square, total

    if count() > 1:  # rows are taken about the means of the first batch
        begun = [*made(0)] if rank() == 0 else []
        for own, (about,) in zip(sums, sent([[own.about] for own in sums] if begun else [], 0), strict=True):
            own.about = about
    for parts in turns(len(batches), made):
        for place, rows, square, total in parts:
            sums[int(place)].put(int(rows), square, total)
    return {layer.op.name: own for layers, own in zip(windows.values(), sums, strict=True) for layer in layers}


def curvature(found: Sequence[Contraction], graph: Graph, host: Host, sums: dict[str, Covariance]) -> Curvature:
    """Of the layers ``found``. ``sums`` is emptied on the way: a covariance and its inverse are large."""
    weigh, made = scales(graph, host), dict[str, Reading]()
    shared: dict[int, list[Contraction]] = {}
    for layer in found:
        shared.setdefault(id(sums[layer.op.name]), []).append(layer)
    for layers in shared.values():
        own = [sums.pop(layer.op.name) for layer in layers][-1]
        gram, mean = own.centred()
        inverse = np.stack([np.linalg.inv(_damped(part)) for part in gram])
        for layer in layers:
            weight, scale = scaled(layer, host, weigh)
            energy = float(np.sum((weight @ gram) * weight))
            made[layer.op.name] = Reading(layer, weight, scale, mean, inverse, 1 / (energy or 1.0))
    return Curvature({layer.op.name: made[layer.op.name] for layer in found})


def scaled(layer: Contraction, host: Host, scales: Mapping[str, Array]) -> tuple[Array, Array]:
    """Its weight (groups, outputs, taps x inputs) times what an error of each output counts, and that by itself."""
    matrix = layer.flat_matrix(host)
    scale = scales.get(layer.op.name, np.ones(matrix.shape[0] * matrix.shape[1])).reshape(matrix.shape[:2])
    return matrix * scale[:, :, None], scale


def _damped(gram: Array) -> Array:
    size = len(gram)
    damped: Array = gram + (DAMP * np.trace(gram) / size or 1.0) * np.eye(size)
    return damped


def scales(graph: Graph, host: Host) -> dict[str, Array]:
    """By op name, what an error of each output counts: |gamma / sigma| of a BatchNorm right behind it."""
    out = {}
    for op in graph.ops:
        x = op.inputs[0] if op.kind == "batch_norm" else None
        maker = graph.maker(x) if x is not None else None
        if x is not None and maker is not None and (maker.kind == "conv" or len(x.dims) == 2):
            out[maker.name] = np.abs(affine(op, host)[0])
    return out
