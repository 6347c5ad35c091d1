"""Compensation is never worse than the cut alone on its calibration data, whatever axis a layer works along."""

from __future__ import annotations

from dataclasses import replace

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graphprune.calibration.batches import batches
from graphprune.compensation import lsq
from graphprune.compensation.no_worse import Distance, errors, no_worse
from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.program import Program
from graphprune.pipeline import verify as proof
from graphprune.pipeline.correction import Correct, addition
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import run

CUT = "group,score{by=l2},mask{channels=0.5x},propagate"


class AlongWidth(nn.Module):
    """Linear layers along the width of an image whose channels are cut."""

    def __init__(self, residual):
        super().__init__()
        self.e, self.a, self.b, self.h = nn.Conv2d(3, 16, 1), nn.Linear(6, 8), nn.Linear(8, 6), nn.Conv2d(16, 3, 1)
        self.residual = residual

    def forward(self, x):
        v = self.e(x)
        w = self.b(F.relu(self.a(v)))
        return self.h(v + w if self.residual else w)


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.t1, self.t2 = nn.Linear(3, 16), nn.Linear(12, 20), nn.Linear(20, 12)
        self.c1, self.c2, self.h = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x):
        v = self.e(x)
        v = v + self.t2(F.gelu(self.t1(v.transpose(1, 2)))).transpose(1, 2)
        return self.h(v + self.c2(F.gelu(self.c1(v))))


OTHER_AXES = {
    "width": (lambda: AlongWidth(False), (3, 4, 6)),
    "width, residual": (lambda: AlongWidth(True), (3, 4, 6)),
    "mixer": (Mixer, (12, 3)),
}


def load(module, shape, samples):
    host = TorchHost.export(module.double().eval(), (torch.zeros(2, *shape, dtype=torch.float64),))
    program = Program(host=host, source=host)
    return replace(
        program, data=batches(np.random.default_rng(1).standard_normal((samples, *shape)), program.graph.inputs)
    )


def do(recipe, program):
    return run(Recipe.parse(recipe), program)


def error(program, original):
    pairs = [(program.host.run(batch)[0], original.host.run(batch)[0]) for batch in original.data]
    return np.mean([np.square(ours - theirs).mean() for ours, theirs in pairs])


@pytest.mark.parametrize("name", OTHER_AXES)
def test_rows_are_paired_with_what_survives_of_every_other_axis(name):
    make, shape = OTHER_AXES[name]
    torch.manual_seed(0)
    program = load(make(), shape, 40)
    cut = do(CUT, program)
    done = do("compensate", cut)
    assert error(done, program) < 0.1 * error(cut, program)
    assert error(do("compensate{by=mean}", cut), program) <= error(cut, program)
    assert all(check.error <= check.tolerance for check in proof.verify(done))


def test_means_are_those_of_what_survives_of_every_other_axis():
    """A linear layer along the width: after the cut the mean of what it gives is what it was there."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.Conv2d(8, 3, 1))
    program = load(module, (3, 4, 6), 40)
    cut = do(CUT, program)
    done = do("compensate{by=mean}", cut)
    kept = cut.plan["parameters"]["4.weight"]["1"]["keep"]
    (out,) = [op.outputs[0].name for op in program.graph.ops if op.inputs[1:] and op.inputs[1].name == "3.weight"]
    means = [
        np.concatenate([one.host.watch(batch, [out])[out] for batch in program.data]) for one in (program, cut, done)
    ]
    want, plain, made = (x.mean((0, 1, 2)) for x in (means[0][:, kept], *means[1:]))
    assert np.abs(plain - want).max() > 1e-2
    np.testing.assert_allclose(made, want, rtol=0, atol=1e-12)


def test_of_a_correction_that_harms_no_more_is_used_than_helps():
    torch.manual_seed(0)
    program = load(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5)), (4,), 40)
    cut = do(CUT, program)
    ops = {op.inputs[1].name: op.name for op in cut.graph.ops if op.inputs[1:]}
    gap = np.mean(
        [
            (theirs - ours).mean(0)
            for b in program.data
            for ours, theirs in [(cut.host.run(b)[0], program.host.run(b)[0])]
        ],
        axis=0,
    )

    def bias(add):
        return Correct(bias={ops["2.weight"]: addition(add, np.arange(5), 5)})

    whole, said = no_worse(cut, bias(gap))
    assert (whole, said) == (bias(gap), "")
    less, said = no_worse(cut, bias(4 * gap))
    assert less == bias(gap) and "0.25 of it is used" in said
    none, said = no_worse(cut, bias(-gap))
    assert not none and "none of it is used" in said
    assert error(none.apply(cut), program) == error(cut, program)
    broken, _ = no_worse(cut, bias(gap * np.nan))
    assert not broken


class BareEnd(nn.Module):
    """The last layer is a bare matrix product, to which a bias is a further op."""

    def __init__(self):
        super().__init__()
        self.a, self.w = nn.Linear(4, 9), nn.Parameter(torch.randn(9, 5))

    def forward(self, x):
        return x.sum(1), F.relu(self.a(x)) @ self.w + 0.0 * x[:, :1], F.relu(self.a(x)) @ self.w


def test_the_errors_that_a_fit_has_seen_on_its_way_are_those_of_its_networks(monkeypatch):
    torch.manual_seed(0)
    program = load(BareEnd(), (4,), 40)
    cut = do(CUT, program)
    seen = []
    monkeypatch.setattr(lsq, "no_worse", lambda program, correction, known: (seen.append(known), (correction, ""))[1])
    done = do("compensate", cut)
    assert done.plan["steps"][-1]["bias"]

    def share(ours):
        pairs = [zip(ours.host.run(batch), program.host.run(batch), strict=True) for batch in program.data]
        sums = np.sum([[(np.square(a - b).sum(), np.square(b).sum()) for a, b in pair] for pair in pairs], 0)
        return np.mean(sums[:, 0] / sums[:, 1])

    assert seen[0].corrected == pytest.approx(share(done), rel=1e-9)
    assert seen[0].corrected < seen[0].alone <= share(cut) * (1 + 1e-9)  # it is run until that is known


def test_the_cut_alone_is_run_no_longer_than_until_it_is_further_away():
    def pairs(*errors):
        for error in errors:
            ran.append(error)
            yield [np.full(4, 2.0)], [np.full(4, 2.0 + error)]

    ran = []
    found = errors(pairs(1.0, 1.0, 1.0), pairs(1.5, 1.5, 0.0))
    assert found.corrected == pytest.approx(1 / 4) and found.alone == pytest.approx(4.5 / 12)
    assert ran == [1.0, 1.0, 1.0, 1.5, 1.5]
    found = errors(pairs(1.0, 1.0), pairs(0.5, 0.5))
    assert (found.corrected, found.alone) == pytest.approx((1 / 4, 1 / 16))


class Products(nn.Module):
    """Channels that an einsum and a weight on the left read, beside a linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)
        self.e, self.w = nn.Parameter(torch.zeros(8, 5)), nn.Parameter(torch.zeros(3, 8))

    def forward(self, x):
        v = F.relu(self.a(x))
        return torch.einsum("ntc,co->nto", v, self.e), self.w @ v.transpose(1, 2), self.b(v)


