"""The hidden size below RMS norms: its proof notices what is missing, and what cannot be proven stays frozen."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.coupling import relate
from graphprune.coupling.groups import find_groups
from graphprune.errors import ModelError, VerificationError
from graphprune.ir.facts import Groups, Keep
from graphprune.ir.program import Axis, Program


class Stream(nn.Module):
    """Two blocks of nothing but a unit, below norms of a width each."""

    def __init__(self, weight: bool = True) -> None:
        super().__init__()
        self.stem, self.norm, self.last = nn.Linear(5, 9), nn.RMSNorm(9, eps=0.5), nn.RMSNorm(9, 0.2, weight)
        self.up, self.down, self.head = nn.Linear(9, 7), nn.Linear(7, 9), nn.Linear(9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.down(F.silu(self.up(self.norm(x))))
        out: torch.Tensor = self.head(self.last(x))
        return out


class ByHand(Stream):
    """The same with norms that are written out."""

    def __init__(self) -> None:
        super().__init__()
        for name, norm in {"norm": nets.Rms(9, 0.5), "last": nets.Rms(9, 0.2, "shift")}.items():
            setattr(self, name, norm)


MODULE, X = nets.randomise(Stream().double().eval()), torch.randn(4, 5, dtype=torch.float64)
KEEP = {"stem": np.array([7, 0, 3, 4]), "up": np.array([2, 6])}


HAND = nets.randomise(ByHand().double().eval())


def cut(module: nn.Module = MODULE) -> Program:
    known = gp.run("group", gp.load(module, (X,)))
    names = {group.name for group in known.fact(Groups)}
    return gp.run("propagate", known.learn(Keep({name: kept for name, kept in KEEP.items() if name in names})))


def test_n_of_d_kept_is_the_network_whose_writers_are_zero_elsewhere() -> None:
    masked, gone = copy.deepcopy(MODULE), np.setdiff1d(np.arange(9), KEEP["stem"])
    with torch.no_grad():
        for layer in (masked.stem, masked.down):
            layer.weight[gone] = 0
            layer.bias[gone] = 0
        masked.down.weight[:, np.setdiff1d(np.arange(7), KEEP["up"])] = 0
    done = cut()
    assert nets.relative_error(nets.outputs(masked, (X,)), nets.outputs(done.model, (X,))) <= 1e-12
    assert done.host.parameter("norm.weight") == pytest.approx(
        MODULE.norm.weight.detach()[KEEP["stem"]] * (9 / 4) ** 0.5
    )
    eps = [op.attrs["eps"] for op in done.graph.ops if op.kind == "rms_norm"]
    assert eps == pytest.approx([0.5 * 9 / 4, 0.2 * 9 / 4])
    assert all(check.holds for check in gp.verify(done))


@pytest.mark.parametrize("module", [MODULE, HAND], ids=["layer", "written"])
@pytest.mark.parametrize("left_out", ["weight", "eps", "writer"])
def test_the_proof_notices_what_is_left_out(left_out: str, module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    if left_out == "weight":
        monkeypatch.setattr("graphprune.passes.propagate.rescaled", lambda graph, index: {})
    elif left_out == "eps":
        real = relate.literals

        def literals(*args: Any) -> dict[str, Any]:
            return {name: value for name, value in real(*args).items() if name != "eps"}

        monkeypatch.setattr("graphprune.passes.propagate.literals", literals)
        monkeypatch.setattr("graphprune.passes.propagate.raised", lambda graph, index: {})
    done = cut(module)
    if left_out == "writer":
        axis: Axis = {**done.plan.parameters["down.bias"]["0"], "role": "writer"}
        parameters = {**done.plan.parameters, "down.bias": {"0": axis}}
        done = done.planned(replace(done.plan, parameters=parameters))
    with pytest.raises(VerificationError, match="differs from the masked one"):
        gp.verify(done)


def test_no_channel_of_the_stream_is_dead_because_nobody_reads_it() -> None:
    module = copy.deepcopy(MODULE)
    with torch.no_grad():
        module.up.weight[:, 2] = 0
        module.head.weight[:, 2] = 0
    done = gp.run("group,dead,propagate", gp.load(module, (X,)))
    assert done.graph.parameters["stem.weight"].shape[0] == 9  # type: ignore[index]
    assert all(check.holds for check in gp.verify(done))


def test_what_has_no_weight_to_scale_or_is_not_written_by_weights_stays_frozen() -> None:
    reasons = {dim.name: dim.reason for dim in find_groups(gp.load(Stream(weight=False).double(), (X,)).graph).frozen}
    assert "normalises across it" in reasons["stem"]

    class Shared(Stream):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.last.weight.sum()

    reasons = {dim.name: dim.reason for dim in find_groups(gp.load(Shared().double(), (X,)).graph).frozen}
    assert "stem" in reasons


def test_roles_are_what_axes_do_and_writers_are_marked() -> None:
    group = next(g for g in gp.run("group", gp.load(MODULE, (X,))).fact(Groups) if g.name == "stem")
    roles = {str(member): (member.role, member.across) for member in group.members}
    assert roles == {
        **{f"{layer}.{part}[0]": ("writer", True) for layer in ("stem", "down") for part in ("weight", "bias")},
        **{f"{norm}.weight[0]": ("carrier", False) for norm in ("norm", "last")},
        **{f"{layer}.weight[1]": ("reader", False) for layer in ("up", "head")},
    }


def test_the_users_module_is_cut_in_place_eps_and_all() -> None:
    done, module = cut(), copy.deepcopy(MODULE)
    gp.apply(done, module, in_place=True)
    assert module.norm.eps == pytest.approx(0.5 * 9 / 4)
    assert nets.relative_error(nets.outputs(done.model, (X,)), nets.outputs(module, (X,))) <= 1e-12


def test_norms_that_are_written_out_are_cut_as_the_layer_is() -> None:
    done = cut(HAND)
    kept, more = KEEP["stem"], (9 / 4) ** 0.5
    assert done.host.parameter("norm.weight") == pytest.approx(HAND.norm.weight.detach()[kept] * more)
    assert 1 + done.host.parameter("last.weight") == pytest.approx((1 + HAND.last.weight.detach()[kept]) * more)
    assert [op.attrs["plus"] for op in done.graph.ops if "plus" in op.attrs and op.outputs[0].dims] == pytest.approx(
        [0.5 * 9 / 4, 0.2 * 9 / 4, 1]
    )
    assert all(check.holds for check in gp.verify(done))
    module = copy.deepcopy(HAND)
    gp.apply(done, module, in_place=True)
    assert module.norm.variance_epsilon == pytest.approx(0.5 * 9 / 4)
    assert nets.relative_error(nets.outputs(done.model, (X,)), nets.outputs(module, (X,))) <= 1e-12
    rebuilt = gp.rebuild(done, ByHand().double())
    assert nets.relative_error(nets.outputs(done.model, (X,)), nets.outputs(rebuilt, (X,))) <= 1e-12


class Fixed(ByHand):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 0.125) * self.norm.weight
        out: torch.Tensor = self.head(x)
        return out


def test_an_eps_that_is_no_attribute_is_told_of() -> None:
    module = nets.randomise(Fixed().double().eval())
    before, done = copy.deepcopy(module), cut(module)
    assert all(check.holds for check in gp.verify(done))
    with pytest.raises(ModelError, match=r"of 0.125, which the norm of `norm.weight` adds .*, 0.28125 is to become"):
        gp.apply(done, module, in_place=True)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before.parameters(), strict=True))
    with pytest.raises(ModelError, match=r"no attribute that is its eps, 0.125: it is to be 0.28125"):
        gp.rebuild(done, Fixed().double())


def test_an_eps_that_goes_by_the_dtype_is_the_same_in_the_proof() -> None:
    module = copy.deepcopy(MODULE).float()
    module.norm.eps = module.last.eps = None
    done = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(module, (X.float(),)))
    assert len(done.host.parameter("norm.weight")) < 9
    assert all(check.holds for check in gp.verify(done))


def test_with_data_a_budget_takes_of_the_hidden_size_too() -> None:
    data = [np.random.default_rng(0).standard_normal((64, 5))]
    recipe = "group,score{by=wifv},mask{params=0.5x allocate=rd},propagate,compensate"
    done = gp.run(recipe, gp.load(MODULE, (X,), data=data))
    assert done.graph.parameters["stem.weight"].shape[0] < 9  # type: ignore[index]
    assert all(check.holds for check in gp.verify(done))
