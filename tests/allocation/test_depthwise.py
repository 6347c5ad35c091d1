"""More goes the deeper a layer lies."""

from __future__ import annotations

from math import ceil, log

import nets
import numpy as np
import pytest
import streams
from torch import nn

import graphprune as gp
from graphprune.allocation.depthwise import FIRST
from graphprune.cost.static import params
from graphprune.ir.facts import Groups, Keep
from graphprune.pipeline.edits import Cut


def test_what_goes_rises_with_the_logarithm_of_the_depth_to_the_budget() -> None:
    module, x = streams.words(depth=4)
    for block in module.blocks:
        block.up, block.down = (nn.Linear(a, b).double() for a, b in ((8, 400), (400, 8)))
    program = gp.load(module, (x,))
    scored = gp.run("group{places=inner},score,mask{params=0.6x allocate=depthwise floor=0}", program)
    gone = [1 - len(kept) / 400 for kept in scored.fact(Keep).keep.values()]
    assert len(gone) == 4
    for k, share in enumerate(gone):
        assert share == pytest.approx(gone[-1] * (FIRST + (1 - FIRST) * log(k + 1) / log(4)), abs=0.01)
    done = gp.run("propagate", scored)
    sizes = [params(one.graph, one.host)() for one in (program, done)]
    assert 0.59 < sizes[1] / sizes[0] <= 0.6
    assert np.all(np.diff(gone) > 0)


@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_a_budget_that_the_floors_meet_is_met(floor: float) -> None:
    """Also where the first layer has to lose more than half of what the last one can."""
    program = gp.run("group,score", nets.program("Residual"))
    groups, given = program.fact(Groups), params(program.graph, program.host)
    least = {group.dim: max(1, ceil(floor * group.size - 1e-9)) for group in groups}
    share = 1.001 * given(least) / given()
    done = gp.run(f"mask{{params={share:.6f}x allocate=depthwise floor={floor}}},propagate", program)
    assert params(done.graph, done.host)() <= share * given()
    kept = done.plan.of(Cut)[0].keep
    assert {group.dim: len(kept[group.name]) for group in groups} == least
    with pytest.raises(gp.GraphpruneError, match="cannot be met"):
        gp.run(f"mask{{params={0.99 * share:.6f}x allocate=depthwise floor={floor}}}", program)


def test_a_budget_is_of_the_model_as_it_was_given_and_not_of_what_was_opened() -> None:
    module, x = streams.words(nn.RMSNorm, tied=True)
    program = gp.load(module, (x,), data=[x.numpy()])
    done = gp.run("rotate{untie=true},group,score,mask{params=0.7x floor=0},propagate", program)
    sizes = [params(one.graph, one.host)() for one in (program, done)]
    assert 0.6 < sizes[1] / sizes[0] <= 0.7
    twice = "group,score,mask{params=0.8x},propagate,group,score,mask{params=0.7x of=given},propagate"
    for recipe, most in ((twice, 0.7), (twice.replace(" of=given", ""), 0.56)):
        done = gp.run(recipe, program)
        assert most - 0.1 < params(done.graph, done.host)() / sizes[0] <= most
