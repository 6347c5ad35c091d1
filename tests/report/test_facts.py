"""Facts as plain data and as lines."""

from __future__ import annotations

import json

import nets
import numpy as np
import pytest

import graphprune as gp
from graphprune.errors import RecipeError
from graphprune.ir.facts import Losses, Order
from graphprune.report.facts import plain, summary
from graphprune.report.printed import PrintAfter


def test_any_fact_becomes_json():
    program = gp.run("group,score,mask{channels=0.5x unconstrained=readers},reorder", nets.program("Residual"))
    for fact in program.facts.values():
        json.dumps(plain(fact))
    assert plain(Losses({"a": {4: np.float64(0.5)}})) == {"losses": {"a": {"4": 0.5}}}
    assert plain(Order({"a": 1})) == {"sinks": {"a": 1}, "segments": []}
    assert plain(object()) == "<object>"


def test_the_summary_says_how_many_of_how_many():
    program = gp.run("group,score,mask{channels=0.5x}", nets.program("MLP"))
    lines = summary(program)
    assert any(line.startswith("Groups: ") and "frozen" in line for line in lines)
    assert "  fc1: 4 of 7" in lines


def test_printing_after_a_pass():
    shown = []
    gp.run("group,score", nets.program("MLP"), instruments=[PrintAfter(["score"], shown.append)])
    assert len(shown) == 1 and shown[0].startswith("# after score: ") and "\ninput  %" in shown[0]
    every = []
    gp.run("group,score", nets.program("MLP"), instruments=[PrintAfter(["all"], every.append)])
    assert len(every) == 2
    with pytest.raises(RecipeError, match="unknown pass `scor`") as error:
        PrintAfter(["scor"], print)
    assert error.value.hint == "did you mean `score`?"
