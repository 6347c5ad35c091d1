"""How much a residual branch is worth: what the network loses without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ..calibration.activations import Walk
from ..calibration.batches import some
from ..calibration.outputs import Outputs, compared, distortion, divergence
from ..calibration.processes import gathered, mine, turns
from ..coupling.branches import silence
from ..coupling.maskable import silencers
from ..errors import RecipeError
from ..ir.facts import Group, Groups
from ..ir.host import Array, Host
from ..ir.liveness import dead
from ..ir.program import Program

SAMPLES = 64
"""So many samples are looked at."""


def angular(program: Program, gates: Groups) -> Iterator[tuple[Group, float]]:
    """The angle between the stream before and behind it (Gromov et al. 2024).

    The angle between the stream before a branch and behind it, as a share of 180 degrees, averaged over positions
    (Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers, 2024, section 3.2, who look at the last
    position; FinerCut, Zhang et al. 2024). For a span: before its first branch and behind its last."""
    graph = program.graph
    ops = {op.name: op for op in graph.ops}
    ends = {}
    for group in gates:
        one, other = group.branches[0], group.branches[-1]
        before, value = ops[one.op].inputs[1 - one.operand], ops[other.op].inputs[other.operand]
        assert before is not None and value is not None
        ends[group.name] = before.name, ops[other.op].outputs[0].name, silencers(graph, value)[0]
    names = sorted({name for first, last, _ in ends.values() for name in (first, last)})
    total = dict.fromkeys(ends, 0.0)
    batches = some(program.data, graph.inputs, SAMPLES)

    def made(number: int) -> Iterator[list[Array]]:
        program.progress("angles", number, len(batches))
        seen = program.host.watch(batches[number], names)
        for first, last, axis in ends.values():
            yield [_angles(seen[first], seen[last], axis).mean()]

    for parts in turns(len(batches), made):
        for name, (mean,) in zip(ends, parts, strict=True):
            total[name] += float(mean) / len(batches)
    yield from ((group, total[group.name]) for group in gates)


def _angles(a: Array, b: Array, axis: int) -> Array:
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = np.sqrt(np.square(a).sum(axis) * np.square(b).sum(axis))
    cosine = np.where(size > 0, (a * b).sum(axis) / np.where(size > 0, size, 1), 1.0)
    angles: Array = np.arccos(np.clip(cosine, -1, 1)) / np.pi
    return angles


def output(program: Program, gates: Groups) -> Iterator[tuple[Group, float]]:
    """The mean squared change of the outputs without it.

    The mean squared change of the outputs without the branch, as a share of their variance (FinerCut, Zhang et al.
    2024, section 3.2, with the norm; the unit of `mask{allocate=rd}`)."""
    return _measured(program, gates, distortion)


def kl(program: Program, gates: Groups) -> Iterator[tuple[Group, float]]:
    """The KL divergence of the outputs without it, where they are logits.

    The KL divergence of the outputs' softmax without the branch from that with it, for outputs that are logits
    along their last axis (FinerCut, Zhang et al. 2024, section 3.2)."""
    return _measured(program, gates, divergence)


def loss(program: Program, gates: Groups) -> Iterator[tuple[Group, float]]:
    """What a loss rises by without it (torch).

    What the loss rises by without the branch (Shortened LLaMA, Kim et al. 2024, section 3.2, who take the
    perplexity of a language model). Torch host only."""
    if program.loss is None or not program.host.trainable:
        raise RecipeError(
            "`score{branches=loss}` needs a loss",
            "gp.load(module, example, data=(x, labels), loss=...) in Python; or take output or kl, which need none",
        )
    whole = _loss(program, program.host)
    for number, group in enumerate(gates):
        program.progress("losses without branches", number, len(gates))
        yield group, _loss(program, without(program, group)) - whole


METHODS: Mapping[str, Callable[[Program, Groups], Iterator[tuple[Group, float]]]] = {
    "output": output,
    "kl": kl,
    "angular": angular,
    "loss": loss,
}


def worth(program: Program, gates: Groups, by: str) -> dict[str, Array]:
    """One number for every group of branches: higher is more worth keeping. Raises RecipeError without data."""
    if not program.data:
        raise RecipeError(
            f"`score{{branches={by}}}` needs calibration data", "give --data FILE, or gp.load(..., data=...)"
        )
    found = {group.name: np.array([value]) for group, value in METHODS[by](program, gates)}
    return {group.name: found[group.name] for group in gates}


def without(program: Program, group: Group) -> Host:
    """A copy of the model in which the branches of a group add nothing."""
    host = program.host.copy()
    silence(program.graph, host, group.branches)
    return host


def _measured(
    program: Program, gates: Groups, distance: Callable[[Outputs, Outputs], float]
) -> Iterator[tuple[Group, float]]:
    """The distance of the outputs without each group; what comes before it is computed once for all."""
    graph = program.graph
    batches = some(program.data, graph.inputs, SAMPLES)
    place = {op.name: k for k, op in enumerate(graph.ops)}
    first = {group.name: min(place[name] for name in dead(graph, group.branches)) for group in gates}
    names = compared(graph)
    own = mine(batches)
    with Walk(program.host, graph, own) as walk:
        whole = gathered([program.host.watch(batch, names) for batch in own], len(batches))
        for number, group in enumerate(sorted(gates, key=lambda group: first[group.name])):
            program.progress("outputs without branches", number, len(gates))
            known, host = walk.live(first[group.name]), without(program, group)
            seen = [host.watch(batch, names, live) for batch, live in zip(own, known, strict=True)]
            yield group, distance(whole, gathered(seen, len(batches)))


def _loss(program: Program, host: Host) -> float:
    """The mean loss over the calibration data, a batch weighing as much as it has samples."""
    import torch

    assert program.loss is not None
    total, count = 0.0, 0
    for batch, rest in zip(program.data, program.loss.rest, strict=True):
        args, kwargs = host.call_arguments(batch)
        with torch.no_grad():
            made = host.model(*args, **kwargs)
            labels = [torch.from_numpy(np.ascontiguousarray(array)) for array in rest]
            total += float(program.loss.function(made, *labels)) * len(batch[0])
        count += len(batch[0])
    return total / count
