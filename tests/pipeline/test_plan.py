"""The plan: what is read is what was written; what is no plan, or another model's, is refused with its place."""

from __future__ import annotations

import contextlib
import copy
import json
import mmap
from dataclasses import dataclass, replace
from functools import cache

import branches
import nets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file
from torch import nn

import graphprune as gp
from graphprune.compensation import lsq, no_worse
from graphprune.errors import RecipeError
from graphprune.ir.program import Edit
from graphprune.pipeline import edits
from graphprune.pipeline.base import Pass
from graphprune.pipeline.correction import Correct
from graphprune.pipeline.edits import Cut, Reindex
from graphprune.pipeline.fingerprint import fingerprint
from graphprune.pipeline.plan_file import read_plan, write_plan
from graphprune.pipeline.plan_reader import as_plan
from graphprune.pipeline.replay import replay
from graphprune.pipeline.run import Rewrite

RECIPE = "group,score,mask{channels=0.6x unconstrained=both},reorder,propagate,compensate{by=mean},fold"


@cache
def made():
    """A program whose plan has an edit of every kind."""
    program = branches.program("residual")
    return gp.run(RECIPE, replace(program, data=[program.host.example()]))


def source():
    return replace(made(), host=made().source, plan=type(made().plan)(), history=(), notes=())


def document():
    """The plan as plan.json has it."""
    return json.loads(json.dumps({"version": 2, **made().plan}))


# ---- what is written is read --------------------------------------------------------------------------


def test_every_kind_of_edit_is_in_the_plan_and_reads_like_the_file():
    plan = made().plan
    assert [type(edit) for edit in plan.edits] == [Reindex, Cut, Correct, Rewrite]
    assert [step["edit"] for step in plan["steps"]] == ["reindex", "cut", "correct", "rewrite"]
    assert [step["pass"].partition("{")[0] for step in plan["steps"]] == ["loosen", "propagate", "compensate", "fold"]
    assert set(plan) == {"parameters", "steps", "segments", "fingerprint"} == set(document()) - {"version"}
    assert plan.get("nothing") is None and "nothing" not in plan
    assert gp.load(nn.Linear(2, 2), torch.zeros(1, 2)).plan == {}


def test_a_plan_that_was_written_is_the_plan(tmp_path):
    write_plan(tmp_path, replace(made().plan, about={"model": "net", "recipe": RECIPE, "seed": 3}))
    again = read_plan(tmp_path / "plan.json")
    assert again.edits == made().plan.edits == as_plan(dict(made().plan)).edits
    assert again.parameters == made().plan.parameters and again.fingerprint == made().plan.fingerprint
    assert again.about["seed"] == 3
    done = gp.apply(tmp_path / "plan.json", source())
    assert done.notes == () and done.graph.text() == made().graph.text()
    for name in done.graph.parameters:
        assert done.host.parameter(name).tobytes() == made().host.parameter(name).tobytes(), name
    assert max(check.error for check in gp.verify(done)) <= 1e-12


def test_fitted_weights_are_as_open_to_others_as_the_plan(tmp_path):
    program = nets.program("MLP")
    done = gp.run(
        "group,score,mask{channels=0.5x},propagate,compensate", replace(program, data=[program.host.example()])
    )
    write_plan(tmp_path, done.plan)
    text, weights = tmp_path / "plan.json", tmp_path / "plan.safetensors"
    assert weights.stat().st_mode == text.stat().st_mode


def test_version_1_is_read_with_a_note(tmp_path):
    old = document()
    old["version"] = 1
    del old["fingerprint"]
    for step in old["steps"]:
        del step["edit"]
    old["steps"][-1] = {"pass": "fold"}
    (tmp_path / "plan.json").write_text(json.dumps(old))
    done = gp.apply(tmp_path / "plan.json", source())
    assert done.plan.edits == made().plan.edits
    assert [note for note in done.notes if "does not say which weights" in note]
    assert done.plan.fingerprint == made().plan.fingerprint


# ---- the weights it was made from -----------------------------------------------------------------------


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def test_the_fingerprint_is_of_names_shapes_dtypes_and_bytes():
    prints = {fingerprint(gp.load(one, X)) for one in (net(0), net(0).train(), copy.deepcopy(net(0)))}
    assert len(prints) == 1
    module = net(0)
    module[0].bias.data[3] += 1e-7
    renamed = nn.Sequential(*[nn.Identity(), *net(0)])
    others = [gp.load(one, X) for one in (net(1), module, renamed)] + [gp.load(net(0).double(), X.double())]
    assert len(prints | {fingerprint(one) for one in others}) == 5


