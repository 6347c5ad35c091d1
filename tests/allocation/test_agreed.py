"""Channels, branches and ranks in one budget: what is measured, of what, and what is chosen."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from residual import transformer
from torch import Tensor, nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.allocation.agreed import agreed
from graphprune.allocation.choice import choose as chosen
from graphprune.allocation.measured import Measured, kinds
from graphprune.allocation.problem import best
from graphprune.allocation.rd import measured_losses
from graphprune.axes.dim import Dim
from graphprune.calibration.before_norms import preimage
from graphprune.calibration.outputs import distortion
from graphprune.coupling.branches import gaps, residuals
from graphprune.criteria.branches import output
from graphprune.ir.facts import Group, Groups, Keep, Scores
from graphprune.ir.program import Plan, Program
from graphprune.pipeline.bypass import Bypass


class Linear(nn.Module):
    """The second branch is linear in what it is added to: the layer before it can be both. The first is not."""

    def __init__(self, after: bool = False) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.map, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in range(2 if after else 0)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x))
        for k, branch in enumerate((lambda x: self.outer(F.gelu(self.inner(x))), self.map)):
            x = x + branch(x)
            x = self.norms[k](x) if self.norms else x
        made: Tensor = self.head(x)
        return made


def scored(after: bool = False, samples: int = 256, step: str = "group,branches,score{by=obs}") -> Program:
    torch.manual_seed(0)
    module = Linear(after).double().eval()
    with torch.no_grad():
        for norm in module.norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
    data = np.random.default_rng(0).standard_normal((samples, 6))
    return gp.run(step, gp.load(module, (torch.from_numpy(data[:2]),), data=[data]))


MAP = "branch:map"


@pytest.mark.parametrize("after", [False, True], ids=["no norms", "norms after the sum"])
def test_a_branch_is_measured_with_what_the_layer_before_it_makes_up_for(after: bool) -> None:
    program = scored(after)
    gates = program.fact(Groups).gates
    alone = {group.name: lost for group, lost in output(program, gates)}
    mended = {
        name: menu[0] for name, menu in measured_losses(program, program.fact(Groups)).losses.items() if name in alone
    }
    assert list(mended) == list(alone)
    assert mended[MAP] < (0.35 if after else 0.05) * alone[MAP]
    assert mended["branch:outer"] > 0.05 * alone["branch:outer"]


@pytest.mark.parametrize("after", [False, True], ids=["no norms", "norms after the sum"])
def test_compensation_fits_the_layer_before_a_branch_to_what_was_behind_it(after: bool) -> None:
    program = scored(after, step="group,branches{alone=true},score")
    (branch,) = (one.branch for one in residuals(program.graph)[0] if one.name == MAP)
    shorter = Bypass((branch,)).apply(program)
    fitted = gp.run("compensate", shorter)
    errors = [distance(program, other) for other in (shorter, fitted)]
    assert errors[1] < (0.1 if after else 0.02) * errors[0]
    assert all(check.holds for check in gp.verify(fitted))


def test_the_same_on_onnx(tmp_path: Path) -> None:
    given = scored(after=True, step="group")
    path = tmp_path / "model.onnx"
    single = gp.load(Linear(True).eval(), (torch.zeros(2, 6),))
    for name in given.graph.parameters:
        single.host.set_parameter(name, given.host.parameter(name))
    single.host.save_onnx(path)
    data = [batch[0].astype(np.float32) for batch in given.data]
    program = gp.run("group,branches,score{by=obs}", gp.load(path, data=np.concatenate(data)))
    (found,) = (one for one in residuals(program.graph)[0] if one.name == MAP)
    alone = {group.name: lost for group, lost in output(program, program.fact(Groups).gates)}
    assert measured_losses(program, program.fact(Groups)).losses[MAP][0] < 0.35 * alone[MAP]
    shorter = Bypass((found.branch,)).apply(program)
    fitted = gp.run("compensate", shorter)
    assert distance(program, fitted) < 0.1 * distance(program, shorter)
    assert all(check.holds for check in gp.verify(fitted))


def distance(program: Program, other: Program) -> float:
    made = [[host.run(batch)[0] for batch in program.data] for host in (program.host, other.host)]
    return float(np.square(np.concatenate(made[0]) - np.concatenate(made[1])).mean())


def test_what_norms_have_to_be_given() -> None:
    """Of weights that are all alike it is exact; of others no more than near, since a norm takes the mean off."""
    rng = np.random.default_rng(0)
    for spread, worst in ((0.0, 1e-6), (0.3, 0.02)):
        net = nn.Sequential(nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)).double()
        with torch.no_grad():
            for norm in net:
                norm.weight.copy_(torch.from_numpy(1 + spread * rng.uniform(-1, 1, 16)))
                norm.bias.copy_(torch.from_numpy(0.3 * rng.standard_normal(16)))
        host = gp.load(net.eval(), (torch.zeros(2, 16, dtype=torch.float64),)).host
        *given, _last = host.lift().ops
        wanted = rng.standard_normal((64, 16))
        x = torch.from_numpy(preimage(wanted, given, host))
        assert np.allclose((x.mean(-1), x.std(-1, correction=0)), ([0] * 64, [1] * 64))
        made, right = net(x), net[2](torch.from_numpy(wanted))
        assert float(((made - right).square().mean() / right.var()).detach()) < worst


def test_branches_in_a_row_leave_one_gap_with_the_norms_on_the_way() -> None:
    program = scored(after=True)
    found = residuals(program.graph)[0]
    (gap,) = gaps(program.graph, [one.branch for one in found])
    assert (gap.before.name, gap.behind.name) == (found[0].other.name, found[1].out.name)
    assert [norm.kind for norm in gap.norms] == ["layer_norm"]
    (second,) = gaps(program.graph, [found[1].branch])
    assert (second.before.name, len(second.norms)) == (found[0].out.name, 1)


def test_kinds_are_measured_on_samples_that_nothing_was_fitted_to() -> None:
    program = scored()
    every = {tuple(row) for (x,) in program.data for row in x}
    measured = Measured.of(program, program.fact(Groups))
    seen, fitted = ({tuple(row) for (x,) in part for row in x} for part in (measured.batches, measured.repaired.data))
    assert seen and fitted and not seen & fitted and seen | fitted <= every
    widths = program.fact(Groups).channels
    assert Measured.of(program, widths).repaired.data is program.data


def test_of_several_kinds_channels_are_measured_with_what_reads_them_fitted() -> None:
    program = scored()
    every = program.fact(Groups)
    (group,) = (group for group in every if group.name == "inner")
    gone = np.argsort(program.fact(Scores)[group])[:8]
    mixed, alone = Measured.of(program, every), Measured.of(program, every.channels)
    zeroed = program.host.copy()
    zeroed.zero("outer.weight", 1, gone)
    plain = distortion(mixed.whole, [zeroed.watch(batch, list(mixed.whole[0])) for batch in mixed.batches])
    assert mixed.lost({"inner": gone}) < 0.7 * plain
    first, second = (one.repaired.without({"inner": gone}).parameter("outer.weight") for one in (mixed, alone))
    assert np.allclose(first, second, rtol=0.2, atol=0.02)  # of seven eighths of the samples


@pytest.mark.parametrize("name", ["inner", "stem"])
def test_a_copy_that_loses_more_and_more_is_what_a_fresh_one_is(name: str) -> None:
    """Weights anew, biases by what they grow."""
    program = scored()
    measured = Measured.of(program, program.fact(Groups).channels)
    (group,) = (group for group in measured.repaired.groups.values() if group.name == name)
    order, live = np.argsort(program.fact(Scores)[group]), [dict[str, Any]() for _ in measured.batches]
    stops = [1, group.size // 2, group.size - 1]
    together = measured.along(name, order, stops, live)
    assert together == pytest.approx({stop: measured.lost({name: order[:stop]}) for stop in stops}, rel=1e-5)
    assert 0 < together[stops[0]] < together[stops[-1]]


def test_the_choice_is_no_worse_as_a_whole_than_that_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def watched(problem: Any, menus: Any, choose: Any, measured: Any) -> Any:
        asked.update(problem=problem, menus=menus, choose=choose, measured=measured)
        return agreed(problem, menus, choose, measured)

    monkeypatch.setattr(sys.modules["graphprune.allocation.rd"], "agreed", watched)
    module, x = transformer(3)
    data = np.random.default_rng(3).standard_normal((64, 4, 5))
    program = gp.load(module, (x,), data=[data])
    recipe = "factor{by=data},group,branches,score{by=obs},mask{macs=0.6x allocate=rd}"
    done = gp.run(recipe, program)
    keep = done.fact(Keep)
    problem, menus = asked["problem"], asked["menus"]
    found = kinds(problem.program, problem.groups)
    assert len(found) == 3
    scores = problem.program.fact(Scores)

    def lost(counts: dict[str, int]) -> float:
        """Cut and fitted as a whole to the rest, on the samples that nothing was fitted to."""
        stay = {g.name: best(scores[g], counts[g.name]) for g in problem.groups}
        held, rest = asked["measured"].batches, asked["measured"].repaired.data
        given = problem.program.seeing(rest).learn(Keep(stay))
        done = gp.run("propagate,compensate", given)
        whole, seen = ([{"y": host.run(batch)[0]} for batch in held] for host in (done.source, done.host))
        return distortion(whole, seen)

    mine = lost({group.name: len(keep.keep[group.name]) for group in problem.groups})
    alone = []
    for kind in [set(menus), *found.values()]:
        own = {name: menu if name in kind else {max(menu): 0.0} for name, menu in menus.items()}
        try:
            alone.append(lost(asked["choose"](own)))
        except gp.GraphpruneError:
            continue
    assert len(alone) > 1 and mine <= min(alone) * (1 + 1e-9)
    (told,) = problem.remarks
    assert re.search(
        r"on 8 samples that nothing was fitted to the outputs lose, of their variance: [\d.e-]+ together, .* alone.*; "
        r"taken: .*, where \d+ branches go and \d+ layers become two",
        told,
    )
    assert f"{mine:.3g} " in told and told in done.notes


def test_it_is_chosen_again_by_what_groups_add_beside_one_another() -> None:
    """Alone `a` seems cheap; where it goes with anything else it is not."""
    groups = [Group(name, Dim(10), 10, ()) for name in "abc"]
    problem: Any = SimpleNamespace(
        settled=[],
        each=groups,
        groups=groups,
        everyone=dict,
        whole_layers=lambda _: None,
        remarks=[],
        program=SimpleNamespace(fact=lambda _: {group: np.arange(10) for group in groups}, plan=Plan()),
    )
    menus = {
        name: {k: worth * (10 - k) ** 2 for k in range(1, 11)} for name, worth in zip("abc", (1, 2, 2), strict=True)
    }

    def choose(menus: Any) -> dict[str, int]:
        return chosen(menus, {name: {k: float(k) for k in menu} for name, menu in menus.items()}, 18)

    def lost(gone: Any) -> float:
        counts = {name: 10 - len(gone.get(name, ())) for name in "abc"}
        own = sum(menus[name][count] for name, count in counts.items())
        return float(own + 3 * menus["a"][counts["a"]] * (len(gone) > 1))

    def made(_: Any, keep: Keep) -> Any:
        return SimpleNamespace(lost=lost({g.name: range(10 - len(keep.keep[g.name])) for g in groups}), opened="")

    measured: Any = SimpleNamespace(lost=lost, made=made, told="", repaired=SimpleNamespace(forget=lambda: None))
    first, found = choose(menus), agreed(problem, menus, choose, measured)
    assert sum(found.values()) <= 18
    assert found["a"] > first["a"]
    losses = [lost({name: range(10 - count) for name, count in one.items() if count < 10}) for one in (first, found)]
    assert losses[1] < 0.9 * losses[0]
