"""Residual branches scored, chosen, made up for, replayed, and taken out of the user's own module."""

from __future__ import annotations

import copy
import json
from typing import Any

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from residual import Transformer, transformer
from torch import nn

import graphprune as gp
from graphprune.calibration.outputs import distortion
from graphprune.cost.static import macs
from graphprune.coupling.branches import residuals
from graphprune.errors import ModelError, RecipeError
from graphprune.ir.facts import Frozen, Groups, Keep, Scores
from graphprune.ir.program import Program
from graphprune.pipeline.bypass import Bypass
from graphprune.pipeline.plan_file import read_plan, write_plan

MODULE, X = transformer(4)
NAMES = [f"branch:blocks.{k}.{layer}" for k in range(4) for layer in ("proj", "scale" if k == 3 else "down")]


def program(samples: int = 32, **more: Any) -> Program:
    rng = np.random.default_rng(3)
    data = rng.standard_normal((samples, 4, 5))
    return gp.load(MODULE, (X,), data=(data, *more.pop("rest", ())) if more else [data], **more)


def weak() -> Program:
    """The same, one block of which adds next to nothing."""
    host = PROGRAM.host.copy()
    for name in ("proj", "down"):
        for part in ("weight", "bias"):
            host.set_parameter(f"blocks.1.{name}.{part}", 1e-4 * host.parameter(f"blocks.1.{name}.{part}"))
    return Program(host, host, PROGRAM.data)


PROGRAM = program()
WEAK = weak()
BOTH = "group,branches,score{by=wifv},mask{macs=0.5x allocate=rd},propagate,compensate"


def outputs(program: Program) -> list[dict[str, np.ndarray[Any, Any]]]:
    return [{str(k): y for k, y in enumerate(program.host.run(batch))} for batch in PROGRAM.data]


def without(name: str) -> Program:
    one = next(one for one in residuals(PROGRAM.graph)[0] if one.name == name)
    return Bypass((one.branch,)).apply(PROGRAM)


def scores(by: str, of: Program = PROGRAM, options: str = "") -> dict[str, float]:
    done = gp.run(f"group,branches{{alone=true{options}}},score{{branches={by}}}", of)
    return {name: float(score[0]) for name, score in done.fact(Scores).scores.items()}


def gone(done: Program) -> list[str]:
    left = {one.name for one in residuals(done.graph)[0]}
    return [name for name in NAMES if name not in left]


def test_output_and_kl_are_what_the_outputs_lose() -> None:
    whole = outputs(PROGRAM)
    squared, divergences = scores("output"), scores("kl")
    assert list(squared) == NAMES
    for name in NAMES[::3]:
        after = outputs(without(name))
        assert squared[name] == pytest.approx(distortion(whole, after), rel=1e-9)
        p, q = (torch.from_numpy(np.concatenate([one["0"] for one in each])) for each in (whole, after))
        kl = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
        assert divergences[name] == pytest.approx(float(kl), rel=1e-9)


def test_angular_is_the_angle_of_the_stream_before_and_behind() -> None:
    module, stream = copy.deepcopy(MODULE), []
    for block in module.blocks:
        block.register_forward_hook(lambda _, args, out: stream.append((args[0], out)))
    module(torch.from_numpy(np.concatenate([batch[0] for batch in PROGRAM.data])))
    found = scores("angular", options=" of=block")
    for (before, behind), name in zip(stream, found, strict=True):
        angle = F.cosine_similarity(before, behind, -1).arccos().mean().detach() / torch.pi
        assert found[name] == pytest.approx(float(angle), rel=1e-9)


def test_loss_is_what_the_loss_rises_by() -> None:
    labels = np.random.default_rng(4).integers(0, 4, (32, 4))
    given = program(rest=(labels,), loss=lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()))
    found = scores("loss", given)

    def loss(done: Program) -> float:
        out = torch.from_numpy(np.concatenate([one["0"] for one in outputs(done)]))
        return float(F.cross_entropy(out.flatten(0, 1), torch.from_numpy(labels).flatten()))

    for name in NAMES[::3]:
        assert found[name] == pytest.approx(loss(without(name)) - loss(PROGRAM), rel=1e-9)
    with pytest.raises(gp.GraphpruneError, match="needs a loss"):
        scores("loss")
    with pytest.raises(gp.GraphpruneError, match="needs calibration data"):
        scores("kl", gp.load(MODULE, (X,)))


def test_one_shot_takes_the_lowest_scores_that_meet_the_budget() -> None:
    lowest = sorted(scores("output").items(), key=lambda pair: pair[1])
    done = gp.run("group,branches{alone=true},score,mask{channels=0.6x},propagate", PROGRAM)  # 4.8 of 8 stay
    assert set(gone(done)) == {name for name, _ in lowest[:4]}
    assert all(check.holds for check in gp.verify(done))


