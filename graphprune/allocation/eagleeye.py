"""Candidate search: sample shares, recalibrate, rank by outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..axes.index import coordinates
from ..compensation.statistics import recalibrate
from ..ir.facts import Keep
from ..ir.host import Host
from .choice import Counts
from .problem import Allocation, best

CANDIDATES = 16
NEAR = 0.005  # candidates are within this share of the budget
TRIES = 20  # draws per candidate


def eagleeye(problem: Allocation) -> Counts:
    """The best of random shares, BatchNorms recalibrated (EagleEye, Li et al. 2020).

    Random shares per group that come within 0.5% of the budget (or as near
    as there are channels to), the BatchNorms of each candidate recalibrated, the best kept. Half of the
    data recalibrates, the other half ranks: by the squared distance of the outputs to the original's, as
    there need be no labels [derived: the paper ranks by accuracy]. Without BatchNorms it ranks the
    candidates as they are."""
    problem.check()
    program, rng = problem.program, np.random.default_rng(problem.program.seed)
    half = max(len(program.data) // 2, 1)
    held = program.data[half:] or program.data
    names = [value.name for value in program.graph.outputs if "float" in value.dtype]
    whole = [program.host.watch(batch, names) for batch in held]
    found: list[tuple[float, Counts]] = []
    for number in range(CANDIDATES):
        program.progress("candidates", number, CANDIDATES)
        counts = _sample(problem, rng)
        host = _masked(problem, counts)
        fitted, _ = recalibrate(replace(program, host=host, data=program.data[:half]), Keep({}))
        host = fitted.apply(replace(program, host=host)).host
        seen = [host.watch(batch, names) for batch in held]
        error = sum(float(np.square(a[n] - b[n]).sum()) for a, b in zip(whole, seen, strict=True) for n in names)
        found.append((error, counts))
    return min(found, key=lambda pair: pair[0])[1]


def _sample(problem: Allocation, rng: np.random.Generator) -> Counts:
    """Shares drawn at random, then scaled together until the cost comes near the budget from below; the
    nearest of some draws where none comes as near as ``NEAR`` (few channels, a coarse grain)."""
    nearest: tuple[float, Counts] = (-1.0, {})
    for _ in range(TRIES):
        drawn = {group.name: rng.uniform(0.3, 1.0) for group in problem.groups}
        low, high = 0.0, 4.0
        for _ in range(20):
            scale = (low + high) / 2
            counts = {g.name: problem.survivors(g, scale * drawn[g.name] * g.size) for g in problem.groups}
            low, high = (scale, high) if problem.price(counts) <= problem.budget else (low, scale)
        counts = {g.name: problem.survivors(g, low * drawn[g.name] * g.size) for g in problem.groups}
        price = problem.price(counts)
        nearest = max(nearest, (price, counts), key=lambda pair: pair[0])
        if nearest[0] >= (1 - NEAR) * problem.budget:
            break
    return nearest[1]


def _masked(problem: Allocation, counts: Counts) -> Host:
    host = problem.program.host.copy()
    for group in problem.groups:
        kept = best(problem.scores[group], counts[group.name])
        for member in group.members:
            if member.zeroed and len(kept) < group.size:
                at = coordinates(member.dim, group.dim)
                host.zero(member.parameter, member.axis, np.flatnonzero((at >= 0) & ~np.isin(at, kept)))
    return host