def test_the_order_of_the_weights_does_not_matter():
    program = gp.load(net(0), X)
    turned = copy.copy(program.graph)
    turned.parameters = dict(reversed(program.graph.parameters.items()))
    other = replace(program)
    other.__dict__["graph"] = turned
    assert fingerprint(other) == fingerprint(program)


def test_other_weights_are_refused_unless_allowed():
    plan = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(net(0), X)).plan
    with pytest.raises(RecipeError, match="made from other weights") as error:
        gp.apply(plan, net(1), X)
    assert "--allow-other-weights" in str(error.value)
    done = gp.apply(plan, net(1), X, allow_other_weights=True)
    assert any("made from other weights" in note for note in done.notes)
    kept = plan["parameters"]["0.weight"]["0"]["keep"]
    assert torch.equal(done.model.get_parameter("0.weight"), net(1)[0].weight[kept])
    assert max(check.error for check in gp.verify(done)) <= 1e-12
    assert gp.apply(done, net(1), X).notes == ()  # its plan is one of these weights now


def test_other_weights_are_refused_in_place_too():
    program, other = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(net(0), X)), net(1)
    with pytest.raises(RecipeError, match="made from other weights"):
        gp.apply(program, other, in_place=True)
    assert other[0].weight.shape == (8, 4)
    gp.apply(program, other, in_place=True, allow_other_weights=True)
    assert other[0].weight.shape == (4, 4)


@pytest.mark.parametrize("by", ["lsq", "mean"])
def test_what_was_fitted_to_other_weights_is_refused_whatever_is_allowed(by):
    program = gp.load(net(0), X, data=np.asarray(torch.randn(20, 4)))
    plan = gp.run(f"group,score,mask{{channels=0.5x}},propagate,compensate{{by={by}}}", program).plan
    assert gp.apply(plan, net(0), X).notes == ()
    for allowed in (False, True):
        with pytest.raises(RecipeError, match="fitted to those"):
            gp.apply(plan, net(1), X, allow_other_weights=allowed)


def test_a_second_run_keeps_the_fingerprint_of_the_source():
    program = gp.load(net(0), X)
    once = gp.run("group,score,mask{channels=0.5x},propagate", program)
    twice = gp.run("group,score,mask{channels=0.5x},propagate,fold", once)
    assert twice.plan.fingerprint == once.plan.fingerprint == fingerprint(program)


# ---- what is no plan ------------------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000

