"""What a run holds in memory, and what its result shares with the model as it was given: nothing."""

from __future__ import annotations

import gc

import pytest
import streams
import torch

import graphprune as gp
from graphprune.ir import large
from graphprune.ir.program import Program
from graphprune.pipeline.replay import replay


def given() -> Program:
    module, x = streams.words()
    return gp.load(module, (x,), data=[x.numpy()])


@pytest.mark.parametrize("recipe", ["rms", "rms,rotate", "rms,rotate{per=block}", "rms,factor,group,score"])
def test_a_result_shares_no_weight_with_what_was_given(recipe: str) -> None:
    """A pass may leave weights where they are: a run and a plan may not."""
    program = given()
    done = gp.run(recipe, program)
    before = {tensor.data_ptr() for tensor in program.model.parameters()}
    for made in (done, replay(done.plan, program.source)):
        assert before.isdisjoint(tensor.data_ptr() for tensor in made.model.parameters())


def test_what_a_pass_made_of_a_model_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the collector by itself, which does not know that models are large."""
    program = given()
    gc.collect()
    gc.disable()
    try:
        left = dict[int, int]()
        for limit in (0, 1 << 40):
            monkeypatch.setattr(large, "COLLECTED_BYTES", limit)
            held = modules()
            gp.run("rms,rotate{per=block}", program)
            left[limit] = modules() - held
            gc.collect()
    finally:
        gc.enable()
    assert left[0] < left[1 << 40]


@pytest.mark.parametrize(("size", "edited", "walks"), [(1 << 27, True, 0), (1 << 29, True, 1), (1 << 29, False, 0)])
def test_the_collector_walks_for_large_models_alone(
    size: int, edited: bool, walks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all that torch has imported, after each pass: most of the time that a network as ResNet-50 takes."""
    calls: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: calls.append(1))
    large.released(size, edited)
    assert len(calls) == walks


def modules() -> int:
    return sum(issubclass(type(one), torch.fx.GraphModule) for one in gc.get_objects())
