"""What calibration data says of the inputs of layers, against plain numpy."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.calibration import curvature as module
from graphprune.calibration.curvature import DAMP, curvature, invert, measured, segments, summed
from graphprune.calibration.least_squares import Covariance
from graphprune.coupling.contractions import contractions
from graphprune.hosts.torch import run as torch_run
from graphprune.ir import large
from tests import nets


def covariances(found, program):
    """Of all layers at once."""
    parts = [sums for _, sums in summed(found, program.graph, program.host, program.data, 0)]
    assert len(parts) == 1
    return parts[0]


class Shared(nn.Module):
    """Two layers that read the same rows, a third that reads others of the same value."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.Conv2d(4, 5, 3, padding=1)
        self.c, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.norm(self.a(x)).sum((2, 3)), self.b(x).sum((2, 3)), self.c(x).sum((2, 3))


@pytest.fixture
def program():
    x = np.random.default_rng(0).standard_normal((7, 4, 5, 6)).astype(np.float32)
    return gp.load(nets.randomise(Shared()), torch.from_numpy(x[:2]), data=x)


def test_layers_of_one_window_share_what_is_summed(program):
    found = {layer.weight: layer for layer in contractions(program.graph, own=True)}
    sums = covariances([*found.values()], program)
    a, b, c = (sums[found[f"{name}.weight"].op.name] for name in "abc")
    assert a is b and a is not c


def test_a_reading_is_of_the_inputs_as_they_are(program):
    found = contractions(program.graph, own=True)
    sums = covariances(found, program)
    readings = curvature(found, program.graph, program.host, sums).readings
    assert not sums and list(readings) == [layer.op.name for layer in found]
    gamma, variance = (program.host.parameter(f"norm.{name}") for name in ("weight", "running_var"))
    for layer in found:
        own = readings[layer.op.name]
        rows = np.concatenate([layer.rows(batch[0]) for batch in program.data])[:, 0].astype(np.float64)
        covariance = np.cov(rows.T, bias=True)
        damped = covariance + DAMP * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        np.testing.assert_allclose(own.mean[0], rows.mean(0), atol=1e-6)
        np.testing.assert_allclose(own.inverse[0] @ damped, np.eye(len(damped)), atol=1e-3)
        errors = np.abs(gamma) / np.sqrt(variance + 1e-5) if layer.weight == "a.weight" else np.ones(len(own.scale[0]))
        np.testing.assert_allclose(own.scale[0], errors, rtol=1e-6)
        given = rows @ (layer.flat_matrix(program.host)[0] * errors[:, None]).T
        assert 1 / own.worth == pytest.approx(given.var(0).sum(), rel=1e-4)


class Deep(nn.Module):
    """Four blocks with a shortcut, whose inner widths go."""

    def __init__(self):
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(6, 10) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(10, 6) for _ in range(4))

    def forward(self, x):
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.tanh(up(x)))
        return x


@pytest.fixture
def deep():
    x = np.random.default_rng(1).standard_normal((24, 6)).astype(np.float32)
    return replace(gp.load(nets.randomise(Deep()), torch.from_numpy(x[:4])), data=[[x[k : k + 8]] for k in (0, 8, 16)])


@pytest.mark.parametrize(("most", "parts"), [(1 << 29, 1), (8 * (36 + 100), 4), (1, 8)])
def test_one_segment_after_the_other_finds_what_is_found_at_once(most, parts, deep, monkeypatch):
    """To the last bit, each op run once a batch, and what is large in files."""
    found = contractions(deep.graph, own=True)
    whole = curvature(found, deep.graph, deep.host, covariances(found, deep)).readings
    monkeypatch.setattr(module, "SEGMENT_BYTES", most)
    monkeypatch.setattr(large, "SMALL_BYTES", 1)
    assert [layer for part in segments(found) for layer in part] == found and len(segments(found)) == parts
    told, ran = list[tuple[int, int]](), list[str]()
    run = torch_run._result
    monkeypatch.setattr(
        torch_run, "_result", lambda model, node, *rest: ran.append(node.name) or run(model, node, *rest)
    )
    got = measured(found, deep.graph, deep.host, deep.data, 0, lambda *at: told.append(at)).readings
    assert list(got) == list(whole)
    for name, one in got.items():
        for part in ("weight", "scale", "mean", "inverse"):
            np.testing.assert_array_equal(getattr(one, part), getattr(whole[name], part))
        assert one.worth == whole[name].worth
        assert isinstance(one.inverse.base, np.ndarray) is (parts > 1)  # a view of a map
    batches = len(deep.data)
    assert told == [(k, parts * batches) for k in range(parts * batches)]
    assert max(map(ran.count, ran)) == batches > 1


def at_once(monkeypatch):
    """The most covariances that live at once from now on, in a list of one."""
    alive: weakref.WeakSet[Covariance] = weakref.WeakSet()
    most = [0]
    made = Covariance.__init__

    def counted(self, *sizes):
        made(self, *sizes)
        alive.add(self)
        gc.collect()
        most[0] = max(most[0], len(alive))

    monkeypatch.setattr(Covariance, "__init__", counted)
    return most


RECIPES = {
    "lasso": "group,score{by=lasso},mask{params=0.7x},propagate",
    "rd": "group,score{by=obs},mask{params=0.7x allocate=rd},propagate",
    "factor": "factor{by=data},group,score{ranks=error},mask{params=0.7x},propagate",
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_what_reads_covariances_holds_a_segment_of_them_and_comes_to_the_same(recipe, deep, monkeypatch):
    """To the last bit, with what is made of them in files."""
    known = gp.run(recipe, deep)
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(large, "SMALL_BYTES", 1)
    monkeypatch.setattr(large, "LARGE_BYTES", 0)
    most, files = at_once(monkeypatch), list[int]()
    put = large.Room.put
    monkeypatch.setattr(large.Room, "put", lambda self, array: files.append(array.nbytes) or put(self, array))
    again = gp.run(recipe, deep)
    assert most == [1] and files
    assert again.plan["parameters"] == known.plan["parameters"]
    assert again.graph.text() == known.graph.text()
    for name in known.graph.parameters:
        np.testing.assert_array_equal(again.host.parameter(name), known.host.parameter(name))


def test_a_segment_holds_no_more_than_its_own_covariances(deep, monkeypatch):
    """Sums of all layers at once would be as large as the model."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 8 * (36 + 100))
    most = at_once(monkeypatch)
    found = contractions(deep.graph, own=True)
    measured(found, deep.graph, deep.host, deep.data, 0)
    assert len(found) == 8 and most[0] == 2


@pytest.mark.parametrize("size", [1, 7, 40])
def test_an_inverse_by_halves_is_the_inverse(size, monkeypatch):
    monkeypatch.setattr(module, "HALVED", 3)
    made = np.random.default_rng(size)
    rows = made.standard_normal((2 * size, size))
    matrix = rows.T @ rows + 0.01 * size * np.eye(size)
    wanted, out = np.linalg.inv(matrix), np.full((size, size), np.nan)
    invert(matrix.copy(), out)
    np.testing.assert_allclose(out, wanted, rtol=1e-9, atol=1e-12 * np.abs(wanted).max())