TEXTS = {
    "nothing": "",
    "a list": "[]",
    "a number": "1",
    "null": "null",
    "no object": "{}",
    "bytes": "\x00",
    "half of it": '{"version": 2, "steps": [',
    "version 0": '{"version": 0, "steps": []}',
    "version 3": '{"version": 3, "steps": []}',
    "version true": '{"version": true, "steps": []}',
    "version 2.0": '{"version": 2.0, "steps": []}',
    "version as text": '{"version": "2", "steps": []}',
    "no steps": '{"version": 2}',
    "steps null": '{"version": 2, "steps": null}',
    "steps an object": '{"version": 2, "steps": {}}',
    "steps of steps": '{"version": 2, "steps": [[]]}',
    "a name twice": '{"version": 2, "steps": [], "steps": []}',
    "a name of its own": '{"version": 2, "steps": [], "extra": 1}',
    "deep": DEEP,
    "deep steps": f'{{"version": 2, "steps": {DEEP}}}',
    "deep segments": '{"version": 2, "steps": [], "segments": [{"a": ' + "[" * 500 + "]" * 500 + "}]}",
    "a number of 5000 digits": f'{{"version": 2, "steps": [], "seed": {"9" * 5000}}}',
    "weights without a file": '{"version": 2, "steps": [{"edit": "correct", "bias": {}, "weights": {"names": []}}]}',
    "weights of elsewhere": '{"version": 2, "steps": [{"edit": "correct", "bias": {}, '
    '"weights": {"file": "/etc/passwd", "names": []}}]}',
    "weights that are not there": '{"version": 2, "steps": [{"edit": "correct", "bias": {}, '
    '"weights": {"file": "plan.safetensors", "names": ["w"]}}]}',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_text_that_is_no_plan_is_refused(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(RecipeError, match=r"plan\.json|plan\.safetensors"):
        gp.apply(tmp_path / "plan.json", source())


KEEP = ("steps", 1, "keep", "stem")
GROUP = ("steps", 1, "keep", "blocks.0.0")
BLANK = ("steps", 1, "blank", "blocks.0.3")
AXIS = ("parameters", "stem.weight", "0")
SITE = ("steps", 0, "reindex", 0)


class Odd:
    """What no JSON has, under the same name in every process."""

    def __repr__(self) -> str:
        return "odd"


GONE = Odd()

MAPPINGS = [  # (where, what is put there, what the error says)
    ((), 5, "not a mapping"),
    ((), [], "not a mapping"),
    ((), "plan", "plan"),
    ((), {}, "`steps` is missing"),
    ((), {3: 4}, "is not text"),
    (("version",), 1, r"steps\[0\].edit: there is no such name in version 1"),
    (("version",), 0, "version: 0"),
    (("version",), None, "version: None"),
    (("steps",), None, "steps: None is not a list"),
    (("steps",), {}, "steps: {} is not a list"),
    (("steps",), "cut", "steps: 'cut' is not a list"),
    (("steps",), [None], r"steps\[0\]: None is not a mapping"),
    (("steps",), [{}], r"steps\[0\]: `edit` is missing"),
    (("steps",), [{"edit": "rewrite", "name": "fold", "options": {}}] * 1001, "1001 entries"),
    (("steps", 1, "edit"), "slice", "unknown 'slice'"),
    (("steps", 1, "edit"), 1, "1 is not text"),
    (("steps", 1, "edit"), GONE, r"steps\[1\]: `edit` is missing"),
    (("steps", 1, "edit"), "correct", r"steps\[1\]: unknown name 'keep'"),
    (("steps", 1, "pass"), "group", r"steps\[1\].pass: `group` is no pass that cuts"),
    (("steps", 1, "pass"), "propagate,propagate", "is no pass that cuts"),
    (("steps", 1, "pass"), "", "pass"),
    (("steps", 1, "pass"), "}{", "cannot read the recipe"),
    (("steps", 1, "pass"), ["propagate"], "is not text"),
    (("steps", 1, "extra"), 1, r"steps\[1\]: unknown name 'extra'"),
    (("steps", 1, "keep"), GONE, r"steps\[1\]: `keep` is missing"),
    (("steps", 1, "keep"), [], r"steps\[1\].keep: \[\] is not a mapping"),
    (("steps", 1, "keep"), {"ghost": [0]}, "is not kept"),
    (KEEP, [], r"steps\[1\].keep.stem: an empty list"),
    (KEEP, None, "keep.stem: None is not a list"),
    (KEEP, 3, "keep.stem: 3 is not a list"),
    (KEEP, "0123", "is not a list"),
    (KEEP, {"0": 1}, "is not a list"),
    (KEEP, [0, -1], r"keep.stem\[1\]: -1 is not a position"),
    (KEEP, [0, 1.0], r"keep.stem\[1\]: 1.0 is not a position"),
    (KEEP, [0.5], r"keep.stem\[0\]: 0.5"),
    (KEEP, [True, 1], r"keep.stem\[0\]: True"),
    (KEEP, [0, None], r"keep.stem\[1\]: None"),
    (KEEP, ["0"], r"keep.stem\[0\]: '0'"),
    (KEEP, [[0]], r"keep.stem\[0\]: \[0\]"),
    (KEEP, [float("nan")], "nan is not a position"),
    (KEEP, [0, 10], "keeps channel 10 of `stem`, which has 10"),
    (KEEP, [2**31], "is not a position"),
    (KEEP, [10**40], "is not a position"),
    (KEEP, [2], "disagree|takes channel"),
    (KEEP, np.zeros((2, 2), np.int64), "is not a list"),
    (KEEP, np.array([0.5]), "is not a list"),
    (GROUP, [0, 0, 1], "keeps a channel of `blocks.0.0` twice"),
    (("steps", 1, "keep", "ghost"), [0], "`ghost`, which this model does not have"),
    (BLANK, [99], r"blank\['blocks.0.3'\]\[0\]: 99 is not kept"),
    (BLANK, [0, 0], "0 is there already"),
    (BLANK, [-1], "is not a position"),
    (BLANK, 0, "is not a list"),
    (("steps", 1, "blank"), {"ghost": [0]}, "0 is not kept"),
    (("steps", 1, "blank"), {"ghost": []}, "`ghost`, which this model does not have"),
    (("steps", 1, "sinks"), {"ghost": 1}, "`ghost` selects channels"),
    (("steps", 1, "sinks"), {"ghost": -1}, "sinks.ghost: -1"),
    (("steps", 1, "sinks"), {"ghost": 1.5}, "sinks.ghost: 1.5"),
    (("steps", 1, "sinks"), ["ghost"], "not a mapping"),
    (SITE, [], "a site"),
    (SITE, None, "not a list"),
    ((*SITE, 0), "ghost", "lets `ghost` choose"),
    ((*SITE, 0), 0, "is not text"),
    ((*SITE, 1), 7, "operand 7"),
    ((*SITE, 1), -1, r"reindex\[0\]\[1\]: -1"),
    ((*SITE, 2), 9, "along axis 9"),
    (SITE, ["linear", 0, 0, 1, False], "along axis 0"),  # the batch, which is open
    ((*SITE, 2), 1.0, "1.0 is not a whole number"),
    ((*SITE, 3), 0, "0 is not a whole number from 1"),
    ((*SITE, 3), 7, "in runs of 7"),
    ((*SITE, 4), 1, "is not true or false"),
    (("steps", 0, "reindex", 1), GONE, "."),
    (("steps", 0, "reindex"), [["a", 0, 1, 1, False]] * 2, "this site is there already"),
    (("steps", 0), GONE, "which this model does not have"),
    (("steps", 2, "bias"), None, "not a mapping"),
    (("steps", 2, "bias"), {"ghost": {"add": [1.0], "at": [0], "of": 1}}, "corrects `ghost`"),
    (("steps", 2, "bias", "linear", "add"), [], "0 numbers for"),
    (("steps", 2, "bias", "linear", "add", 0), float("nan"), r"add\[0\]: nan is not a finite number"),
    (("steps", 2, "bias", "linear", "add", 0), float("inf"), "inf is not a finite number"),
    (("steps", 2, "bias", "linear", "add", 0), "1", "'1' is not a number"),
    (("steps", 2, "bias", "linear", "add", 0), True, "True is not a number"),
    (("steps", 2, "bias", "linear", "add", 0), 10**400, "is not a finite number"),
    (("steps", 2, "bias", "linear", "at", 0), 1, "1 is there already"),
    (("steps", 2, "bias", "linear", "at", 0), 99, "place 99 of"),
    (("steps", 2, "bias", "linear", "of"), 10**10, "is not a whole number"),
    (("steps", 2, "bias", "linear", "of"), 0, "0 is not a whole number from 1"),
    (("steps", 2, "bias", "linear", "extra"), 0, "unknown name 'extra'"),
    (("steps", 2, "bias", "linear"), {"add": [1.0], "at": [0], "of": 1}, "corrects 1 outputs of head"),
    (("steps", 2, "bias"), {"relu": {"add": [1.0], "at": [0], "of": 1}}, "."),
    (("steps", 2, "weights"), {"ghost": np.zeros(3)}, "corrects `ghost`"),
    (("steps", 2, "weights"), {"stem.weight": np.zeros(3)}, r"`stem.weight` is \(3,\)"),
    (("steps", 2, "weights"), {"stem.weight": np.full(3, np.nan)}, "weights.*: 3 of its 3 numbers are NaN"),
    (("steps", 2, "weights"), {"stem.weight": [[1.0]]}, "is not a tensor of numbers"),
    (("steps", 2, "weights"), {"stem.weight": np.array(["a"])}, "is not a tensor of numbers"),
    (("steps", 2, "weights"), {"stem.weight": np.array([None])}, "is not a tensor of numbers"),
    (("steps", 3, "name"), "flod", r"steps\[3\]: unknown pass `flod`"),
    (("steps", 3, "name"), "group", "`group` is no pass that can be run again by itself"),
    (("steps", 3, "name"), "compensate", "is no pass that can be run again"),
    (("steps", 3, "name"), "mask", r"steps\[3\]"),
    (("steps", 3, "name"), None, "is not text"),
    (("steps", 3, "options"), {"hard": 1}, "`fold` has no option `hard`"),
    (("steps", 3, "options"), None, "not a mapping"),
    (("parameters",), [], "not a mapping"),
    (("parameters", "ghost"), {"0": {"role": "reader", "keep": [0]}}, "cuts `ghost`, which this model does not have"),
    (("parameters", "stem.weight"), [], "not a mapping"),
    (("parameters", "stem.weight", "-1"), {"role": "reader", "keep": [0]}, "'-1' is not the number of an axis"),
    (("parameters", "stem.weight", "x"), {"role": "reader", "keep": [0]}, "'x' is not the number of an axis"),
    (("parameters", "stem.weight", "9"), {"role": "reader", "keep": [0]}, "cuts axis 9 of `stem.weight`"),
    (AXIS, None, "not a mapping"),
    ((*AXIS, "role"), "owner", "role: unknown 'owner'"),
    ((*AXIS, "role"), GONE, "`role` is missing"),
    ((*AXIS, "keep"), [], "an empty list"),
    ((*AXIS, "keep"), [99], "keeps 99 of axis 0 of `stem.weight`"),
    ((*AXIS, "keep"), [0], "`parameters` and `steps` disagree"),
    ((*AXIS, "blank"), [99], "99 is not kept"),
    (("segments",), {}, "not a list"),
    (("segments",), [1], "not a mapping"),
    (("segments",), [{"a": Odd()}], "segments"),
    (("fingerprint",), "sha256:1234", "is not a fingerprint"),
    (("fingerprint",), 5, "is not text"),
    (("fingerprint",), "sha256:" + "0" * 64, "made from other weights"),
    (("seed",), "0", "seed"),
    (("model",), 1, "model"),
]


def put(content, where, what):
    """``content`` with something else at a place, or nothing there."""
    if not where:
        return what
    inside = content
    for key in where[:-1]:
        inside = inside[key]
    if what is GONE:
        del inside[where[-1]]
    else:
        inside[where[-1]] = what
    return content


@pytest.mark.parametrize(("where", "what", "message"), MAPPINGS, ids=lambda x: str(x)[:40])
def test_a_mapping_that_is_no_plan_is_refused_with_its_place(where, what, message):
    plan = put(document(), where, what)
    if isinstance(plan, str):
        plan = {"steps": plan}
    with pytest.raises(RecipeError, match=message):
        gp.apply(plan, source())


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("where", [("steps",), KEEP, ("parameters",), ("segments",), ("seed",)], ids=str)
def test_a_mapping_that_nests_without_end_is_refused(where):
    with pytest.raises(RecipeError):
        gp.apply(put(document(), where, nested(5000)), source())
    with pytest.raises(RecipeError, match="nests too deep"):
        gp.apply(put(document(), ("segments",), [{"a": nested(5000)}]), source())


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(-1, 12), max_size=5),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.just(GONE),
)


