"""BatchNorm statistics after a cut: recalibration, and re-normalisation to the original moments."""

from __future__ import annotations

import numpy as np

from ..calibration.activations import Walk
from ..calibration.moments import RunningMoments
from ..coupling.groups import everything
from ..ir.facts import Keep
from ..ir.graph import Graph, Op, Value
from ..ir.host import Array
from ..ir.program import Program
from ..pipeline.correction import Correct
from ..pipeline.edits import original

SMALL = 1e-3
"""A channel whose deviation fell under this share of the original is not stretched back."""


def recalibrate(program: Program, keep: Keep) -> tuple[Correct, str]:
    """Statistics of BatchNorms measured anew (EagleEye, Li et al. 2020).

    Running mean and variance of every BatchNorm as they are in the pruned network, each measured with
    those before it already set: what forward passes in training mode converge to, in one pass and exactly
    (EagleEye, Li et al. 2020; REFLOW, Saikumar and Varghese 2024). No promise: with statistics that were never
    trained, or little data, the outputs can be further from the original's than after the cut alone."""
    host, graph = program.host.copy(), program.graph
    weights: dict[str, Array] = {}
    with Walk(host, graph, program.data) as walk:
        for position, op in enumerate(graph.ops):
            known = _running(op, graph)
            if not known or (x := op.inputs[0]) is None:
                continue
            for value, new in zip(known, _moments(walk, position, x), strict=True):
                weights[value.name] = new.astype(host.parameter(value.name).dtype)
                host.set_parameter(value.name, weights[value.name])
    return Correct(weights), ""


def renormalise(program: Program, keep: Keep) -> tuple[Correct, str]:
    """Statistics of BatchNorms as they were in the original (REPAIR, 2023).

    y = sigma_d (x - mu_p) / sigma_p + mu_d, d the dense and p the pruned network, of what every
    BatchNorm is given (REFLOW; Jordan et al., REPAIR, 2023), written into its running statistics, so that
    nothing is added to the graph. Where sigma_p is all but gone the channel keeps its scale. No promise, see
    recalibrate."""
    source = original(program)
    whole = source.lift()
    index = keep.index(everything(whole))
    place = {op.name: k for k, op in enumerate(whole.ops)}
    host, graph = program.host.copy(), program.graph
    weights: dict[str, Array] = {}
    with Walk(host, graph, program.data) as mine, Walk(source, whole, program.data, edited=False) as theirs:
        for position, op in enumerate(graph.ops):
            known = _running(op, graph)
            if not known or op.name not in place:
                continue
            x, dense = op.inputs[0], whole.ops[place[op.name]].inputs[0]
            if x is None or dense is None:
                continue
            kept = index(dense.dims[1])
            mean_d, variance_d = (each[kept] for each in _moments(theirs, place[op.name], dense))
            mean_p, variance_p = _moments(mine, position, x)
            mean, variance = (host.parameter(v.name).astype(np.float64) for v in known)
            small = variance_p <= SMALL**2 * variance_d
            scale = np.where(small, 1.0, np.sqrt(variance_p / np.where(variance_d > 0, variance_d, 1)))
            scale = np.where(scale > 0, scale, 1.0)
            # (sigma_d (x - mu_p) / sigma_p + mu_d - m) / s  =  (x - mu_p + (mu_d - m) scale) / (s scale)
            eps = op.attrs["eps"]
            new = mean_p - (mean_d - mean) * scale, (variance + eps) * scale**2 - eps
            for value, array in zip(known, new, strict=True):
                weights[value.name] = array.astype(host.parameter(value.name).dtype)
                host.set_parameter(value.name, weights[value.name])
    return Correct(weights), ""


def _running(op: Op, graph: Graph) -> list[Value]:
    """A BatchNorm's running mean and variance, if they are stored."""
    if op.kind != "batch_norm":
        return []
    found = [v for v in op.inputs[3:5] if v is not None and v.name in graph.parameters]
    return found if len(found) == 2 else []


def _moments(walk: Walk, position: int, value: Value) -> tuple[Array, Array]:
    """Mean and variance per channel (axis 1) over all batches, float64."""
    running = RunningMoments(1)
    for seen in walk.at(position, [value.name]):
        running.add(seen[value.name])
    found = running.done()
    return found.mean, found.variance
