"""What calibration data says of the inputs of layers, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.calibration.curvature import DAMP, covariances, curvature
from graphprune.coupling.contractions import contractions
from tests import nets


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
    sums = covariances([*found.values()], program.host, program.data, 0)
    a, b, c = (sums[found[f"{name}.weight"].op.name] for name in "abc")
    assert a is b and a is not c


def test_a_reading_is_of_the_inputs_as_they_are(program):
    found = contractions(program.graph, own=True)
    sums = covariances(found, program.host, program.data, 0)
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
