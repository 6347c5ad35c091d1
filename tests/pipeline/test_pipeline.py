"""Recipes as text and TOML, what is checked before any weight moves, plug-ins, determinism."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

import nets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.allocation import METHODS as ALLOCATIONS
from graphprune.allocation import methods
from graphprune.backends.target import target
from graphprune.backends.tvm.target import Tvm
from graphprune.calibration.batches import batches
from graphprune.compensation import METHODS as COMPENSATIONS
from graphprune.cost.units import UNITS
from graphprune.criteria import CRITERIA, criteria
from graphprune.criteria.branches import METHODS as BRANCHES
from graphprune.criteria.ranks import RANKS
from graphprune.errors import GraphpruneError, RecipeError
from graphprune.ir.facts import Groups, Keep, Scores
from graphprune.pipeline import base
from graphprune.pipeline.base import Pass, passes
from graphprune.pipeline.recipe import Recipe, make
from graphprune.pipeline.run import run
from graphprune.report.listing import entry

ROOT = Path(__file__).parents[2]


# ---- text and TOML -----------------------------------------------------------------------------------

PASSES = [
    *"branches compensate dead factor fold group loosen mask".split(),
    *"propagate reorder rms rotate score tokens vocabulary".split(),
]
SHARES = st.floats(0.01, 0.99).map(lambda x: f"{x:.3g}x")
OPTIONS = {
    "rms": {"untie": st.booleans()},
    "rotate": {"untie": st.booleans(), "per": st.sampled_from(["stream", "block"])},
    "vocabulary": {
        "occurs": st.integers(1, 9),
        "size": st.sampled_from(["", "0.5x", "1000"]),
        "keep": st.sampled_from(["", "0-2,7", "5"]),
        "unknown": st.integers(-1, 9),
        "fill": st.sampled_from(["mean", "-inf", "-12.5"]),
        "embedding": st.sampled_from(["", "embed.weight"]),
    },
    "tokens": {
        "keep": st.sampled_from(["0.5x", "1x", "12"]),
        "after": st.sampled_from(["1", "4"]),
        "by": st.sampled_from(["attention", "flow", "random"]),
        "places": st.sampled_from(["", "0-11"]),
    },
    "factor": {
        "layers": st.sampled_from(["*", "fc|layer1.*"]),
        "by": st.sampled_from(["weights", "data"]),
        "orders": st.sampled_from(["least", "kernel", "point", "separable"]),
        "share": st.sampled_from(["least", "all", "none"]),
    },
    "group": {
        "normalised": st.booleans(),
        "freeze": st.sampled_from(["", "stem", "layer1.*|fc", "a[0]"]),
        "only": st.sampled_from(["", "stem", "layer1.*|fc"]),
        "places": st.sampled_from(["", "stream", "inner|heads"]),
        "states": st.sampled_from(["", "h", "state*|c"]),
    },
    "branches": {
        "of": st.sampled_from(["branch", "block", "attention", "other"]),
        "span": st.integers(1, 9),
        "keep": st.sampled_from(["", "first:4,last:2", "blocks.1.*"]),
        "alone": st.booleans(),
    },
    "score": {
        "branches": st.sampled_from(sorted(BRANCHES)),
        "ranks": st.sampled_from(sorted(RANKS)),
        "by": st.sampled_from(sorted(CRITERIA)),
        "over": st.sampled_from(["all", "writers", "readers"]),
        "combine": st.sampled_from(["mean", "sum", "max"]),
        "normalize": st.sampled_from(["mean", "standard", "none"]),
    },
    "loosen": {"writers": st.booleans()},
    "mask": {
        "allocate": st.sampled_from(sorted(ALLOCATIONS)),
        "of": st.sampled_from(["now", "given"]),
        "floor": st.floats(0, 1).map(lambda x: round(x, 6)),
        "width": st.sampled_from(["", "stem=24", "a.*=0.5x|b=3"]),
        "grain": st.integers(1, 64),
        "unconstrained": st.sampled_from(["no", "readers", "both", "mixed"]),
        "target": st.sampled_from(["", "torch", "onnx", "tvm"]),
        "alike": st.sampled_from(["no", "layers"]),
    },
    "reorder": {
        "target": st.sampled_from(["", "torch", "onnx", "tvm"]),
        "prices": st.sampled_from(["", "prices.json"]),
        "menu": st.sampled_from(["view", "view|gather", "view|gather|widen|sink|constrain"]),
        "order": st.sampled_from(["best", "upscale", "given"]),
    },
    "propagate": {},
    "fold": {},
    "compensate": {"by": st.sampled_from(sorted(COMPENSATIONS)), "bias": st.booleans()},
    "dead": {"constant": st.booleans()},
}


@st.composite
def steps(draw):
    name = draw(st.sampled_from(sorted(OPTIONS)))
    chosen = {key: draw(values) for key, values in OPTIONS[name].items() if draw(st.booleans())}
    if name == "mask":
        chosen[draw(st.sampled_from(["channels", "params", "macs"]))] = draw(SHARES)
    with suppress(RecipeError):  # of options that do not go together, some are left out
        return make(name, chosen)
    return make(name, {key: value for key, value in chosen.items() if key not in ("alike", "bias", "of", "size")})


@given(st.lists(steps(), min_size=1, max_size=6))
def test_recipes_round_trip(made):
    recipe = Recipe(tuple(made))
    assert Recipe.parse(recipe.text()) == recipe
    assert Recipe.from_toml(recipe.toml()) == recipe
    assert Recipe.parse(recipe.text()).text() == recipe.text()


def test_every_option_of_every_pass_is_tried_above():
    for name, kind in passes().items():
        budgets = set(UNITS) if name == "mask" else set()
        assert {field.name for field in fields(kind)} == set(OPTIONS[name]) | budgets


def test_every_option_of_every_pass_says_what_it_means():
    """What is listed is the comment on the field's own line."""
    silent = [
        (name, one["name"]) for name, kind in passes().items() for one in entry(kind)["options"] if not one["help"]
    ]
    assert not silent


