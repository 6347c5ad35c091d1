"""Small steps, each with training after it, and more of a layer the less it does to what it is given (Pan et al.,
Adapt-Pruner: Adaptive Structural Pruning for Efficient Small Language Model Training, 2025, sections 3.1 to 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import RecipeError
from ..ir.facts import Group, Groups, Keep, Scores
from ..ir.graph import Graph
from ..ir.liveness import dead
from ..ir.program import Program
from ..pipeline.recipe import Recipe
from ..pipeline.run import run
from .schedule import linear

Train = Callable[[Program], object]


def small_steps(
    program: Program,
    train: Train,
    *,
    keep: float = 0.5,
    steps: int = 10,
    amplitude: float = 0.5,
    group: str = "group",
    score: str = "score",
) -> Program:
    """``keep`` of the channels, reached in ``steps`` cuts of as many channels each; after each, ``train(program)``
    trains ``program.model`` as long as the caller likes.

    At each cut a group loses the share s_i = s (1 - ``amplitude`` I_i), s the share that all lose together and I_i how
    far the branch that it lies in turns what it is given: the angle between stream and stream behind it, less the mean
    over all channels, the largest at one. Groups outside of branches lose s. Within a group the lowest of ``score`` go.
    ``program`` has data, for the angles. Raises ModelError where there is no branch.

    [derived] There a layer is a decoder layer, its distance a cosine, and s_i = s - A I_i; here it is every residual
    branch of any network, the angle, and an amplitude in shares of s, which means the same for any number of steps.
    """
    if not 0 <= amplitude <= 1:
        raise RecipeError(f"small_steps: amplitude={amplitude} is not a share", "from 0, all alike, to 1")
    before, left = 1.0, dict[str, float]()
    for share in linear(steps, keep):
        known = run(Recipe.parse(f"{group},{score}"), program)
        groups, scores = known.fact(Groups), known.fact(Scores).scores
        turns = _turns(program, groups, group)
        for own in groups:
            left[own.name] = left.get(own.name, own.size) * (
                1 - (1 - share / before) * (1 - amplitude * turns[own.name])
            )
        kept = {own.name: _best(scores[own.name], left[own.name]) for own in groups}
        program, before = run(Recipe.parse("propagate"), known.learn(Keep(kept))), share
        train(program)
    return program


def _best(scores: np.ndarray, count: float) -> np.ndarray:
    order = np.argsort(-scores, kind="stable")[: max(round(count), 1)]
    return np.sort(order)


def _turns(program: Program, groups: Groups, group: str) -> dict[str, float]:
    """Per group, between -1 and 1: how far its branch turns the stream, beside the others."""
    known = run(Recipe.parse(f"{group},branches{{alone=true}},score{{branches=angular}}"), program)
    angles = known.fact(Scores).scores
    graph = program.graph
    inside = {gate.name: set(dead(graph, gate.branches)) for gate in known.fact(Groups)}
    found = dict[str, float]()
    for own in groups:
        where = [name for name, ops in inside.items() if _readers(own, graph) <= ops]
        if where:
            inner = min(where, key=lambda name: len(inside[name]))
            found[own.name] = float(angles[inner][0])
    sizes = np.array([own.size for own in groups if own.name in found], dtype=np.float64)
    if not sizes.size:
        return {own.name: 0.0 for own in groups}
    mean = float(np.average(list(found.values()), weights=sizes))
    most = max(max(abs(angle - mean) for angle in found.values()), 1e-12)
    return {own.name: (found[own.name] - mean) / most if own.name in found else 0.0 for own in groups}


def _readers(group: Group, graph: Graph) -> set[str]:
    """The ops that have a parameter of the group."""
    names = {member.parameter for member in group.members}
    return {op.name for op in graph.ops for value in op.inputs if value is not None and value.name in names}
