"""Rotate: residual streams in other coordinates."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ..axes.dim import find
from ..coupling.branches import Residual, residuals
from ..coupling.streams import Stream, multiplied, streams, tied, uncast, untied
from ..errors import RecipeError
from ..ir.document import Entry
from ..ir.host import Array, Host
from ..ir.program import Edit, Parameters, Program

APART = 1e-9
"""How far the product of a rotation and its transpose may be from the identity."""


@dataclass(frozen=True)
class Rotate(Edit):
    """By the name of its first norm, the orthogonal matrix of a stream: (coordinates, new coordinates). ``parts``: the
    streams, likewise, that came in parts before, each with a stream of its own, see ``parted``."""

    kind = "rotate"

    matrices: Mapping[str, Array]
    untie: bool = False
    parts: tuple[str, ...] = ()

    @property
    def opens(self) -> bool:
        return True

    def apply(self, program: Program) -> Program:
        hint = "is it the same model?"
        host = untied(program.host, "rms_norm") if self.untie else program.host.copy()
        known = _by_name(host)
        for name in self.parts:
            if name not in known:
                raise RecipeError(f"the plan parts the stream of `{name}`, no norm of this model's streams", hint)
            if why := stays(known[name]):
                raise RecipeError(f"the plan parts the stream of `{name}`: {why}", hint)
        if self.parts:
            host = parted(host, self.parts)
            known = _by_name(host)
        for name, matrix in self.matrices.items():
            if name not in known:
                raise RecipeError(f"the plan rotates the stream of `{name}`, no norm of this model's streams", hint)
            if why := stays(known[name]):
                raise RecipeError(f"the plan rotates the stream of `{name}`: {why}", hint)
            size = known[name].dim.size
            if matrix.shape != (size, size) or not np.abs(matrix.T @ matrix - np.eye(len(matrix))).max() <= APART:
                raise RecipeError(f"the plan's rotation of `{name}` is no orthogonal matrix of size {size}", hint)
            _rotated(host, known[name], matrix)
        host.own()
        return program.rewrite(host, self)

    def masked(self, program: Program, cut: Parameters) -> Program:
        return self.apply(program)

    def content(self) -> dict[str, Any]:
        parts = {"parts": list(self.parts)} if self.parts else {}
        return {"streams": list(self.matrices), "untie": self.untie, **parts, "weights": dict(self.matrices)}

    @classmethod
    def read(cls, entry: Entry) -> Self:
        parts = entry.table(("streams", "untie", "weights"), ("parts",))
        names = tuple(name.text() for name in parts["streams"].entries())
        arrays = parts["weights"].table(names)
        several = tuple(name.text() for name in parts["parts"].entries()) if "parts" in parts else ()
        return cls({name: arrays[name].array() for name in names}, parts["untie"].flag(), several)


def _by_name(host: Host) -> dict[str, Stream]:
    return {stream.name: stream for stream in streams(host.lift()) if stream.norms}


def parted(host: Host, names: Container[str]) -> Host:
    """A copy in which, behind the first, every residual sum of the streams of these names reads what it adds to through
    a layer of its own, which changes nothing yet: what lies between two sums is a stream then."""
    graph, made = host.lift(), host.copy()
    whole = {find(stream.dim): stream for stream in streams(graph) if stream.norms and stream.name in names}
    runs: dict[str, list[tuple[Residual, str]]] = {}
    for one in residuals(graph)[0]:
        stream = whole.get(find(one.out.dims[-1]))
        read = uncast(one.other, graph).name
        norm = stream and next((norm for norm in stream.norms if uncast(norm.x, graph).name == read), None)
        if stream is not None and norm is not None and (layers := stream.readers[norm.name]):
            runs.setdefault(stream.name, []).append((one, layers[0].weight))
    for name, run in runs.items():
        size = next(int(stream.dim.size) for stream in whole.values() if stream.name == name)
        for one, weight in run[1:]:
            made.insert_linear(one.op, 1 - one.branch.operand, np.eye(size), weight)
    made.shapes()
    return made


def stays(stream: Stream) -> str:
    """Why a stream cannot be rotated, if it cannot."""
    if stream.why:  # what reads it may not have been looked for
        return stream.why
    layer_norm = next((norm for norm in stream.norms if norm.kind == "layer_norm"), None)
    others = next((norm for norm in stream.norms if stream.readers[norm.name] is None), None)
    if any(norm.axis != -1 for norm in stream.norms):
        return f"{stream.norms[0].where} norms another axis than the last"
    if layer_norm is not None:
        return f"{layer_norm.where} is no RMS norm; `rms` before it makes one of it where that is exact"
    if why := tied(stream, "rotate"):
        return why
    if others is not None:
        return f"{others.where} is read by more than linear layers with weights of their own"
    return ""


def _rotated(host: Host, stream: Stream, matrix: Array) -> None:
    """What writes it by the transpose; what reads it, each norm's weight gone into it, by the matrix."""
    multiplied(host, stream, matrix.T)
    for norm in stream.norms:
        stored = host.parameter(norm.weight)
        gamma = stored.astype(np.float64).ravel() + norm.shift
        for layer in stream.readers[norm.name] or ():
            old = host.parameter(layer.weight)
            host.set_parameter(layer.weight, layer.tensor(layer.flat_matrix(host)[0] * gamma @ matrix, old.shape))
        host.set_parameter(norm.weight, np.full_like(stored, 1 - norm.shift))
    for layer in stream.plain:
        old = host.parameter(layer.weight)
        host.set_parameter(layer.weight, layer.tensor(layer.flat_matrix(host)[0] @ matrix, old.shape))
