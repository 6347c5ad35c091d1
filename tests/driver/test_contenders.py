"""Several recipes: the one whose result is nearest to the original, on samples that nothing was fitted to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import BudgetError, ModelError, RecipeError
from graphprune.ir.program import Program
from graphprune.report.page import targeted

DATA = np.random.default_rng(0).standard_normal((64, 12)).astype(np.float32)


@cache
def network(rank: int) -> nn.Module:
    """Wide, of weights of a rank: below 24 a layer is better cut in two than narrowed."""
    torch.manual_seed(rank)
    net = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 12)).eval()
    with torch.no_grad():
        net[2].weight.copy_(torch.randn(24, rank) @ torch.randn(rank, 24) / (24 * rank) ** 0.5)
    return net


@cache
def given(rank: int) -> Program:
    return gp.load(network(rank), torch.from_numpy(DATA[:2]), data=DATA)


def compiled(rank: int, recipe: Any, **more: Any) -> gp.Artifact:
    budget = more or {"params": "0.7x"}
    return gp.compile(given(rank), recipe=recipe, measure=False, **budget)


def change(made: gp.Artifact) -> float:
    (output,) = made.report["closeness"]["outputs"]
    return float(output["relative"])


@pytest.mark.parametrize("rank", [2, 24])
def test_of_several_recipes_the_nearest_result_is_taken(rank: int) -> None:
    names = ["auto", "all", "alds"]
    alone = {name: compiled(rank, name) for name in names}
    assert [one.report["auto"] for one in alone.values()] == [True, False, False]
    assert not any("contest" in one.report for one in alone.values())
    best = min(names, key=lambda name: change(alone[name]))
    made, contest = (found := compiled(rank, names)), found.report["contest"]
    assert contest["taken"] == best and (best == "auto") == (rank == 24), "of full rank nothing but channels can go"
    for name, one in alone.items():
        assert contest["recipes"][name] == {"recipe": one.report["recipe"], "change": change(one)}
    assert made.report["recipe"] == alone[best].report["recipe"] and made.report["auto"] == (best == "auto")
    x = torch.from_numpy(DATA)
    assert torch.equal(made.model(x), alone[best].model(x)) and made.report["verification"]["used"]
    (said,) = [line for line in targeted(made.report) if line.startswith("Of 3 recipes")]
    assert f"`{best}`. Outputs change by" in said and all(f"`{n}` {change(alone[n]):.2%}" in said for n in names)


def test_recipes_that_cannot_do_it_are_named_and_the_others_run() -> None:
    made = compiled(2, ["slicegpt", "auto"])
    contest = made.report["contest"]
    assert contest["taken"] == "auto" and "no residual stream" in contest["recipes"]["slicegpt"]["error"]
    assert "`slicegpt` failed: in `rotate" in targeted(made.report)[0]
    with pytest.raises((ModelError, RecipeError), match=r"(?s)`slicegpt`: .*no residual stream.*; `shortgpt`: "):
        compiled(2, ["slicegpt", "shortgpt"])
    with pytest.raises(BudgetError):
        compiled(2, ["auto", "all"], params="0.0001x")


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: compiled(2, []), "a list of no recipes"),
        (lambda: compiled(2, ["auto", 3]), "a recipe is text, not int"),
        (lambda: compiled(2, ["auto", "auto"]), "`auto` is given twice"),
        (lambda: compiled(2, ["auto", "group,score,mask{params=0.7x},propagate"]), "one budget or a recipe, not 2"),
        (lambda: compiled(2, ["auto", "all"], params=0.7, freeze="0"), "`all` says itself what is frozen"),
        (lambda: compiled(2, ["auto", "all"], params=0.7, dry_run=True), "a dry run fits nothing"),
        (lambda: compiled(2, ["auto", "alll"]), "`alll` is no recipe"),
        (
            lambda: gp.compile(network(2), torch.from_numpy(DATA[:2]), recipe=["auto", "alds"], params=0.7),
            "2 recipes are compared on samples held back, and there are none",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(call: Callable[[], Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        call()


class Odd(nn.Module):
    """What a network may hand out: its input after what it makes, a result twice, scalars, logits of which some are
    forbidden, whole numbers alone."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.net, self.what = network(2), what

    def forward(self, x: torch.Tensor) -> Any:
        y = self.net(x)
        if self.what == "whole":
            return y.argmax(-1)
        made = {
            "input": (y[:, :6], x),
            "twice": (y, y),
            "scalar": (y, y.sum()),
            "forbidden": y.masked_fill(torch.arange(12) > 7, float("-inf")),
        }
        return made[self.what]


@pytest.mark.parametrize("what", ["input", "twice", "scalar", "forbidden", "whole"])
def test_outputs_of_any_kind_are_compared(what: str) -> None:
    program = gp.load(Odd(what).eval(), torch.from_numpy(DATA[:2]), data=DATA)
    report = gp.compile(program, recipe=["auto", "all"], params="0.7x", measure=False).report
    assert all("change" in one for one in report["contest"]["recipes"].values())
    if what in ("input", "twice"):
        lost = losses(report)
        assert max(lost) < 2, "outputs are compared with what they were"
        assert what == "input" or lost == losses(compiled(2, "all").report)


def losses(report: Mapping[str, Any]) -> list[float]:
    """What each kind alone and all together lose, by the note."""
    (note,) = [note for note in report["notes"] if note.startswith("`allocate=rd`")]
    return [float(lost) for lost in re.findall(r"(\d\S*) (?:together|ranks alone|channels alone)", note)]