def test_canonical_text_leaves_out_defaults():
    text = " group{normalised=False} , score{by=l2  over=all},mask{ macs=0.5x grain=8 floor=0.1 } ,propagate "
    assert Recipe.parse(text).text() == "group,score,mask{macs=0.5x grain=8},propagate"


def test_a_whole_number_has_one_text():
    """Which is what records of tuning are found by."""
    assert Tvm(growth=3).text() == Tvm(growth=3.0).text() == target("cpu{growth=3}").text() == "tvm{growth=3}"


def test_toml_as_a_person_writes_it():
    recipe = Recipe.from_toml(
        '[[pass]]\nname = "group"\nnormalised = true\n[[pass]]\nname = "mask"\nmacs = "0.5x"\nfloor = 0\n'
    )
    assert recipe.text() == "group{normalised=true},mask{macs=0.5x floor=0}"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("grup", "unknown pass `grup`", "did you mean `group`?"),
        (
            "xyzzy",
            "unknown pass `xyzzy`",
            f"known: {', '.join(PASSES)}",
        ),
        ("group{normalized=true}", "`group` has no option `normalized`", "did you mean `normalised`?"),
        ("fold{x=1}", "`fold` has no option `x`", "it has none"),
        ("group{normalised=maybe}", "`group`: option `normalised` takes a bool, not `maybe`", ""),
        ("mask{macs=0.5x grain=1.5}", "`mask`: option `grain` takes a int, not `1.5`", ""),
        ("mask{macs=0.5x floor=low}", "option `floor` takes a float, not `low`", ""),
        ("group{freeze}", "`group`: cannot read option `freeze`", "option=value"),
        ("group{freeze=}", "cannot read option `freeze=`", "option=value"),
        ("mask{macs=0.5x grain=4 macs=0.2x}", "`mask`: option `macs` is given twice: 0.5x and 0.2x", "leave one out"),
        ("", "cannot read the recipe at ``", "group,score"),
        ("group;score", "cannot read the recipe at `group;score`", "group,score"),
        ("group,,score", "cannot read the recipe at `,score`", "group,score"),
        ("group{", "cannot read the recipe", "group,score"),
    ],
)
def test_errors_of_text(text, message, hint):
    with pytest.raises(RecipeError) as error:
        Recipe.parse(text)
    assert message in error.value.message
    assert hint in (error.value.hint or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[pass]", "the recipe is not TOML"),
        ("", "a recipe file holds [[pass]] tables, not nothing"),
        ("[[step]]\nname='group'", "not ['step']"),
        ("pass = 3", "a recipe file holds [[pass]] tables"),
        ("pass = [1]", "a recipe file holds [[pass]] tables"),
        ("[[pass]]\nby='l1'", "unknown pass ``"),
        ("[[pass]]\nname='mask'\nmacs='0.5x'\ngrain=1.5", "option `grain` takes a int, not `1.5`"),
        ("[[pass]]\nname='mask'\nmacs='0.5x'\ngrain=true", "option `grain` takes a int, not `True`"),
        ("[[pass]]\nname='group'\nfreeze=['a']", "option `freeze` takes a str, not `['a']`"),
    ],
)
def test_errors_of_toml(text, message):
    with pytest.raises(RecipeError) as error:
        Recipe.from_toml(text)
    assert message in str(error.value)