def places(value, where=()):
    yield where
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*where, key))


PLACES = st.deferred(lambda: st.sampled_from([where for where in places(document()) if where]))


@settings(max_examples=100)
@given(st.lists(st.tuples(PLACES, JUNK), min_size=1, max_size=2))
def test_whatever_stands_anywhere_is_read_or_refused(changes):
    plan = document()
    for where, what in changes:
        with contextlib.suppress(KeyError, IndexError, TypeError):  # what an earlier change took away
            plan = put(plan, where, what)
    try:
        done = gp.apply(plan, source())
    except RecipeError:
        return
    assert done.graph.text()


# ---- kinds of other packages ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale(Edit):
    """Every number of a parameter times ``by_what``."""

    kind = "scale"

    name: str
    factor: float

    def apply(self, program):
        host = program.host.copy()
        host.set_parameter(self.name, host.parameter(self.name) * self.factor)
        return program.rewrite(host, self)

    def masked(self, program, cut):
        return self.apply(program)

    def content(self):
        return {"name": self.name, "factor": self.factor}

    @classmethod
    def read(cls, entry):
        parts = entry.table(("name", "factor"))
        return cls(parts["name"].text(), parts["factor"].number())


@dataclass(frozen=True)
class Halve(Pass):
    """Halve the last layer."""

    name = "halve"
    rewrites = True

    def run(self, program):
        return Scale("4.weight", 0.5).apply(program)


