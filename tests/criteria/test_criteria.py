"""The criteria that data or a loss decides, each against plain numpy and torch."""

from __future__ import annotations

from dataclasses import replace

import nets
import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.calibration.batches import batches
from graphprune.criteria import CRITERIA
from graphprune.criteria.lasso import survival
from graphprune.criteria.magnitude import lamp_of
from graphprune.errors import RecipeError
from graphprune.ir.facts import Scores
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import run

RNG = np.random.default_rng(0)
X = RNG.standard_normal((96, 4))
LABELS = RNG.integers(0, 3, 96)


def mlp():
    return nets.randomise(nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)).double().eval())


def scores(program, options):
    found = run(Recipe.parse(f"group,score{{{options} normalize=none}}"), program).fact(Scores)
    return np.asarray(found.scores["0"])


def plain(data=X):
    return gp.load(mlp(), torch.zeros(2, 4, dtype=torch.float64), data=data)


def with_loss():
    loss = torch.nn.functional.cross_entropy
    return gp.load(mlp(), torch.zeros(2, 4, dtype=torch.float64), data=[X, LABELS], loss=loss)


def hidden(net):
    return np.maximum(X @ net[0].weight.detach().numpy().T + net[0].bias.detach().numpy(), 0)


# ---- activations ---------------------------------------------------------------------------------------


def test_activation_criteria_by_hand():
    net = mlp()
    h, w = hidden(net), net[2].weight.detach().numpy()
    rms, size = np.sqrt((h**2).mean(0)), (w**2).sum(0)
    for by, want in {
        "wifv": h.var(0) * size,
        "ifv": h.var(0),
        "wifn": rms * np.abs(w).mean(0),
        "wanda": (h**2).mean(0) * size,
        "variance": h.var(0) / h.var(0).mean(),
        "aap": h.mean(0),
    }.items():
        np.testing.assert_allclose(scores(plain(), f"by={by}"), want, rtol=1e-10, err_msg=by)


def test_fpgm_is_the_sum_of_distances():
    w = mlp()[0].weight.detach().numpy()
    want = np.array([sum(np.linalg.norm(a - b) for b in w) for a in w])
    np.testing.assert_allclose(scores(plain(), "by=fpgm over=writers"), want, rtol=1e-6)


def test_lamp_gives_the_largest_of_a_group_exactly_one():
    squares = RNG.random(9)
    score = lamp_of(squares)
    assert score[np.argmax(squares)] == 1
    order = np.argsort(squares)
    for k, at in enumerate(order):
        assert score[at] == pytest.approx(squares[at] / squares[order[k:]].sum())
    assert list(np.argsort(score)) == list(order)


# ---- optimal brain surgeon -----------------------------------------------------------------------------


def test_obs_takes_in_turn_what_least_squares_can_best_do_without(monkeypatch):
    """Against refitting from scratch for every candidate at every step."""
    monkeypatch.setattr("graphprune.calibration.optimal_brain_surgeon.DAMP", 1e-12)
    monkeypatch.setattr("graphprune.calibration.least_squares.ROWS", 10**6)
    net = mlp()
    h, y = hidden(net), hidden(net) @ net[2].weight.detach().numpy().T

    def error(kept):
        whole = np.c_[h[:, kept], np.ones(len(h))]
        fit = np.linalg.lstsq(whole, y, rcond=None)[0]
        return np.square(whole @ fit - y).sum(1).mean()

    left, order, rising = list(range(7)), [], []
    while len(left) > 1:
        best = min(left, key=lambda k: error([j for j in left if j != k]))
        left.remove(best)
        order.append(best)
        rising.append(error(left))
    score = scores(plain(), "by=obs")
    assert list(np.argsort(score))[: len(order)] == order
    costs = np.diff([0, *rising]) / y.var(0).sum()
    np.testing.assert_allclose(np.sort(score)[:-1], np.maximum.accumulate(np.maximum(costs, 0)), rtol=1e-4, atol=1e-9)


