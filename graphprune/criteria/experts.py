"""Criteria for experts of a mixture: stun, mone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..axes.dim import find
from ..axes.index import shares
from ..coupling.routes import Route, chosen, experts, routes
from ..ir.facts import Group
from ..ir.graph import Value
from ..ir.host import Array
from .activation import wifv
from .magnitude import l2
from .scoring import ScoresByGroup, Scoring, criterion, folded


@criterion("stun")
def stun(scoring: Scoring) -> ScoresByGroup:
    """Experts by their rows of the router, one of each cluster (STUN, Lee et al. 2024).

    Section 4: experts whose rows of the router lie near each other do the same; they are clustered (agglomerative, by
    the largest distance within), and one of each cluster stays: of the two that stand for what is merged the one nearer
    to the mean of its rows. A score is how late in the merging an expert is left out, so that for every count there is
    one of each cluster. How often experts are chosen together is not looked at. All other groups get their L2 norms."""
    mine, scores = experts(scoring.program.graph), l2(scoring)
    for group in scoring.groups:
        rows = _rows(scoring, group) if group.dim in mine else []
        if rows:
            scores[group.name] = merged_at(np.concatenate(rows, 1))
    return scores


def _rows(scoring: Scoring, group: Group) -> list[Array]:
    """What writes the logits: (experts, inputs). Of an axis of several dims, the mean over the others."""
    found = []
    for member in group.members:
        weight = scoring.program.host.parameter(member.parameter).astype(np.float64)
        if member.role == "writer" and weight.ndim == 2:
            at, index = shares(member.dim)[group.dim]
            rows = np.moveaxis(weight, member.axis, 0)[at]
            total = np.zeros((group.size, rows.shape[1]))
            np.add.at(total, index, rows)
            found.append(total / np.bincount(index, minlength=group.size)[:, None])
    return found


def merged_at(rows: Array) -> Array:
    """For each row the number of the merge, from 1 on, in which another stands for its cluster; as many as there are
    rows for the last."""
    clusters = {k: [k] for k in range(len(rows))}  # by who stands for it
    apart = np.sqrt(np.square(rows[:, None] - rows).sum(-1))
    scores = np.full(len(rows), float(len(rows)))
    for step in range(1, len(rows)):
        names = sorted(clusters)
        a, b = min(
            ((a, b) for k, a in enumerate(names) for b in names[k + 1 :]),
            key=lambda pair: apart[np.ix_(clusters[pair[0]], clusters[pair[1]])].max(),
        )
        both = clusters.pop(a) + clusters.pop(b)
        middle = rows[both].mean(0)
        stays, goes = sorted((a, b), key=lambda one: float(np.square(rows[one] - middle).sum()))
        clusters[stays] = both
        scores[goes] = step
    return scores


@criterion("mone", data=True)
def mone(scoring: Scoring) -> ScoresByGroup:
    """Experts by how often they are chosen and how much what they make varies (MoNE, Zhang et al. 2025).

    Section 3: the number of tokens that an expert is chosen for, times the norm of the standard deviation of its
    output over these. The paper puts the mean of its output in the place of an expert that goes; here its tokens go to
    the next best, as stacked weights have no place for a constant. All other groups get their score of ``wifv``."""
    program, scores = scoring.program, wifv(scoring)
    for route in routes(program.graph):
        made = _spread(scoring, route)
        for group in scoring.groups:
            if (part := shares(route.dim).get(group.dim)) is not None:
                scores[group.name] = folded(made, *part, group.size)
    return scores


def _spread(scoring: Scoring, route: Route) -> Array:
    """Per expert the number of its tokens times the norm of the standard deviation of what it makes of them. Where all
    are computed, they are all of its tokens, and the number is the sum of its shares."""
    graph, host, size = scoring.program.graph, scoring.program.host, int(find(route.dim).size)
    share = chosen(graph, route.dim)
    made = route.made if isinstance(route.made, tuple) else (route.made,)
    names = sorted({value.name for value in (*made, route.ids, share) if value is not None})
    count, used, total, squares = np.zeros(size), np.zeros(size), np.zeros((size, 1)), np.zeros(size)
    for batch in scoring.program.data:
        seen = host.watch(batch, names)
        rows, ids = _rows_of(seen, route, size)
        total = total + _sums(ids, rows, size)
        squares += np.bincount(ids, np.square(rows).sum(1), size)
        count += np.bincount(ids, minlength=size)
        used += _used(seen[share.name], share, size) if share is not None else 0
    number = np.maximum(count, 1)
    variance = (squares - np.square(total).sum(1) / number) / np.maximum(count - 1, 1)
    often = used if share is not None else count
    spread: Array = often * np.sqrt(np.maximum(variance, 0))
    return spread


def _rows_of(seen: Mapping[str, Array], route: Route, size: int) -> tuple[Array, Array]:
    """What experts made, a row each, and the number of the expert that made it."""
    if isinstance(route.made, tuple):
        each = [seen[value.name].astype(np.float64) for value in route.made]
        parts = [rows.reshape(-1, rows.shape[-1]) for rows in each]
        return np.concatenate(parts), np.repeat(np.arange(size), [len(rows) for rows in parts])
    rows = seen[route.made.name].astype(np.float64)
    if route.ids is None:
        rows = np.moveaxis(rows, route.axis, 0).reshape(-1, rows.shape[-1])
        return rows, np.repeat(np.arange(size), len(rows) // size)
    ids = seen[route.ids.name].astype(np.intp).ravel()
    return rows.reshape(len(ids), -1), ids


def _sums(ids: Array, rows: Array, size: int) -> Array:
    total = np.zeros((size, rows.shape[1]))
    np.add.at(total, ids, rows)
    return total


def _used(array: Array, value: Value, size: int) -> Array:
    """How often each is chosen, or the sum of its shares."""
    if value.picks is not None:
        return np.bincount(array.astype(np.intp).ravel(), minlength=size).astype(np.float64)
    total: Array = array.astype(np.float64).reshape(-1, size).sum(0)
    return total
