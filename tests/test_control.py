"""What a user says beside a budget: compile's freeze, only, ignore, floor and grain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.cost.budget import Amount
from graphprune.errors import BudgetError, ModelError, RecipeError

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))


def widths(**options: Any) -> list[int]:
    artifact = gp.compile(net(), X, measure=False, **options)
    return [len(artifact.program.model.get_parameter(f"{k}.weight")) for k in (0, 2)]


def test_named_layers_stay_as_they_are() -> None:
    free = widths(params="0.5x")
    assert free[0] < 48 and free[1] < 32
    assert widths(params="0.5x", freeze=["0"])[0] == 48
    assert widths(params="0.5x", only=["0"])[1] == 32
    assert widths(params="0.5x", freeze="0.weight")[0] == 48  # one name is one name
    module = net()
    artifact = gp.compile(module, X, params="0.6x", ignore=[module[4]], measure=False)
    assert artifact.program.model.get_parameter("4.weight").shape == module[4].weight.shape
    with pytest.raises(ModelError, match="no module within"):
        gp.compile(module, X, ignore=[nn.Linear(2, 2)])


def test_floor_and_grain() -> None:
    assert all(width % 16 == 0 for width in widths(params="0.5x", grain=16))
    low, high = widths(params="0.2x", floor=0.0), widths(params="0.3x", floor=0.4)
    assert min(low[0] / 48, low[1] / 32) < 0.4 <= min(high[0] / 48, high[1] / 32)


def test_widths_of_ones_own() -> None:
    assert widths(width={"0": 20, "2": 5}) == [20, 5]
    assert widths(width={"0": "0.25x"}) == [12, 32]  # nothing else is cut
    assert widths(width={"0.weight": 48, "*": 8}) == [48, 8]  # the first that matches
    within = widths(width={"0": 41}, params="0.5x", grain=8)
    assert within[0] == 41 and within[1] % 8 == 0
    assert 8 * 41 + 41 + 41 * within[1] + within[1] + within[1] * 4 + 4 <= 0.5 * (8 * 48 + 48 + 48 * 32 + 32 + 132)


def test_the_channels_with_the_highest_scores_are_those_that_stay() -> None:
    module = net()
    kept = gp.compile(module, X, width={"0": 5}, measure=False).program.plan["parameters"]["0.weight"]["0"]["keep"]
    norms = (module[0].weight ** 2).sum(1) + (module[2].weight ** 2).sum(0) + module[0].bias ** 2
    assert len(kept) == 5 and norms[kept].min() > norms.median()


@pytest.mark.parametrize(
    ("width", "says"),
    [
        ({"00": 3}, "`00` matches no group"),
        ({"0": 49}, "`0` has 48 channels, not 49"),
        ({"0": 0}, "`width` cannot be `0=0`"),
        ({"0": "2x"}, "`width` cannot be"),
        ({"4": 2}, "`4` cannot have a width: reaches the graph output"),
    ],
)
def test_widths_that_cannot_be(width: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        gp.compile(net(), X, width=width)


def test_a_grain_of_nothing_is_refused() -> None:
    with pytest.raises(BudgetError, match="grain=0 is not a multiple"):
        gp.compile(net(), X, macs="0.5x", grain=0)


def test_a_recipe_says_so_itself() -> None:
    with pytest.raises(RecipeError, match="says itself what is frozen"):
        gp.compile(net(), X, recipe="group,score,mask{macs=0.5x},propagate", freeze=["0"])


@pytest.mark.parametrize(
    ("unit", "text"), [("macs", "0.6x"), ("params", "0.6x"), ("channels", "0.5x"), ("memory", "0.9x")]
)
def test_asked_and_got(unit: str, text: str) -> None:
    artifact = gp.compile(net(), X, measure=False, **{unit: text})
    found, after = artifact.report["budget"], artifact.program.model
    assert (found["unit"], found["asked"], found["default"]) == (unit, text, False)
    kept = [len(after.get_parameter(f"{k}.weight")) for k in (0, 2)]
    whole = {"macs": 8 * 48 + 48 * 32 + 32 * 4, "params": 8 * 48 + 48 + 48 * 32 + 32 + 32 * 4 + 4, "channels": 80}
    got = {
        "macs": 8 * kept[0] + kept[0] * kept[1] + kept[1] * 4,
        "params": 8 * kept[0] + kept[0] + kept[0] * kept[1] + kept[1] + kept[1] * 4 + 4,
        "channels": sum(kept),
    }
    if unit in got:
        assert found["got"] == pytest.approx(got[unit] / whole[unit])
    assert found["got"] <= float(text[:-1])


def test_biases_that_a_fit_adds_are_of_the_budget() -> None:
    torch.manual_seed(0)
    bare = nn.Sequential(
        nn.Linear(8, 24, bias=False), nn.ReLU(), nn.Linear(24, 24, bias=False), nn.ReLU(), nn.Linear(24, 4, bias=False)
    )
    data = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
    report = gp.compile(bare, X, params="0.6x", data=data, measure=False).report
    assert 0.55 < report["budget"]["got"] <= 0.6
    assert not [note for note in report["notes"] if "a bias that had none" in note]


def test_the_default_budget_is_said_to_be_one() -> None:
    report = gp.compile(net(), X, measure=False).report
    assert report["budget"]["default"] and report["budget"]["asked"] == "0.5x"
    from graphprune.report.page import table

    said = " ".join(table(report).split())
    assert "Asked for 0.5x of the multiply-accumulates (the default: no budget was given), got 0.4" in said


def test_what_a_notebook_shows_is_short() -> None:
    artifact = gp.compile(net(), X, params="0.5x", measure=False)
    assert artifact.model is artifact.program.model
    assert repr(artifact).startswith("<Artifact of Sequential: 0.") and "of the parameters" in repr(artifact)
    assert (
        repr(artifact.program)
        == "<Program: torch, 5 ops, after group,score,mask{params=0.5x allocate=global},propagate>"
    )
    shown = artifact._repr_html_()
    assert "<table>" in shown and "parameters</td>" in shown and "The cut is exact" in shown and "<script" not in shown
    report = {**artifact.report, "model": "<script>alert(1)</script>"}
    assert "<script" not in gp.Artifact(artifact.program, report)._repr_html_()
    assert repr(gp.load(net(), X)) == "<Program: torch, 5 ops>"


@pytest.mark.parametrize("unit", ["params", "macs", "channels", "memory"])
def test_a_share_is_one_thing_however_it_is_written(unit: str) -> None:
    from graphprune.passes.mask import Mask

    texts = ("0.5x", "0.5", "50%", ".5", "50.0%", "5e-1x")
    assert {Mask(**{unit: text}).budget()[1] for text in texts} == {Amount(0.5)}
    assert Mask(latency="60%").budget()[1] == Mask(latency="0.6x").budget()[1] == Amount(0.6)


def test_budgets_from_python_recipe_and_text_are_alike() -> None:
    same = [widths(params=budget) for budget in ("0.5x", 0.5, "50%", f"{round(0.5 * PARAMS)}", round(0.5 * PARAMS))]
    recipe = "group,score,mask{params=50% allocate=global},propagate"
    assert [*same, widths(recipe=recipe)] == [same[0]] * 6
    assert widths(width={"0": 0.25}) == widths(width={"0": "25%"}) == widths(width={"0": "0.25x"}) == [12, 32]


PARAMS = 8 * 48 + 48 + 48 * 32 + 32 + 32 * 4 + 4


def test_so_much_of_a_unit() -> None:
    report = gp.compile(net(), X, params="1.2k", measure=False).report
    assert report["after"]["params"] <= 1200 < PARAMS
    assert report["budget"]["share"] == pytest.approx(1200 / PARAMS) and report["budget"]["left"] <= 1200
    macs = gp.compile(net(), X, macs="1k", measure=False).report
    assert macs["after"]["macs"] <= 1000
    from graphprune.report.page import table

    assert "Asked for 1.2k of the parameters, got 0." in table(report) and "1.1" in table(report)
    whole = gp.compile(net(), X, memory="0.9x", measure=False).report["budget"]
    assert gp.compile(net(), X, memory="300B", measure=False).report["budget"]["left"] <= 300 and "left" not in whole
    for budget in ("1M", PARAMS):
        with pytest.raises(BudgetError, match="is no less than the network has: 2,132"):
            gp.compile(net(), X, params=budget)
    for unit, text in (("channels", "200k"), ("params", "3MB"), ("macs", "2x"), ("memory", "3M"), ("macs", "150%")):
        with pytest.raises(BudgetError, match=f"{unit}={text} is not a budget") as caught:
            gp.compile(net(), X, **{unit: text})
        assert f"{unit}=0.5x" in str(caught.value.hint)