def test_what_cannot_be_fitted_is_named():
    program = load(nets.randomise(Products()), (6, 4), 20)
    for by in ("lsq", "mean"):
        done = do(f"{CUT},compensate{{by={by}}}", program)
        note = next(note for note in done.notes if "cannot fit" in note)
        assert "einsum (einsum), matmul (matmul)" in note and "linear" not in note
        assert all(check.error <= check.tolerance for check in proof.verify(done))
    plain = do(f"{CUT},compensate", load(Mixer(), (12, 3), 20))
    assert not [note for note in plain.notes if "cannot fit" in note]


# ---- random small networks -------------------------------------------------------------------------------

MOVES = ("conv", "grouped", "depthwise", "norm", "relu", "in place", "assign", "width", "rows", "einsum", "product")


class Random(nn.Module):
    """Moves on images of 8 channels, 4 by 6; each may be added to what was there."""

    def __init__(self, moves, residual):
        super().__init__()
        self.moves, self.residual = moves, residual
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        makes = {
            "conv": lambda: nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 1)),
            "grouped": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2),
            "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
            "norm": lambda: nn.BatchNorm2d(8),
            "width": lambda: nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6)),
            "rows": lambda: nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 4)),
            "einsum": lambda: nn.Linear(8, 8, bias=False),
            "product": lambda: nn.Linear(4, 4, bias=False),
        }
        self.layers = nn.ModuleList(makes[move]() if move in makes else nn.Identity() for move in moves)

    def forward(self, x):
        x = self.first(x)
        for move, layer, residual in zip(self.moves, self.layers, self.residual, strict=True):
            y = self.move(move, layer, x * 1)
            x = x + y if residual else y
        return self.last(x)

    @staticmethod
    def move(move, layer, x):
        if move == "relu":
            return F.relu(x)
        if move == "in place":
            x[:, 2:6].relu_()
            return x
        if move == "assign":
            x[:, :, 1:] = x[:, :, :-1].sigmoid()
            return x
        if move == "rows":
            return layer(x.transpose(2, 3)).transpose(2, 3)
        if move == "einsum":
            return torch.einsum("nchw,dc->ndhw", x, layer.weight)
        if move == "product":
            return layer.weight @ x
        return layer(x)


@settings(max_examples=5, database=None)
@given(
    moves=st.lists(st.sampled_from(MOVES), min_size=2, max_size=5),
    residual=st.lists(st.booleans(), min_size=5, max_size=5),
    seed=st.integers(0, 99),
    share=st.sampled_from((0.4, 0.6)),
)
def test_on_its_calibration_data_compensation_is_never_worse_than_the_cut_alone(moves, residual, seed, share):
    torch.manual_seed(seed)
    program = load(Random(moves, residual[: len(moves)]), (3, 4, 6), 24)
    cut = do(f"group,score{{by=l1}},mask{{channels={share}x}},propagate", program)
    for by in ("lsq", "mean"):
        done = do(f"compensate{{by={by}}}", cut)
        assert error(done, program) <= error(cut, program) * (1 + 1e-9), by
        assert all(check.error <= check.tolerance for check in proof.verify(done)), by


def test_what_is_not_finite_counts_as_zero():
    a, b = np.random.default_rng(0).standard_normal((2, 5, 4))
    shares = []
    for off in (-np.inf, 0.0):
        found = Distance()
        found.add(*([np.where(np.arange(4) > 2, off, one)] for one in (a, b)))
        shares.append(found.share())
    assert shares[0] == shares[1] > 0