def test_an_edit_of_ones_own_is_written_replayed_and_proved(monkeypatch, tmp_path):
    steps = (*gp.Recipe.parse("group,score,mask{channels=0.5x},propagate").steps, Halve())
    done = gp.run(gp.Recipe(steps), gp.load(net(0), X))
    assert done.plan.edits[-1] == Scale("4.weight", 0.5, by="halve")
    assert max(check.error for check in gp.verify(done)) <= 1e-12
    write_plan(tmp_path, done.plan)
    with pytest.raises(RecipeError, match=r"steps\[1\].edit: unknown 'scale'"):
        read_plan(tmp_path / "plan.json")
    known = {**edits.kinds(), "scale": Scale}
    monkeypatch.setattr("graphprune.pipeline.plan_reader.kinds", lambda: known)
    again = gp.apply(tmp_path / "plan.json", net(0), X)
    assert torch.equal(again.model.get_parameter("4.weight"), done.model.get_parameter("4.weight"))


def test_a_masked_form_that_is_wrong_is_found(monkeypatch):
    steps = (*gp.Recipe.parse("group,score,mask{channels=0.5x},propagate").steps, Halve())
    done = gp.run(gp.Recipe(steps), gp.load(net(0), X))
    monkeypatch.setattr(Scale, "masked", lambda self, program, cut: program)
    with pytest.raises(gp.GraphpruneError, match="differs from the masked one"):
        gp.verify(done)


