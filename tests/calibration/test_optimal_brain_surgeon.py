"""Leaving channels out, one after the other, against refitting what is left by plain numpy."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from graphprune.calibration import optimal_brain_surgeon as surgeon
from graphprune.calibration.least_squares import NormalEquations
from graphprune.calibration.optimal_brain_surgeon import Problem, cheapest_first, in_turn

SIZE, OUTPUTS = 7, 5


def problem(name, taps, rng, others=3):
    """A layer that reads SIZE channels of ``taps`` rows each, in no order, and ``others`` rows of something else."""
    count = SIZE * taps + others
    mixing = rng.standard_normal((count, count))
    hessian = mixing @ mixing.T / count + 0.1 * np.eye(count)
    weight = rng.standard_normal((count, OUTPUTS))
    blocks = rng.permutation(count)[: SIZE * taps].reshape(SIZE, taps)
    layer = SimpleNamespace(op=SimpleNamespace(name=name))
    worth = 1 / np.trace(weight.T @ hessian @ weight)
    return hessian, Problem(layer, 0, weight, np.linalg.inv(hessian), rng.permutation(SIZE), blocks, worth)


def refitted(hessian, one, gone):
    """The weight of the least error without those channels, and that error."""
    left = np.setdiff1d(np.arange(len(hessian)), one.blocks[np.isin(one.channels, gone)])
    weight = np.zeros_like(one.weight)
    weight[left] = np.linalg.solve(hessian[np.ix_(left, left)], hessian[left] @ one.weight)
    off = one.weight - weight
    return weight, np.trace(off.T @ hessian @ off) * one.worth


def part(pair, channels):
    """The same layer as if it read no more of the group: one of several groups of a convolution."""
    hessian, one = pair
    mine = np.isin(one.channels, channels)
    return hessian, replace(one, channels=one.channels[mine], blocks=one.blocks[mine])


@pytest.mark.parametrize("panel", [1, 4, 1000])
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("parts", [[range(SIZE)], [range(3), range(3, SIZE)], [[k] for k in range(SIZE)]])
def test_channels_go_as_refitting_every_choice_says(parts, taps, panel, monkeypatch):
    monkeypatch.setattr(surgeon, "PANEL", panel)
    rng = np.random.default_rng(taps)
    first = [part(problem("a", taps, rng), channels) for channels in parts]
    pairs = [*first, problem("b", 1, rng, others=0)]  # two layers read the group
    order, errors = [], [0.0]
    for _ in range(SIZE):
        tried = {k: sum(refitted(*pair, [*order, k])[1] for pair in pairs) / 2 for k in range(SIZE) if k not in order}
        best = min(tried, key=tried.__getitem__)
        order.append(best)
        errors.append(tried[best])
    found = [one for _, one in pairs]
    chosen, costs = cheapest_first(found, SIZE, lambda each: each.mean(0))
    assert chosen == order
    np.testing.assert_allclose(costs, np.diff(errors), rtol=1e-8)
    np.testing.assert_allclose(in_turn(found, order), np.diff(errors), rtol=1e-8)
    for hessian, one in pairs:
        for count in (0, 1, 4, SIZE):
            np.testing.assert_allclose(
                one.without(order[:count]), refitted(hessian, one, order[:count])[0], rtol=1e-8, atol=1e-10
            )


def test_a_channel_that_is_nowhere_read_costs_nothing():
    _, one = problem("a", 1, np.random.default_rng(0))
    order, costs = cheapest_first([one], SIZE + 1, lambda each: each.mean(0))
    assert order[0] == SIZE and costs[0] == 0
    assert in_turn([one], order)[0] == 0


def test_single_precision_loses_nothing_far_from_zero():
    """Products about a mean: with means a thousand deviations large those about zero would have no digit left."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 6))
    x = (rng.standard_normal((20_000, 6)) @ mixing + 1000).astype(np.float32)
    t = x.astype(np.float64) @ np.arange(12.0).reshape(6, 2) + 7
    sums = NormalEquations(2, 3, 2)
    for part in np.array_split(np.arange(len(x)), 7):
        sums.add(x[part].reshape(-1, 2, 3), t[part])
    gram, mean = sums.inputs.centred()
    weight, bias = sums.solve(np.ones((2, 1, 3)), 1e-9)
    exact = x.astype(np.float64)
    exact -= exact.mean(0)
    for k in range(2):
        own, aim = exact[:, 3 * k : 3 * k + 3], t[:, k : k + 1] - t[:, k : k + 1].mean(0)
        np.testing.assert_allclose(gram[k], own.T @ own / len(x), rtol=1e-4, atol=1e-4)
        best = np.linalg.lstsq(own, aim)[0][:, 0]
        np.testing.assert_allclose(weight[k, 0], best, rtol=1e-4)
        np.testing.assert_allclose(bias[k], t[:, k].mean() - x.mean(0, np.float64)[3 * k : 3 * k + 3] @ best, rtol=1e-4)
    np.testing.assert_allclose(mean.ravel(), x.mean(0, np.float64), rtol=1e-7)