# ---- checking ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("mask{macs=0.5x}", "step 1 `mask` needs Groups, which no earlier step gives", "put `group` before it"),
        ("group,mask{macs=0.5x}", "step 2 `mask` needs Scores, which no earlier step gives", "put `score` before it"),
        ("group,score,propagate", "step 3 `propagate` needs Keep, which no earlier step gives", "put `mask` before it"),
        ("group,score,mask{macs=0.5x},propagate,propagate", "step 5 `propagate` needs Groups", "put `group` before it"),
        ("group,fold,score", "step 3 `score` needs Groups", "put `group` before it"),
        ("group,score{by=wifv}", "step 2 `score{by=wifv}` needs calibration data", "--data FILE"),
    ],
)
def test_a_recipe_is_checked_whole_before_anything_runs(text, message, hint):
    program, began = nets.program("MLP"), []
    with pytest.raises(RecipeError) as error:
        run(Recipe.parse(text), program, progress=lambda *what: began.append(what))
    assert message in error.value.message and hint in error.value.hint
    assert not began


def test_facts_that_are_known_count():
    program = run(Recipe.parse("group,score"), nets.program("MLP"))
    assert program.knows(Groups) and program.knows(Scores)
    done = run(Recipe.parse("mask{channels=0.5x},propagate"), program)
    assert not done.knows(Keep)
    with pytest.raises(RecipeError, match="Keep is not known here"):
        done.fact(Keep)


def test_an_error_names_the_passes_that_ran():
    with pytest.raises(GraphpruneError, match=r"^in `mask\{macs=0.01x floor=0.9\}` after `group,score`: a budget"):
        run(Recipe.parse("group,score,mask{macs=0.01x floor=0.9}"), nets.program("MLP"))


def test_programs_never_change_and_history_says_what_ran():
    program = nets.program("MLP")
    before = {name: program.host.parameter(name).tobytes() for name in program.graph.parameters}
    text = program.graph.text()
    done = run(Recipe.parse("group,score,mask{channels=0.5x},propagate,fold"), program)
    assert [step.text for step in done.history] == ["group", "score", "mask{channels=0.5x}", "propagate", "fold"]
    assert all(step.seconds >= 0 and step.ops > 0 for step in done.history)
    params = [step.params for step in done.history]
    assert params[0] == params[2] > params[3]
    assert {name: program.host.parameter(name).tobytes() for name in program.graph.parameters} == before
    assert program.history == () and program.graph.text() == text != done.graph.text()


def test_progress_is_told_of_every_step():
    told = []
    run(Recipe.parse("group,score"), nets.program("MLP"), progress=lambda *what: told.append(what))
    assert told == [("group", 0, 2), ("score", 1, 2), ("done", 2, 2)]