def test_stepwise_measures_again_after_each() -> None:
    """FinerCut, done by hand."""
    left, reference = PROGRAM, []
    for _ in range(3):
        found = {}
        for one in residuals(left.graph)[0]:
            shorter = Bypass((one.branch,)).apply(left)
            found[one.name] = distortion(outputs(left), outputs(shorter)), shorter
        name = min(found, key=lambda name: found[name][0])
        reference.append(name)
        left = found[name][1]
    recipe = "group,branches{alone=true},score,mask{channels=0.7x allocate=stepwise},propagate"  # 5.6 of 8 stay
    done = gp.run(recipe, PROGRAM)
    assert set(gone(done)) == set(reference)


@pytest.mark.parametrize("allocate", ["uniform", "greedy", "knapsack", "rd", "stepwise"])
def test_budgets_are_met(allocate: str) -> None:
    recipe = f"group,branches{{of=block alone=true}},score,mask{{macs=0.6x allocate={allocate}}},propagate"
    done = gp.run(recipe, PROGRAM)
    share = macs(done.graph, done.host)() / macs(PROGRAM.graph, PROGRAM.host)()
    assert 0.3 < share <= 0.6


def test_channels_and_branches_share_one_budget_by_measured_distortion() -> None:
    done = gp.run(BOTH, WEAK)
    assert {edit.kind for edit in done.plan.edits} == {"cut", "bypass", "correct"}
    assert set(gone(done)) >= {"branch:blocks.1.proj", "branch:blocks.1.down"}
    assert macs(done.graph, done.host)() <= 0.5 * macs(PROGRAM.graph, PROGRAM.host)()
    assert all(check.holds for check in gp.verify(done))
    with pytest.raises(gp.GraphpruneError, match="cannot weigh channels against branches"):
        gp.run("group,branches,score,mask{macs=0.5x}", PROGRAM)
    with pytest.raises(gp.GraphpruneError, match="says nothing of branches"):
        gp.run("group,branches{alone=true},score,mask{macs=0.5x allocate=lamp}", PROGRAM)


def test_what_is_asked_to_stay_stays() -> None:
    def groups(options: str) -> tuple[list[str], list[Frozen]]:
        found = gp.run(f"group,branches{{{options}}}", PROGRAM).fact(Groups)
        return [group.name for group in found.gates], [one for one in found.frozen if "branch:" in one.name]

    assert groups("keep=first:2,last:1")[0] == NAMES[2:7]
    assert groups("keep=blocks.1.*")[0] == [name for name in NAMES if "blocks.1" not in name]
    offered, stay = groups("of=block keep=first:1")
    assert offered == [f"{NAMES[k]}..{NAMES[k + 1].removeprefix('branch:')}" for k in (2, 4, 6)]
    assert [one.reason for one in stay] == ["asked for by `first:1`"]
    assert len(groups("of=block span=2")[0]) == 3
    assert len(groups("span=8")[0]) == 1
    with pytest.raises(ModelError, match=r"(?s)no branch can go: 8 are frozen.*asked for by `first:8`"):
        groups("alone=true keep=first:8")
    for wrong in ("of=layer", "span=0", "keep=first:-1", "keep=last:0"):
        with pytest.raises(RecipeError, match="branches"):
            groups(wrong)
    with pytest.raises(RecipeError, match=r"`nothing\*` matches no residual branch"):
        groups("keep=blocks.1.*,nothing*")


def test_without_a_branch_channels_go_on_alone_or_the_reason_is_said() -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    given = gp.load(plain, torch.randn(2, 3), data=torch.randn(32, 3))
    done = gp.run("group,branches,score{by=obs},mask{params=0.6x allocate=rd},propagate", given)
    assert "`branches`: no branch can go: the network has no residual branch; channels go alone" in done.notes
    assert macs(done.graph, done.host)() < macs(given.graph, given.host)()
    for options, said in (("", "no residual branch$"), ("of=attention ", "no residual branch that attends")):
        with pytest.raises(ModelError, match=said):
            gp.run(f"group,branches{{{options}alone=true}}", given)
    with pytest.raises(ModelError, match="span=9, and no more than 8 follow one another"):
        gp.run("group,branches{span=9 alone=true}", PROGRAM)


def test_a_note_calls_a_branch_a_branch() -> None:
    done = gp.run("group,branches{alone=true},score,mask{params=0.95x allocate=global},propagate", PROGRAM)
    assert any("the cheapest, `branch:" in note for note in done.notes), done.notes


def test_a_span_goes_whole() -> None:
    found = gp.run("group,branches{of=block span=2 alone=true},score{branches=angular}", PROGRAM)
    least = min(found.fact(Scores).scores.items(), key=lambda pair: pair[1][0])[0]
    keep = Keep({group.name: np.arange(group.name != least) for group in found.fact(Groups)})
    done = gp.run("propagate", found.learn(keep))
    first, last = least.split("..")
    assert gone(done) == NAMES[NAMES.index(first) : NAMES.index(f"branch:{last}") + 1]
    assert len(gone(done)) == 4
    assert all(check.holds for check in gp.verify(done))


