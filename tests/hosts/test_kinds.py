"""What kinds of modules promise beside the law and the oracle: draws, complex weights, sizes that depend on data."""

from __future__ import annotations

import kinds
import nets
import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.coupling.groups import find_groups
from graphprune.errors import RecipeError
from graphprune.ir.facts import Groups, Scores

DRAWN = "random numbers are drawn for every position of it"
HALF = "group,score,mask{channels=0.5x},propagate"


class Drawn(kinds.Around):
    """Numbers that are drawn for all channels alike; where every channel has its own, it stays."""

    def __init__(self) -> None:
        super().__init__()
        self.noisy, self.other = nn.Linear(4, 5), nn.Linear(4, 5)

    def inside(self, h, x):
        h = h * torch.bernoulli(torch.full((5, 1), 0.5)) + torch.rand(5, 1)
        h = h[:, torch.randperm(5)] * h.new_empty(h.shape[0], 1, 1).bernoulli_(0.5)
        noisy, other = self.noisy(x), self.other(x)
        kept = (noisy * torch.rand_like(noisy)).mean(-1, keepdim=True)
        return h + kept + (other + torch.randn(5, 5)).mean(-1, keepdim=True)


def test_draws_that_channels_share_leave_them_open_and_both_models_draw_the_same():
    program = gp.load(nets.randomise(Drawn()).eval(), torch.randn(2, 5, 4))
    found = gp.run("group", program).fact(Groups)
    assert {group.name: group.size for group in found} == {"enter": 6}
    reasons = {dim.name: dim.reason for dim in found.frozen}
    assert reasons["noisy"] == f"rand_like: {DRAWN}" and reasons["other"] == f"randn: {DRAWN}"
    pruned = gp.run(HALF, program)
    assert len(pruned.model.enter.weight) == 3
    assert gp.verify(pruned)[0].error <= 1e-12


class Attending(nn.Module):
    """Attention that drops a share of its weights, in training or not."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.enter, self.leave = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.enter(x).chunk(3, -1)
        return self.leave(nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=self.share))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_weights_of_attention_that_are_dropped_are_the_same_in_both_models(share):
    x = torch.randn(2, 5, 4)
    program = gp.load(nets.randomise(Attending(share)).eval(), x)
    (again,), (once,) = program.host.run([x.numpy()]), program.host.run([x.numpy()])
    assert (again == once).all() and (program.model(x).detach().numpy() == once).all() == (share == 0)
    pruned = gp.run(HALF, program)
    assert gp.verify(pruned)[0].error <= 1e-12


def test_what_is_made_without_a_dtype_follows_the_proof():
    """`torch.zeros(n)` is float32 in a float32 network, and float64 in the one that the proof runs."""

    class Made(kinds.Around):
        def inside(self, h, x):
            return torch.zeros(2, 5, 6).index_add(1, torch.tensor([0, 2, 2, 1, 4]), h)

    pruned = gp.run(HALF, gp.load(nets.randomise(Made()).eval(), torch.randn(2, 5, 4)))
    assert pruned.model(torch.randn(2, 5, 4)).dtype == torch.float32
    assert gp.verify(pruned)[0].error <= 1e-12


class Spectral(nn.Module):
    """Three channels of complex weights: imaginary, real, and small."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[4j], [3], [0.1 + 0.1j]], dtype=torch.cfloat).expand(3, 2).clone())
        self.leave = nn.Linear(3, 1)
        nn.init.constant_(self.leave.weight, 1.0)

    def forward(self, x):
        return self.leave((torch.fft.fft(x, dim=1) @ self.weight.T).abs())


def test_complex_weights_count_with_both_their_parts():
    x = torch.randn(2, 4, 2)
    program = gp.load(Spectral().eval(), x, data=(x, torch.zeros(2, 4, 1)), loss=torch.nn.functional.mse_loss)
    for by, times in (("l1", 2), ("l2", 2**0.5)):
        (scores,) = gp.run(f"group,score{{by={by} over=writers normalize=none}}", program).fact(Scores).scores.values()
        size = np.array([4, 3, 0.02**0.5])
        np.testing.assert_allclose(scores, size * times, rtol=1e-6)
    (scores,) = gp.run("group,score{by=taylor over=writers}", program).fact(Scores).scores.values()
    assert (scores > 0).all()
    with pytest.raises(RecipeError, match="hessian: `weight` has complex numbers"):
        gp.run("group,score{by=hessian}", program)
    pruned = gp.run("group,score,mask{channels=0.67x},propagate", program)
    assert torch.equal(pruned.model.weight, Spectral().weight[:2]) and gp.verify(pruned)[0].error <= 1e-12


def test_sizes_that_depend_on_data_stay_symbols():
    program = nets.program("Masked")
    sizes = {value.name: value.shape for value in program.graph.values()}
    assert [name for name, shape in sizes.items() if shape and str(shape[0]).startswith("u")]
    assert gp.run(HALF, program).host.shapes()["argwhere"] == sizes["argwhere"]


def test_a_mask_that_tells_channels_apart_freezes_them():
    class Picky(kinds.Around):
        def inside(self, h, x):
            return h.masked_scatter(h > 0, x.flatten()) + h[:, :1] * 0

    graph = gp.load(nets.randomise(Picky()).eval(), torch.randn(2, 5, 4)).graph
    reasons = {dim.name: dim.reason for dim in find_groups(graph).frozen}
    assert reasons["enter"] == "masked_scatter (masked_scatter) tells its positions apart"