def test_progress_moves_within_steps_that_read_data_and_never_falls():
    program = nets.program("Residual")
    x = np.random.default_rng(0).standard_normal((80, *program.host.example()[0].shape[1:]))
    program = replace(program, data=batches(x, program.graph.inputs))
    told = []
    steps = "group,score{by=obs},mask{macs=0.6x allocate=rd},propagate,compensate"
    run(Recipe.parse(steps), program, progress=lambda *what: told.append(what))
    (whole,) = {total for _, _, total in told}
    done = [done for _, done, _ in told]
    assert done == sorted(done) and done[0] == 0 and done[-1] == whole
    begun = {what: done for what, done, _ in told if what in steps}
    for step in ("score{by=obs}", "mask{macs=0.6x allocate=rd}"):
        later = min((k for k in [*begun.values(), whole] if k > begun[step]), default=whole)
        assert sum(begun[step] < k < later for k in done) >= 2
        assert later - begun[step] > 10 * begun["score{by=obs}"]  # `group` needs no data


def test_telling_progress_changes_nothing():
    """What one run learned, the next one uses: facts are about one reading of the graph."""

    def kept(progress):
        scored = run(Recipe.parse("group,score"), nets.program("MLP"), progress)
        done = run(Recipe.parse("mask{macs=0.5x},propagate"), scored, progress)
        return done.plan, done.history[-1].params < done.history[0].params

    assert kept(lambda *_: None) == kept(None)
    assert kept(None)[1]


@dataclass(frozen=True)
class Nothing(Pass):
    """A pass of someone's own, without registering it anywhere."""

    name = "nothing"
    gives = (Keep,)

    times: int = 2

    def run(self, program):
        return program.learn(Keep({})).note(f"{self.times} times nothing")


def test_a_pass_can_be_used_without_a_name():
    done = run(Recipe((Nothing(times=3),)), nets.program("MLP"))
    assert done.notes == ("3 times nothing",)
    assert done.history[0].text == "nothing{times=3}"


def test_every_pass_is_documented_and_all_its_options_have_defaults():
    for name, kind in passes().items():
        assert kind.name == name and kind.__doc__
        assert all(field.default is not MISSING for field in fields(kind))


# ---- plug-ins ----------------------------------------------------------------------------------------

USE = """
import json, torch
import graphprune as gp
from graphprune.coupling.groups import find_groups
from graphprune.ir.facts import Keep
from graphprune.pipeline.base import passes

import graphprune_tiny

program = gp.load(graphprune_tiny.Net().eval(), (torch.randn(2, 3, 4, 4),))
print("groups", json.dumps({group.name: group.size for group in find_groups(program.graph)}))
done = gp.run("group,score_by_position{reverse=true},mask{channels=0.6x},propagate,negate", program)
print("keep", json.dumps(done.plan["steps"][0]["keep"]))
print("error", max(check.error for check in gp.verify(done)))
import tempfile
from pathlib import Path
from graphprune.pipeline.plan_file import write_plan
folder = Path(tempfile.mkdtemp())
write_plan(folder, done.plan)
again = gp.apply(folder / "plan.json", program)
print("edits", [edit.kind for edit in again.plan.edits], torch.equal(again.model.out.bias, -program.model.out.bias))
from graphprune.backends.target import target
made = target("tiny{shout=true}")
print("target", made.text())
chosen = gp.run("group,score{by=first},mask{channels=0.2x allocate=three}", program)
print("chosen", json.dumps({name: at.tolist() for name, at in chosen.facts[Keep].keep.items()}))
from graphprune.criteria.branches import METHODS as BRANCHES
from graphprune.criteria import CRITERIA, criteria
from graphprune.allocation import METHODS, methods
print("ours", criteria()["l2"] is CRITERIA["l2"] and methods()["uniform"].counts is METHODS["uniform"])
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The folder that pip installs tests/plugin into; nothing comes from a network."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    copy = tmp_path_factory.mktemp("source") / "plugin"
    subprocess.run(["cp", "-r", str(ROOT / "tests" / "plugin"), str(copy)], check=True)
    subprocess.run([*command, "--disable-pip-version-check", "--target", str(folder), str(copy)], check=True)
    return folder


def python(code, *paths, **environment):
    paths = os.pathsep.join([*map(str, paths), str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_package_brings_passes_an_edit_a_rule_a_target_a_criterion_and_an_allocation(plugin):
    out = dict(line.split(" ", 1) for line in python(USE, plugin).strip().splitlines())
    assert out["groups"] == '{"conv": 5}'  # the rule of tiny::scale; without it, its channels are frozen
    assert out["keep"] == '{"conv": [2, 3, 4]}'
    assert float(out["error"]) <= 1e-12
    assert out["edits"] == "['cut', 'negated'] True"
    assert out["target"] == "tiny{shout=true}"
    assert out["chosen"] == '{"conv": [0, 1, 2]}'  # by a criterion and an allocation of its own
    assert out["ours"] == "True"  # what has the name of a built-in one replaces nothing


def test_without_the_package_there_is_none_of_it():
    code = """