def test_the_layer_before_a_branch_makes_up_for_it() -> None:
    """A branch that is a linear map of the stream goes into the layer that wrote the stream, as ReplaceMe folds it."""

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = (torch.nn.Linear(n, m) for n, m in ((5, 6), (6, 7), (7, 6)))
            self.head = torch.nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            out: torch.Tensor = self.head((x + self.b(self.a(x))).tanh())
            return out

    module = nets.randomise(Linear().double().eval())
    given = gp.load(module, (torch.randn(3, 5, dtype=torch.float64),), data=[np.random.randn(2000, 5)])
    cut = gp.run("group,branches{alone=true},score,mask{channels=0.5x},propagate", given)
    fitted = gp.run("compensate", cut)
    (whole,) = given.host.run(given.data[0])
    errors = [float(np.abs(done.host.run(given.data[0])[0] - whole).max()) for done in (cut, fitted)]
    assert errors[1] < 0.05 * errors[0]
    assert "stem.weight" in fitted.plan.edits[-1].weights  # type: ignore[attr-defined]
    assert all(check.holds for check in gp.verify(fitted))
    assert "by=lsq does" in gp.run("compensate{by=mean}", cut).notes[-1]


def test_a_plan_with_branches_is_replayed_from_its_file(tmp_path) -> None:
    done = gp.run(BOTH, WEAK)
    write_plan(tmp_path, done.plan)
    again = gp.apply(read_plan(tmp_path / "plan.json"), WEAK)
    assert all(np.array_equal(again.host.parameter(n), done.host.parameter(n)) for n in done.graph.parameters)
    assert again.graph.text() == done.graph.text()
    content = json.loads((tmp_path / "plan.json").read_text())
    step = next(step for step in content["steps"] if step["edit"] == "bypass")
    for branches, message in (
        ([["add_1"]], "not a branch"),
        ([["add_1", 2]], "2"),
        ([["add_1", 1], ["add_1", 1]], "there already"),
        ([["add_77", 1]], "no branch of this model"),
    ):
        wrong = {"steps": [{**step, "branches": branches}]}
        with pytest.raises(gp.GraphpruneError, match=message):
            gp.apply(wrong, WEAK)


def test_blocks_become_identities_in_the_users_module() -> None:
    recipe = "group,branches{of=block alone=true keep=last:1},score,mask{channels=0.5x},propagate,compensate"
    done, module = gp.run(recipe, PROGRAM), copy.deepcopy(MODULE)
    optimizer = torch.optim.Adam(module.parameters())
    module(X).sum().backward()
    optimizer.step()
    module.load_state_dict(MODULE.state_dict())
    gp.apply(done, module, in_place=True, optimizer=optimizer)
    assert [type(block).__name__ for block in module.blocks].count("Identity") == 2
    assert nets.relative_error(nets.outputs(done.model, (X,)), nets.outputs(module, (X,))) <= 1e-12
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in module.parameters()}
    module(X).sum().backward()
    optimizer.step()


def test_a_branch_that_the_forward_adds_itself_is_refused_in_place() -> None:
    done, module = without(NAMES[0]), copy.deepcopy(MODULE)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(gp.GraphpruneError, match="goes with a branch, and the forward that computes it stays"):
        gp.apply(done.plan, module, (X,), in_place=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert isinstance(module, Transformer)


def test_the_report_shows_every_branch() -> None:
    from graphprune.report.page import render

    recipe = "group,branches{alone=true},score,mask{channels=0.6x},propagate"
    made = gp.compile(PROGRAM, recipe=recipe, measure=False)
    rows = made.report["branches"]
    assert [row["name"] for row in rows] == NAMES
    assert [row["name"] for row in rows if not row["kept"]] == gone(made.program)
    before, after = made.report["before"], made.report["after"]
    for unit in ("params", "macs"):
        assert before[unit] - after[unit] == sum(row[unit] for row in rows if not row["kept"])
    widths = {group["name"]: group["kept"] for group in made.report["groups"]}
    assert [widths[f"blocks.{k}.up"] for k in range(4)] == [10 * row["kept"] for row in rows[1::2]]
    page = render(made.report)
    assert "4 of 8 are kept" in page and NAMES[0] in page


class Normed(nn.Module):
    """A residual block with a weight that is computed anew at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.utils.parametrizations.weight_norm(nn.Linear(8, 9)), nn.Linear(9, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return out


def test_a_block_with_a_weight_that_is_computed_is_left_out_of_the_users_module() -> None:
    torch.manual_seed(0)
    blocks = [Normed() for _ in range(3)]
    module, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), *blocks, nn.Linear(8, 2)).eval(), torch.randn(3, 4)
    program = gp.load(module, x, data=[np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)])
    done = gp.run("group,branches{alone=true},score,mask{channels=0.6x},propagate", program)
    gp.apply(done, module, in_place=True)
    assert [type(part).__name__ for part in module].count("Identity") == 2
    assert torch.allclose(module(x), done.model(x), atol=1e-6)
