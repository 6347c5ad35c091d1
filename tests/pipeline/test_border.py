"""What passes say of themselves is true, and what they give is what the next one can read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import nets
import numpy as np
import pytest

import graphprune as gp
from graphprune.errors import RecipeError
from graphprune.ir.facts import Groups, Keep, Losses, Order, Scores
from graphprune.pipeline.base import Pass
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import run, run_pass


@pytest.fixture(scope="module")
def program():
    return gp.run("group", nets.program("Residual"))


@dataclass(frozen=True)
class Does(Pass):
    """Whatever it is told to."""

    name = "does"
    needs = (Groups,)
    does: Callable[[Any], Any] = lambda program: program


@dataclass(frozen=True)
class Keeps(Does):
    gives: ClassVar = (Keep,)


@dataclass(frozen=True)
class Rewrites(Does):
    rewrites: ClassVar = True


for kind in (Does, Keeps, Rewrites):
    kind.run = lambda self, program: self.does(program)  # type: ignore[attr-defined, method-assign]
    kind.text = lambda self: "does"  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Does(lambda program: None), r"pass `does` \(.*Does\) returned None, not a Program"),
        (Does(lambda program: {}), "returned a dict, not a Program"),
        (Keeps(lambda program: program), "says that it gives Keep, and did not"),
        (Does(lambda program: program.rewrite(program.host.copy())), "changed the model and says rewrites = False"),
        (
            Rewrites(lambda program: program.rewrite(program.host.copy()).learn(program.fact(Groups))),
            "changed the model and kept Groups of the one before it",
        ),
    ],
)
def test_a_pass_that_is_not_what_it_says_is_named(program, step, message):
    with pytest.raises(RecipeError, match=r"in `does` after `group`: .*" + message):
        run_pass(step, program)


def test_a_pass_alone_needs_what_it_needs():
    with pytest.raises(RecipeError, match="Groups is not known here"):
        run_pass(Does(), nets.program("Residual"))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (lambda name, n: {name: [0, n]}, r"`does` gave a Keep that has for `.*` channel (\d+), of \1"),
        (lambda name, n: {name: [-1]}, "channel -1, of"),
        (lambda name, n: {name: np.ones(n, bool)}, "bool and not whole numbers"),
        (lambda name, n: {name: [0.5]}, "float64 and not whole numbers"),
        (lambda name, n: {name: [[0]]}, "2 axes, not a list"),
        (lambda name, n: {name: [[0], [1, 2]]}, "a list that is no list"),
        (lambda name, n: {name: []}, "leaves nothing of"),
        (lambda name, n: {"nobody": [0]}, "names `nobody`, which is no group"),
        (lambda name, n: [name], "a Keep that is a list, not a mapping by group"),
    ],
)
def test_a_keep_that_cannot_be_cut_by_is_refused_at_once(program, kept, message):
    group = program.fact(Groups).groups[0]
    wrong = Keep(kept(group.name, group.size))
    with pytest.raises(RecipeError, match=message):
        run_pass(Keeps(lambda program: program.learn(wrong)), program)
    with pytest.raises(RecipeError, match=message.replace("`does` gave", "the program was given with")):
        gp.run("propagate", program.learn(wrong))


def many(groups, **changes):
    """The groups, each with something else."""
    return replace(groups, groups=tuple(replace(g, **{k: make(g) for k, make in changes.items()}) for g in groups))


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        (lambda g: replace(g, groups=()), "gave Groups that are none"),
        (lambda g: replace(g, groups=[3]), "gave Groups with a int among them, not a Group"),
        (lambda g: replace(g, groups=(*g, *g)), r"gave Groups that have `.*` twice"),
        (lambda g: many(g, size=lambda one: one.size + 1), r"gave Groups whose `.*` says (\d+) channels, of \d+"),
        (
            lambda g: many(g, members=lambda one: [replace(one.members[0], parameter="nobody")]),
            r"gave Groups whose `.*` has nobody\[0\], which this network has not",
        ),
        (
            lambda g: many(g, members=lambda one: [replace(one.members[0], axis=9)]),
            r"gave Groups whose `.*` has .*\[9\], which this network has not",
        ),
        (lambda g: Losses([1.0]), "gave Losses that are a list, not a mapping by group"),
        (lambda g: Losses({"nobody": {1: 0.0}}), "gave Losses that name `nobody`, which is no group"),
        (lambda g: Losses({one.name: {1: 0.0} for one in g}), r"gave Losses that have none of `stem` at 2 of \d+ ch"),
        (lambda g: Order([3]), "gave an Order whose sinks are a list, not a mapping by op"),
    ],
)
def test_other_facts_are_refused_at_once_too(program, fact, message):
    made = fact(program.fact(Groups))

    @dataclass(frozen=True)
    class Gives(Pass):
        name = "gives_it"
        gives = (type(made),)

        def run(self, program):
            return program.learn(made)

    with pytest.raises(RecipeError, match=f"in `gives_it` after `group`: `gives_it` {message}"):
        run_pass(Gives(), program)


def test_idle_channels_are_kept_ones(program):
    group = program.fact(Groups).groups[0]
    with pytest.raises(RecipeError, match=r"whose blank of .* has channels that are not kept"):
        gp.run("propagate", program.learn(Keep({group.name: [0, 1]}, {group.name: [2]})))


@pytest.mark.parametrize("kind", [list, tuple, np.uint8])
def test_lists_will_do(program, kind):
    group = program.fact(Groups).groups[0]
    own = np.array([2, 0], kind) if kind is np.uint8 else kind((2, 0))
    done = gp.run("propagate", program.learn(Keep({group.name: own})))
    want = gp.run("propagate", program.learn(Keep({group.name: np.array([2, 0])})))
    assert done.plan["parameters"] == want.plan["parameters"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda score: score[:-1], r"\d+ numbers for \d+ channels"),
        (lambda score: np.where(np.arange(len(score)) < 2, np.nan, score), "2 NaN among"),
        (lambda score: [str(x) for x in score], "not numbers"),
        (None, "Scores that have none of"),
    ],
)
def test_scores_that_say_nothing_are_refused(program, change, message):
    scores = {group.name: np.ones(group.size) for group in program.fact(Groups)}
    first = next(iter(scores))
    if change:
        scores[first] = change(scores[first])
    else:
        del scores[first]
    with pytest.raises(RecipeError, match="given with Scores that .*" + message if change else message):
        gp.run("mask{channels=0.5x}", program.learn(Scores("mine", scores)))


def test_lists_of_scores_will_do_and_say_which_pass_makes_them_again(program):
    @dataclass(frozen=True)
    class Even(Pass):
        name = "even"
        needs = (Groups,)
        gives = (Scores,)

        def run(self, program):
            return program.learn(Scores("even", {group.name: [1.0] * group.size for group in program.fact(Groups)}))

    scores = run_pass(Even(), program).fact(Scores)
    assert scores.made == "even"
    assert all(isinstance(score, np.ndarray) for score in scores.scores.values())


def test_facts_that_no_longer_fit_newly_found_groups_are_refused():
    program = run(Recipe.parse("group"), nets.program("Residual"))
    groups = program.fact(Groups)
    name = next(iter(groups)).name
    kept = program.learn(Keep({name: np.array([1, 2])}))
    with pytest.raises(RecipeError, match=f"found other groups than those of a Keep that names `{re.escape(name)}`"):
        run(Recipe.parse(f"group{{freeze={name}}}"), kept)
    assert run(Recipe.parse("group"), kept).knows(Keep)


def test_other_numbers_are_no_longer_those_of_the_pass():
    scored = run(Recipe.parse("group,score"), nets.program("Residual"))
    scores = scored.fact(Scores)
    assert scores.made and not replace(scores, scores=dict(scores.scores)).made


def spoil(program):
    """Edits the model that it was given."""
    name = next(iter(program.graph.parameters))
    program.host.set_parameter(name, program.host.parameter(name) * 2)
    return program


def remove(program):
    program.host.remove(next(op for op in program.graph.ops if op.kind == "pointwise"))
    return program


@pytest.mark.parametrize("kind", [Does, Rewrites])
@pytest.mark.parametrize(("does", "what"), [(spoil, r"`.*`"), (remove, "its ops")])
def test_a_model_that_was_given_is_not_edited(program, kind, does, what):
    mine = replace(program, host=program.host.copy())
    with pytest.raises(RecipeError, match=rf"pass `does` \(.*\) changed {what} of the model that it was given"):
        run_pass(kind(does), mine)


def test_a_pass_gives_what_it_says_and_no_more(program):
    group = program.fact(Groups).groups[0]
    with pytest.raises(RecipeError, match=r"pass `does` \(.*Does\) gave Keep and says that it gives nothing") as caught:
        run_pass(Does(lambda program: program.learn(Keep({group.name: [0]}))), program)
    assert caught.value.hint == "set gives = (Keep,)"
    with pytest.raises(RecipeError, match="gave Groups and says that it gives Keep"):
        run_pass(Keeps(lambda p: p.learn(Keep({})).learn(replace(p.fact(Groups), made=""))), program)