@dataclass(frozen=True)
class Again(Pass):
    """A pass that says nothing of what it rewrites."""

    name = "again"
    rewrites = True

    def run(self, program):
        return program.rewrite(program.host.copy())


def test_a_pass_that_makes_no_edit_is_run_again(monkeypatch):
    done = gp.run(gp.Recipe((Again(),)), gp.load(net(0), X))
    assert done.plan.edits == (Rewrite("again", by="again"),)
    monkeypatch.setattr("graphprune.pipeline.run.make", lambda name, options: Again())
    assert [step.name for step in replay(done.plan, done.source).history] == ["again"]


def halved(dtype):
    """A network in half precision, its program, and what is left of it, fitted to data."""
    module = net(0).to(dtype)
    data = np.asarray(torch.randn(20, 4, generator=torch.Generator().manual_seed(1)))
    program = gp.load(module, X.to(dtype), data=data)
    return module, gp.run("group,score,mask{channels=0.5x},propagate,compensate", program)


def state(program):
    return {name: tensor.view(torch.uint8) for name, tensor in program.model.state_dict().items()}


def same_bytes(program, other):
    ours, theirs = state(program), state(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def forget_digest(folder):
    """As earlier versions wrote a plan."""
    plan = json.loads((folder / "plan.json").read_text())
    for step in plan["steps"]:
        step.get("weights", {}).pop("digest", None)
    (folder / "plan.json").write_text(json.dumps(plan))


@pytest.mark.parametrize("other", ["data", "byte", "dtype"])
def test_fitted_weights_of_another_plan_are_refused(other, tmp_path):
    """Names and shapes are those of the plan, of which nobody would see that they are not its own."""
    module, done = halved(torch.bfloat16)
    write_plan(tmp_path, done.plan)
    file = tmp_path / "plan.safetensors"
    if other == "data":
        tensors = {name: 2 * tensor for name, tensor in load_torch_file(file).items()}
        save_torch_file(tensors, file)
    elif other == "byte":
        content = file.read_bytes()
        file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    else:
        file.write_bytes(file.read_bytes().replace(b'"BF16"', b'"F16" '))
    with pytest.raises(RecipeError, match=r"plan\.safetensors: not the weights of this plan \(sha256:") as error:
        gp.apply(tmp_path / "plan.json", module, X.to(torch.bfloat16))
    assert error.value.hint == "plan.json and plan.safetensors belong together"
    forget_digest(tmp_path)
    assert gp.apply(tmp_path / "plan.json", module, X.to(torch.bfloat16)).plan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fitted_weights_are_written_in_the_precision_of_the_network(dtype, tmp_path):
    module, done = halved(dtype)
    write_plan(tmp_path, done.plan)
    tensors = load_torch_file(tmp_path / "plan.safetensors")
    assert len(tensors) > 1 and {tensor.dtype for tensor in tensors.values()} == {dtype}
    again = gp.apply(tmp_path / "plan.json", module, X.to(dtype))
    assert same_bytes(again, done)
    assert all(check.error <= check.tolerance for check in gp.verify(again))
    save_torch_file({name: tensor.float() for name, tensor in tensors.items()}, tmp_path / "plan.safetensors")
    forget_digest(tmp_path)
    earlier = gp.apply(tmp_path / "plan.json", module, X.to(dtype))  # which wrote float32
    assert same_bytes(earlier, done)


def test_what_is_left_of_half_a_correction_is_in_that_precision_too(monkeypatch, tmp_path):
    monkeypatch.setattr(lsq, "errors", lambda *args: no_worse.Errors(2.0, 1.0))
    monkeypatch.setattr(no_worse.Distance, "share", lambda self, energy=None: 0.5)
    module, done = halved(torch.bfloat16)
    assert any("0.5 of it is used" in note for note in done.notes)
    write_plan(tmp_path, done.plan)
    tensors = load_torch_file(tmp_path / "plan.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert same_bytes(gp.apply(tmp_path / "plan.json", module, X.to(torch.bfloat16)), done)


def test_a_plan_reads_its_weights_where_they_lie(tmp_path):
    write_plan(tmp_path, halved(torch.bfloat16)[1].plan)
    written = (tmp_path / "plan.safetensors").read_bytes()
    (correct,) = read_plan(tmp_path).of(Correct)
    for weight in correct.weights.values():
        base = weight
        while not isinstance(base, mmap.mmap):
            base = base.base
        weight[...] = 0
    assert (tmp_path / "plan.safetensors").read_bytes() == written


def test_training_the_result_leaves_the_plan_as_it_is(tmp_path):
    done = halved(torch.float32)[1]
    write_plan(tmp_path, done.plan)
    with torch.no_grad():
        for tensor in done.model.parameters():
            tensor.add_(1)
    (tmp_path / "after").mkdir()
    write_plan(tmp_path / "after", done.plan)
    assert (tmp_path / "after" / "plan.safetensors").read_bytes() == (tmp_path / "plan.safetensors").read_bytes()


def test_weights_that_do_not_fit_are_refused_with_file_and_place(tmp_path):
    program = gp.load(net(0), X, data=np.asarray(torch.randn(20, 4)))
    done = gp.run("group,score,mask{channels=0.5x},propagate,compensate", program)
    write_plan(tmp_path, done.plan)
    tensors = load_file(tmp_path / "plan.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name][:1]}, tmp_path / "plan.safetensors")
    forget_digest(tmp_path)
    with pytest.raises(RecipeError, match=r"^.*plan\.json: steps\[1\]: the plan's `.*` is \(1, "):
        gp.apply(tmp_path / "plan.json", net(0), X)
    with pytest.raises(RecipeError, match=r"^.*plan\.json: the plan was made from other weights"):
        gp.apply(tmp_path / "plan.json", net(1), X)


def test_weights_are_those_that_the_plan_names_no_fewer_and_no_more(tmp_path):
    program = gp.load(net(0), X, data=np.asarray(torch.randn(20, 4)))
    write_plan(tmp_path, gp.run("group,score,mask{channels=0.5x},propagate,compensate", program).plan)
    file, text = tmp_path / "plan.safetensors", tmp_path / "plan.json"
    tensors = load_file(file)
    name = next(iter(tensors))

    def refused(what):
        forget_digest(tmp_path)
        with pytest.raises(RecipeError, match=rf"plan\.safetensors: {what}") as error:
            gp.apply(text, net(0), X)
        assert error.value.hint == "plan.json and plan.safetensors belong together"

    save_file({other: array for other, array in tensors.items() if other != name}, file)
    refused(rf"not the weights of this plan \(`{name}` is in plan.json alone\)")
    save_file(tensors | {"7:more": np.zeros(3, np.float32)}, file)
    refused(r"not the weights of this plan \(`7:more` is in plan.safetensors alone\)")
    file.unlink()
    refused(f"no such file, and the plan has {len(tensors)} fitted weights in it")
    file.mkdir()
    refused("no such file")


def test_a_mark_of_utf_8_at_the_beginning_is_no_part_of_a_plan(tmp_path):
    plan = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(net(0), X)).plan
    write_plan(tmp_path, plan)
    path = tmp_path / "plan.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert gp.apply(path, net(0), X).plan["parameters"] == plan["parameters"]
