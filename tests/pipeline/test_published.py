"""Published recipes: each compiles a small transformer, is proven, and leaves what was asked for."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import nets
import numpy as np
import pytest
import streams
import torch

import graphprune as gp
from graphprune.cost.static import params
from graphprune.errors import RecipeError
from graphprune.ir.program import Program
from graphprune.pipeline.factoring import Factor
from graphprune.pipeline.published import published
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.rotation import Rotate

NAMES = ["2ssp", "alds", "all", "finercut", "flap", "mone", "multipruner", "replaceme", "shortgpt", "slicegpt"]
NAMES += ["slimgpt", "stun"]


@cache
def given() -> Program:
    module, _ = streams.words(depth=4)
    ids = np.random.default_rng(0).integers(0, streams.TOKENS, (24, streams.PLACES))
    return gp.load(module, (torch.from_numpy(ids[:3]),), data=[ids])


@cache
def mixture() -> Program:
    rows = np.random.default_rng(0).standard_normal((24, 3))
    return replace(nets.program("TopTwo"), data=[[rows]])


def size(program: Program) -> float:
    return params(program.graph, program.host)()


def test_there_are_these_and_each_says_where_it_is_from() -> None:
    assert list(published()) == NAMES
    for one in published().values():
        assert one.summary.endswith(".")
        assert "20" in one.source
        assert len(one.differs) > 20
        assert Recipe.parse(one.recipe("params", "0.7x").text()).steps


@pytest.mark.parametrize("name", NAMES)
def test_a_small_transformer_is_left_with_what_was_asked_for(name: str) -> None:
    program = mixture() if name in ("mone", "stun") else given()
    steps = published()[name].recipe("params", "0.7x").steps
    cut = gp.run(Recipe(tuple(step for step in steps if step.name != "compensate")), program)
    assert 0.5 * size(program) < size(cut) <= 0.7 * size(program)
    done = gp.run(Recipe(steps[-1:]), cut) if steps[-1].name == "compensate" else cut
    assert [step.text for step in done.history] == [step.text() for step in steps]
    assert all(check.holds for check in gp.verify(done))
    if name == "all":  # what goes is for the data to say
        return
    gone = len(program.graph.ops) - len(done.graph.ops)
    whole = {"2ssp", "finercut", "multipruner", "replaceme", "shortgpt"}  # branches went
    assert (gone > 5) == (name in whole)
    assert bool(done.plan.of(Factor)) == (name == "alds")
    assert bool(done.plan.of(Rotate)) == (name == "slicegpt")


def test_steps_are_shares_of_what_goes_of_the_model_as_it_was_given() -> None:
    made = published()["multipruner"].recipe("params", "0.5x")
    masks = [step.text() for step in made.steps if step.name == "mask"]
    assert [text.partition("params=")[2].partition(" ")[0] for text in masks] == ["0.78x", "0.52x", "0.5x"]
    assert all("of=given" in text for text in masks)
    with pytest.raises(RecipeError, match="cuts in 3 steps"):
        published()["multipruner"].recipe("latency", "12ms")


def test_compile_takes_a_name_with_a_budget_and_says_what_it_ran() -> None:
    made = gp.compile(given(), recipe="finercut", params="0.8x", measure=False)
    assert made.report["recipe"].startswith("group,branches{alone=true},score{branches=kl},mask{params=0.8x")
    with pytest.raises(RecipeError, match="one budget or a recipe"):
        gp.compile(given(), recipe="finercut", params="0.8x", macs="0.5x")
    with pytest.raises(RecipeError, match="unknown pass `finercat`"):
        gp.compile(given(), recipe="finercat")
    with pytest.raises(RecipeError, match="unknown pass `finercat`"):
        gp.compile(given(), recipe="finercat", params="0.8x")