class Twice(nn.Module):
    """Hidden units that two layers read with the same weights: one reader, twice."""

    def __init__(self):
        super().__init__()
        self.a, self.one, self.two = nn.Linear(4, 7), nn.Linear(7, 3), nn.Linear(7, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.one(h) + self.two(h)


@pytest.mark.parametrize("by", ["obs", "lasso", "wifv", "ifv", "wifn", "wanda", "variance", "aap"])
def test_a_second_reader_counts_as_combine_says(by):
    net = nets.randomise(Twice().double().eval())
    net.two.load_state_dict(net.one.state_dict())
    program = gp.load(net, torch.zeros(2, 4, dtype=torch.float64), data=X)
    alone = gp.load(nn.Sequential(net.a, nn.ReLU(), net.one), torch.zeros(2, 4, dtype=torch.float64), data=X)

    def score(program, combine):
        recipe = Recipe.parse(f"group,score{{by={by} combine={combine} normalize=none}}")
        return next(iter(run(recipe, program).fact(Scores).scores.values()))

    one = score(alone, "mean")
    np.testing.assert_allclose(score(program, "mean"), one, rtol=1e-6)  # no larger for being read twice
    np.testing.assert_allclose(score(program, "max"), one, rtol=1e-6)
    np.testing.assert_allclose(score(program, "sum"), 2 * one, rtol=1e-6)


@pytest.mark.parametrize("name", ["Residual", "Dense", "Grouped", "Flatten", "Depthwise", "Attention"])
@pytest.mark.parametrize("by", [by for by in CRITERIA if not CRITERIA[by].loss])
def test_every_criterion_scores_every_group_finitely(by, name):
    program = nets.program(name)
    example = program.host.example()
    data = [RNG.standard_normal((40, *x.shape[1:])) for x in example]
    program = replace(program, data=batches(data, program.graph.inputs))
    done = run(Recipe.parse(f"group,score{{by={by}}}"), program)
    assert all(np.isfinite(score).all() and len(score) for score in done.fact(Scores).scores.values())


# ---- LASSO ---------------------------------------------------------------------------------------------


def test_the_lasso_lets_go_of_variables_as_scikit_learn_does():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x = RNG.standard_normal((200, 6)) @ RNG.standard_normal((6, 6))
    y = x @ np.array([3, -2, 1, 0.5, 0.1, 0]) + RNG.standard_normal(200)
    inner, target = x.T @ x / 200, x.T @ y / 200
    alphas, paths, _ = linear_model.lasso_path(x, y, eps=1e-4, n_alphas=40, max_iter=100_000, tol=1e-9)
    alive = survival(inner, target)
    for path, share in zip(paths, alive, strict=True):
        first = np.flatnonzero(np.abs(path) > 1e-9)
        want = alphas[first[0]] / alphas[0] if len(first) else 0
        assert share == pytest.approx(want, rel=0.3, abs=2e-4)  # a step of the path apart at most


# ---- gradients -----------------------------------------------------------------------------------------


def gradient():
    net = mlp()
    loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(X)), torch.from_numpy(LABELS))
    loss.backward()
    return net


def test_taylor_is_the_first_order_change_of_the_loss():
    net = gradient()
    writer = np.abs((net[0].weight.grad * net[0].weight).sum(1).detach().numpy())
    program = with_loss()
    program = replace(program, data=batches(X, program.graph.inputs))
    program = replace(program, data=[[X]], loss=replace(program.loss, rest=([LABELS],)))
    np.testing.assert_allclose(scores(program, "by=taylor over=writers"), writer, rtol=1e-9)


def test_hessian_trace_comes_close_to_the_exact_one(monkeypatch):
    monkeypatch.setattr("graphprune.criteria.gradient.PROBES", 400)
    net = mlp()
    program = with_loss()
    program = replace(program, data=[[X]], loss=replace(program.loss, rest=([LABELS],)))
    weight = net[2].weight

    def loss(w):
        out = torch.relu(net[0](torch.from_numpy(X))) @ w.T + net[2].bias
        return torch.nn.functional.cross_entropy(out, torch.from_numpy(LABELS))

    exact = torch.autograd.functional.hessian(loss, weight).reshape(21, 21).diagonal().reshape(3, 7).detach().numpy()
    want = exact.sum(0) / 3 * (weight.detach().numpy() ** 2).sum(0)
    np.testing.assert_allclose(scores(program, "by=hessian over=readers"), want, rtol=0.2)


def test_fisher_is_the_mean_square_over_batches():
    program = with_loss()
    assert len(program.data) == 2 and [len(rest[0]) for rest in program.loss.rest] == [64, 32]
    want = np.zeros(7)
    for batch, rest in zip(program.data, program.loss.rest, strict=True):
        net = mlp()
        torch.nn.functional.cross_entropy(net(torch.from_numpy(batch[0])), torch.from_numpy(rest[0])).backward()
        want += (net[0].weight.grad * net[0].weight).sum(1).detach().numpy() ** 2 / 2
    np.testing.assert_allclose(scores(program, "by=fisher over=writers"), want, rtol=1e-9)


def test_without_a_loss_the_alternatives_are_named():
    with pytest.raises(RecipeError, match="takes a loss, and there is none") as error:
        scores(plain(), "by=taylor")
    assert "obs, wifv, wanda" in error.value.hint
