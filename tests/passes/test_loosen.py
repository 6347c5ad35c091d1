"""loosen: groups that split, and what becomes of the scores that somebody gave them."""

from __future__ import annotations

import branches
import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import RecipeError
from graphprune.ir.facts import Groups, Keep, Scores
from graphprune.passes.group import Group
from graphprune.passes.loosen import Loosen
from graphprune.passes.mask import Mask
from graphprune.passes.score import Score
from graphprune.pipeline.run import run_pass
from graphprune.reorder.reindex import reindexes
from graphprune.train.slimming import Slimming

MASK = "mask{channels=0.5x floor=0 unconstrained=readers}"


def net():
    """One convolution, read by two."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.norm(self.one(x)).relu()
            return self.left(x), self.right(x)

    return Net().eval()


def load(model=None):
    return gp.load(model or net(), (torch.randn(2, 3, 4, 4),))


def given(program, seed=0):
    """The program with scores of its user."""
    rng = np.random.default_rng(seed)
    program = gp.run("group", program)
    return program.learn(Scores("mine", {g.name: rng.random(g.size) for g in program.fact(Groups)}))


def same(a, b):
    return {k: v.tolist() for k, v in a.items()} == {k: v.tolist() for k, v in b.items()}


def test_it_is_a_pass_of_a_recipe_and_what_mask_asks_for():
    program = load()
    by_option = gp.run(f"group,score{{by=l1}},{MASK},reorder,propagate", program)
    by_name = gp.run("group,score{by=l1},loosen,mask{channels=0.5x floor=0},reorder,propagate", program)
    assert by_option.plan["parameters"] == by_name.plan["parameters"]
    assert [step.name for step in by_option.history] == "group score loosen mask reorder propagate".split()
    assert by_option.plan["steps"][0]["pass"] == "loosen"
    assert len(list(reindexes(gp.run("group,loosen{writers=true}", branches.program("residual")).graph))) == 7


def test_it_opens_what_is_shut_and_nothing_twice():
    once = gp.run("group,score,loosen", branches.program("residual"))
    assert run_pass(Loosen(), once).graph.text() == once.graph.text()
    assert gp.run(MASK, once).graph.text() == once.graph.text()


def test_mask_alone_does_not_open_anything():
    with pytest.raises(RecipeError, match=r"needs readers that `loosen` lets choose"):
        Mask(channels="0.5x", unconstrained="readers").run(gp.run("group,score", load()))


def test_scores_of_a_pass_run_alone_are_made_again_as_they_were_made():
    program = Score(by="l1", over="readers", combine="max", normalize="none").run(Group(normalised=True).run(load()))
    loose = Loosen().run(program)
    want = Score(by="l1", over="readers", combine="max", normalize="none").run(loose).fact(Scores)
    assert same(loose.fact(Scores).scores, want.scores)
    assert loose.fact(Groups).made == "group{normalised=true}"


def test_scores_of_the_user_go_along_to_the_groups_that_theirs_was_split_into():
    program = given(load())
    (whole,) = program.fact(Scores).scores.values()
    loose = run_pass(Loosen(), program)
    assert sorted(loose.fact(Scores).scores) == ["left.weight[1]", "one", "right.weight[1]"]
    assert all(np.array_equal(score, whole) for score in loose.fact(Scores).scores.values())
    assert loose.fact(Scores).by == "mine"
    kept = gp.run(MASK, program).fact(Keep).keep
    assert all(np.array_equal(at, np.sort(np.argsort(-whole)[:4])) for at in kept.values())


def test_scores_go_along_through_a_concatenation():
    program = given(branches.program("dense"))
    loose, old = run_pass(Loosen(), program), program.fact(Scores).scores
    values = {float(v) for score in old.values() for v in score}
    assert all({float(v) for v in score} <= values for score in loose.fact(Scores).scores.values())
    assert all(np.array_equal(loose.fact(Scores).scores[name], old[name]) for name in old)
    wide = max(loose.fact(Scores).scores.values(), key=len)
    parts = [tuple(score) for score in old.values()]
    assert len(wide) > max(map(len, parts)) and any(tuple(wide[: len(part)]) == part for part in parts)


def test_scores_of_training_are_kept():
    model = net()
    penalty = Slimming(gp.load(model, (torch.randn(2, 3, 4, 4),)), model)
    with torch.no_grad():
        model.norm.weight.copy_(torch.arange(8.0))
    learned = penalty.learned()
    assert all(kept.tolist() == [4, 5, 6, 7] for kept in gp.run(MASK, learned).fact(Keep).keep.values())


def test_groups_that_the_user_chose_stay_the_ones_that_are_pruned():
    program = gp.run("group,score", branches.program("residual"))
    from dataclasses import replace

    groups = program.fact(Groups)
    mine = replace(groups, groups=groups.groups[:1], made="")
    loose = run_pass(Loosen(), program.learn(mine))
    names = {g.name for g in loose.fact(Groups)}
    assert groups.groups[0].name in names and groups.groups[-1].name not in names


def test_channels_without_a_score_are_refused_and_not_scored_by_something_else():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(11, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            y = self.one(x).relu()
            return self.left(torch.cat([y, x], 1)), self.right(y)

    program = load(Net().eval())
    with pytest.raises(RecipeError, match=r"by `mine`.*`left.weight\[1\]`.*3 of its 11 channels \(8, 9, 10\) have no"):
        gp.run(MASK, given(program))
    assert gp.run(f"group,score,{MASK}", program).fact(Scores).by == "l2"


def test_a_keep_of_the_groups_before_goes_with_a_note():
    program = gp.run("group", load())
    kept = program.learn(Keep({group.name: np.arange(3) for group in program.fact(Groups)}))
    loose = run_pass(Loosen(), kept)
    assert not loose.knows(Keep)
    assert any("the Keep of the groups before is dropped" in note for note in loose.notes)
    assert not run_pass(Loosen(), program).notes
