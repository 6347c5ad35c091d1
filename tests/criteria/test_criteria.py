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
from graphprune.ir.facts import Keep, Scores
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
        "active": (h > 0).mean(0),
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


def lamp_counts(squares, kept):
    """The authors' way: every score by sorting and a running sum, one threshold over all, how many are above it."""
    scores = []
    for own in squares:
        rising = np.sort(own)
        scores.append(rising / (own.sum() - np.concatenate([[0], np.cumsum(rising)[:-1]])))
    threshold = np.sort(np.concatenate(scores))[::-1][kept - 1]
    return [int((own >= threshold).sum()) for own in scores]


def test_lamp_as_it_is_asked_for_is_lamp():
    """With no other option than its name: the largest of every group is one, and the counts are the authors'."""
    net = torch.nn.Sequential(*(torch.nn.Linear(12, 12, bias=False) for _ in range(4))).double()
    with torch.no_grad():
        for k, layer in enumerate(net):
            layer.weight.mul_(3.0**k)  # layers of very different size, as a normalisation would undo
    program = run(Recipe.parse("group,score{by=lamp over=writers}"), gp.load(net, torch.randn(2, 12).double()))
    assert all(own.max() == pytest.approx(1, rel=1e-12) for own in program.fact(Scores).scores.values())
    done = run(Recipe.parse("mask{channels=0.5x allocate=global floor=0}"), program)
    squares = [net[k].weight.detach().numpy() ** 2 for k in range(3)]
    want = lamp_counts([own.sum(1) for own in squares], 18)
    assert [len(done.fact(Keep).keep[f"{k}"]) for k in range(3)] == want


# ---- optimal brain surgeon -----------------------------------------------------------------------------


def test_obs_takes_in_turn_what_least_squares_can_best_do_without(monkeypatch):
    """Against refitting from scratch for every candidate at every step."""
    monkeypatch.setattr("graphprune.calibration.curvature.DAMP", 1e-12)
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


@pytest.mark.parametrize("by", ["obs", "lasso", "wifv", "ifv", "wifn", "wanda", "variance", "aap", "active"])
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
    monkeypatch.setattr("graphprune.criteria.gradient.PROBES", (400, 400))
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


def test_snip_is_the_sum_of_sensitivities():
    net, program = gradient(), with_loss()
    want = (net[0].weight.grad * net[0].weight).abs().sum(1).detach().numpy()
    np.testing.assert_allclose(scores(program, "by=snip over=writers"), want, rtol=1e-9)


def test_grasp_is_what_the_gradient_loses():
    """Half of the derivative of |g|^2 along a neuron's incoming weights, by finite differences."""
    program = with_loss()

    def squared(k, factor):
        net = mlp()
        with torch.no_grad():
            net[0].weight[k] *= factor
        loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(X)), torch.from_numpy(LABELS))
        return float(torch.autograd.grad(loss, net[0].weight)[0].square().sum())

    want = [(squared(k, 1 + 1e-6) - squared(k, 1 - 1e-6)) / 4e-6 for k in range(7)]
    np.testing.assert_allclose(scores(program, "by=grasp over=writers"), want, rtol=1e-5, atol=1e-9)


def test_synflow_is_what_flows_through_a_channel(tmp_path):
    net = mlp()
    first, second = net[0].weight.detach().abs(), net[2].weight.detach().abs()
    want = (first.sum(1) * second.sum(0)).numpy()
    found = scores(gp.load(net, torch.zeros(2, 4, dtype=torch.float64)), "by=synflow over=writers")
    np.testing.assert_allclose(found, 2 * want, rtol=1e-12)  # of two samples
    deep = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 3))
    before = {name: tensor.clone() for name, tensor in deep.state_dict().items()}
    program = gp.load(deep, torch.zeros(2, 4))
    least = run(
        Recipe.parse("group,score{by=synflow normalize=none},mask{channels=0.14x allocate=global floor=0}"), program
    )
    assert [len(own) for own in least.fact(Keep).keep.values()] == [1, 1]  # never an empty layer
    assert all(torch.equal(tensor, before[name]) for name, tensor in deep.state_dict().items())
    program.host.save_onnx(tmp_path / "net.onnx")
    with pytest.raises(RecipeError, match="synflow takes gradients, which only torch models have"):
        run(Recipe.parse("group,score{by=synflow}"), gp.load(tmp_path / "net.onnx"))


def test_taylor_counts_samples_not_batches():
    program, net = with_loss(), gradient()
    assert [len(rest[0]) for rest in program.loss.rest] == [64, 32]
    whole = np.abs((net[0].weight.grad * net[0].weight).sum(1).detach().numpy())
    np.testing.assert_allclose(scores(program, "by=taylor over=writers"), whole, rtol=1e-9)


def samples():
    """(sum g w)^2 of every neuron, a row per sample, by torch.func."""
    net = mlp()
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters, x, label):
        out = torch.func.functional_call(net, parameters, (x[None],))
        return torch.nn.functional.cross_entropy(out, label[None])

    found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(
        parameters, torch.from_numpy(X), torch.from_numpy(LABELS)
    )
    return ((found["0.weight"] * parameters["0.weight"]).sum(2) ** 2).numpy()


def test_fisher_is_the_mean_square_over_samples():
    np.testing.assert_allclose(scores(with_loss(), "by=fisher over=writers"), samples().mean(0), rtol=1e-9)


def test_fisher_of_a_fixed_batch_is_that_of_its_samples():
    loss = torch.nn.functional.cross_entropy
    first = torch.from_numpy(X[:48])
    program = gp.load(mlp(), first, dynamic_shapes=({},), data=(X, LABELS), loss=loss)
    assert program.graph.inputs[0].shape == (48, *X.shape[1:])
    np.testing.assert_allclose(scores(program, "by=fisher over=writers"), samples().mean(0), rtol=1e-9)


def test_the_hessian_is_probed_until_its_error_is_small_and_curves_down_where_it_does(monkeypatch):
    def concave(out, label):
        return -out.square().mean()

    program = with_loss()
    program = replace(program, loss=replace(program.loss, function=concave))
    found = scores(program, "by=hessian over=readers")
    weight = mlp()[2].weight
    hidden = torch.relu(mlp()[0](torch.from_numpy(X))).square().mean(0)
    want = -2 * hidden / 3 * (weight.square()).sum(0)  # each of three outputs is a third of the mean
    want = want.detach().numpy()
    assert np.abs(found - want).max() <= 3 * 0.05 * np.abs(want).max()  # three standard errors
    assert (found < 0).all()
    monkeypatch.setattr("graphprune.criteria.gradient.PROBES", (2, 3))
    monkeypatch.setattr("graphprune.criteria.gradient.ERROR", 0.0)
    assert any(
        "after 3 probes scores are known to" in note
        for note in run(Recipe.parse("group,score{by=hessian}"), program).notes
    )


def test_without_a_loss_the_alternatives_are_named():
    with pytest.raises(RecipeError, match="takes a loss, and there is none") as error:
        scores(plain(), "by=taylor")
    assert "obs, wifv, wanda" in error.value.hint