from graphprune.pipeline.base import passes
from graphprune.ops.rules import table
print(sorted(passes()), "tiny.scale.default" in table())
"""
    assert python(code) == f"{PASSES} False\n"


@pytest.mark.parametrize(
    "text",
    [
        "a=" + "[" * 20000 + "]" * 20000,
        "a=" + "{a=" * 2000 + "1" + "}" * 2000,
        '[[pass]]\nname="mask"\ngrain=' + "9" * 6000,
    ],
    ids=["arrays", "tables", "digits"],
)
def test_recipe_files_that_are_too_deep_or_too_long_are_refused(text):
    with pytest.raises(RecipeError, match="the recipe is not TOML"):
        Recipe.from_toml(text)


def test_white_space_costs_no_more_than_its_length():
    used = time.process_time()
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        Recipe.parse("group" + " " * 100_000 + "!")
    assert time.process_time() - used < 5  # a pattern that tries every split takes a minute


# ---- determinism -------------------------------------------------------------------------------------

SAME = """
import hashlib, sys, tempfile
import numpy as np
from pathlib import Path
import nets
from dataclasses import replace
from graphprune.calibration.batches import batches
from graphprune.ir.facts import Groups
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import run
from graphprune.pipeline.plan_file import write_plan
digest = hashlib.sha256()
for name in ("Residual", "Dense", "CrossedSums", "Packed", "GroupedQuery"):
    program = nets.program(name)
    rng = np.random.default_rng(0)
    data = [rng.standard_normal(x.shape) for x in program.host.example()]
    program = replace(program, data=batches(data, program.graph.inputs))
    done = run(Recipe.parse("group,score{by=wifv},mask{macs=0.5x allocate=global},propagate,compensate,fold"), program)
    with tempfile.TemporaryDirectory() as folder:
        write_plan(Path(folder), done.plan)
        for path in sorted(Path(folder).iterdir()):
            digest.update(path.name.encode() + path.read_bytes())
    for key, tensor in done.model.state_dict().items():
        digest.update(key.encode() + tensor.numpy().tobytes())
    groups = run(Recipe.parse("group"), program).facts[Groups]
    digest.update(repr([(group.name, list(map(str, group.members))) for group in groups]).encode())
    digest.update(done.graph.text().encode())
print(digest.hexdigest())
"""


def test_the_same_program_whatever_the_hash_seed():
    digests = {python(SAME, PYTHONHASHSEED=seed).strip() for seed in ("0", "1")}
    assert len(digests) == 1
    assert re.fullmatch("[0-9a-f]{64}", digests.pop())
    assert hashlib.sha256().hexdigest() not in digests


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (passes, r"pass `mine` \(a:b\) is a int, not a type"),
        (criteria, r"criterion `mine` \(a:b\) is a int, not a Criterion"),
        (methods, r"allocation `mine` \(a:b\) is a int, not a Method"),
    ],
)
def test_a_plug_in_that_is_something_else_is_named(monkeypatch, read, message):
    class Entry:
        name, value = "mine", "a:b"

        def load(self):
            return 3

    monkeypatch.setattr(base, "entry_points", lambda group: [Entry()])
    with pytest.raises(RecipeError, match=message):
        read.__wrapped__()
