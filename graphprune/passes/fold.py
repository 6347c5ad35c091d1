"""fold: BatchNorm into the convolution or linear layer before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..coupling.affine import affine
from ..ir.graph import Graph, Op, Value
from ..ir.host import Array, Host
from ..ir.program import Program
from ..ops.traits import traits
from ..pipeline.base import Pass


@dataclass(frozen=True)
class Fold(Pass):
    """Fold every BatchNorm into the conv or linear before it, where that is exact."""

    name = "fold"
    rewrites = True

    def run(self, program: Program) -> Program:
        host, graph = program.host.copy(), program.graph
        notes = []
        for op in graph.ops:
            if op.kind != "batch_norm":
                continue
            assert op.inputs[0] is not None
            maker = graph.maker(op.inputs[0])
            reason = _blocked(op, maker, graph)
            if reason or maker is None:
                notes.append(f"{op.where}: not folded, {reason}")
            else:
                _fold(host, maker, op)
        return program.rewrite(host).note(*notes)


def _name(value: Value | None) -> str:
    assert value is not None
    return value.name


def _blocked(norm: Op, maker: Op | None, graph: Graph) -> str | None:
    """Why this BatchNorm cannot be folded into what makes its input, or None."""
    x = norm.inputs[0]
    assert x is not None
    if maker is None or not traits(maker).absorbs:
        return "no conv or linear comes right before it"
    if any(maker.attrs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return f"{maker.where} scales its product or its bias"
    if len(graph.users(x)) > 1 or graph.is_output(x):
        return f"the output of {maker.where} is read elsewhere too"
    weights = [value for value in (*maker.inputs[1:], *norm.inputs[1:]) if value is not None]
    if any(value.name not in graph.parameters for value in weights):
        return "a weight is computed, not stored"
    if any(len(graph.users(value)) > 1 for value in maker.inputs[1:] if value is not None):
        return f"a weight of {maker.where} is shared"
    if len(maker.outputs[0].shape or ()) != 2 and not traits(maker).spatial:
        return "its channels are not the linear layer's outputs"
    if any(len(value.shape or ()) != 1 for value in maker.inputs[2:] if value is not None):
        return "the bias is not one number a channel"
    return None


def _fold(host: Host, maker: Op, norm: Op) -> None:
    """What the BatchNorm makes of what the layer computes, as the layer's own weight and bias, in float64."""
    scale, shift = affine(norm, host)
    name = _name(maker.inputs[1])
    host.set_parameter(name, _scaled(maker, host.parameter(name).astype(np.float64), scale))
    bias = maker.inputs[2] if len(maker.inputs) > 2 else None
    if bias is not None:
        host.set_parameter(bias.name, host.parameter(bias.name).astype(np.float64) * scale + shift)
    else:
        host.add_bias(maker, shift)
    host.remove(norm)


def _scaled(maker: Op, weight: Array, scale: Array) -> Array:
    if maker.kind == "gemm" and not maker.attrs.get("transB"):
        return weight * scale
    if maker.kind != "conv_transpose":
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    groups = maker.attrs["groups"]  # (g i) o ~ with outputs (g o)
    parts = weight.reshape(groups, -1, *weight.shape[1:])
    return (parts * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
