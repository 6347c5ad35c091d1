"""A few dozen random networks, always the same ones; ``python -m tests.fuzz.run`` draws thousands."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from fuzz import checks, law, network, recipes, reference
from fuzz.network import Network, Step, data
from fuzz.run import in_onnx, sample
from graphprune.axes.dim import Dim
from graphprune.axes.index import Index
from graphprune.calibration.batches import batches
from graphprune.ir.facts import Member
from graphprune.ir.program import Program
from graphprune.passes.compensate import Compensate
from graphprune.passes.factor import Factor
from graphprune.passes.fold import Fold
from graphprune.passes.propagate import Propagate

torch.set_num_threads(1)


@pytest.mark.parametrize("part", range(3))
def test_random_networks_obey_the_law_and_the_oracle(part):
    made = sample(100 + part, 5, lambda net: checks.check(net, onnx_too=part == 0, masks=1))
    assert made["failure"] is None, made["failure"]["error"] + made["failure"]["program"]
    assert made["checked"]["masks"] >= 3
    assert made["checked"]["members"] >= 5


NET = Network(
    (("image", (7, 3, 4, 4)),),
    (
        Step("conv", 0, {"out": 6, "groups": 1, "kernel": 3, "stride": 1, "bias": True}, 0),
        Step("batch_norm", 1, {}, 1),
        Step("conv", 2, {"out": 4, "groups": 1, "kernel": 1, "stride": 1, "bias": True}, 2),
    ),
    (3,),
    5,
)


def test_a_network_is_printed_as_a_program_and_as_python_that_makes_it_again():
    assert repr(NET).splitlines()[1:-1] == [
        "v0 = image(7, 3, 4, 4)",
        "v1 = s0:conv(v0, out=6, groups=1, kernel=3, stride=1, bias=True)  # (7, 6, 4, 4)",
        "v2 = s1:batch_norm(v1)  # (7, 6, 4, 4)",
        "v3 = s2:conv(v2, out=4, groups=1, kernel=1, stride=1, bias=True)  # (7, 4, 4, 4)",
        "return v3",
    ]
    assert eval(NET.plain()) == NET


def test_the_fuzzer_counts_what_it_checks():
    tally = checks.check(NET, onnx_too=True)
    assert tally == Counter(
        {
            "networks": 1,
            "networks in ONNX": 1,
            "batch of 7": 1,
            "checked at other sizes": 2,
            "recipes that cut": 2,
            "groups": 2,
            "frozen dims": 4,
            "members": 14,
            "masks": 4,
            "channels cut": tally["channels cut"],
        }
    )
    assert tally["channels cut"] > 0


def test_the_fuzzer_notices_a_mask_that_differs(monkeypatch):
    """Its oracle has teeth: one channel too few in the reference, and it says so."""
    real = reference.zeroed

    def forgetful(array, axes):
        fewer = {
            k: {**entry, "keep": entry["keep"][:-1]} if entry["role"] == "reader" else entry
            for k, entry in axes.items()
        }
        return real(array, fewer)

    monkeypatch.setattr(reference, "zeroed", forgetful)
    with pytest.raises(reference.Broken, match="torch: pruned is not masked"):
        checks.check(NET, onnx_too=False)


def test_the_fuzzer_notices_a_member_too_few(monkeypatch):
    """Its law has teeth: where the table forgets what BatchNorm couples, permuting moves the output."""
    from graphprune.ops import rules

    monkeypatch.setitem(rules.RULES, "batch_norm", "n c ~, d, c, c, c -> n c ~")
    with pytest.raises(reference.Broken, match=r"permuting s0 .* moves the output"):
        checks.check(NET, onnx_too=False)


PADDED = Network(
    (("vector", (7, 6)),),
    (
        Step("linear", 0, {"out": 3, "bias": False, "form": "plain"}, 0),
        Step("pad", 1, {"axis": 1, "by": (0, 3), "value": 0.7}, 1),
        Step("gate", 2, {"axis": 1, "f": "sigmoid", "highway": False}, 2),
        Step("linear", 3, {"out": 3, "bias": True, "form": "plain"}, 3),
    ),
    (4,),
    3,
)
"""The gate reads channels that are padded, and which of them is which makes no difference."""


@pytest.mark.parametrize("group", ["s0", "s2.1"])
def test_the_fuzzer_notices_a_member_too_many(group, monkeypatch):
    """Where a bias of the last layer is said to hold the channels of a group, which it does not; in a group whose
    channels are alike too."""
    real, tally = law.find_groups, checks.check(PADDED, onnx_too=False)
    assert tally["members that show with other numbers"] == 1

    def one_more(graph, **settings):
        found = real(graph, **settings)
        with_it = [
            replace(g, members=(*g.members, Member("s3.bias", 0, "writer", g.dim))) if g.name == group else g
            for g in found
        ]
        return replace(found, groups=tuple(with_it))

    monkeypatch.setattr(law, "find_groups", one_more)
    with pytest.raises(reference.Broken, match=rf"{group} does not need s3\.bias"):
        checks.check(PADDED, onnx_too=False)


def test_whether_a_network_goes_through_onnx_is_told_by_the_network():
    """Hypothesis checks what failed again, and calls it flaky where that comes to something else."""
    assert [in_onnx(replace(NET, seed=seed)) for seed in (0, 1, 2, 3, 4, 0)] == [True, False, False, False, True, True]


@pytest.mark.parametrize(
    ("promise", "wrong"),
    [(recipes._same, Fold), (recipes._cut, Propagate), (recipes._open, Factor), (recipes._fit, Compensate)],
)
def test_the_fuzzer_notices_a_broken_promise(promise, wrong, monkeypatch):
    """A pass that makes one weight 5 % too large is noticed by every promise that it is under, without the proof."""
    real = wrong.run

    def spoiled(self, program):
        done = real(self, program)
        host = done.host.copy()
        name = next(name for name, value in done.graph.parameters.items() if len(value.shape) > 1)
        host.set_parameter(name, np.asarray(host.parameter(name)) * (5 if wrong is Compensate else 1.05))
        return replace(done, host=host)

    def check():
        module = network.Module(NET).eval()
        host = reference.export(NET, module)
        program = Program(host=host, source=host, seed=0)
        program = replace(program, data=batches(data(NET, 2, batch=13)[0], program.graph.inputs))
        return promise(NET, program, partial(reference.masked_module, module), np.random.default_rng(1))

    monkeypatch.setattr(recipes.gp, "verify", lambda program: None)
    monkeypatch.setattr(recipes, "SAME", ("fold",))
    monkeypatch.setattr(recipes, "OPENS", ("factor",))
    assert sum(check().values())
    monkeypatch.setattr(wrong, "run", spoiled)
    with pytest.raises(reference.Broken):
        check()


FOUND = {
    "a view of the whole axis, as narrow writes it": Network(
        (("series", (7, 4, 6)),),
        (
            Step("linear", 0, {"out": 4, "bias": False, "form": "plain"}, 0),
            Step("in_place", 1, {"axis": 2, "start": 0, "end": 4, "view": "narrow", "f": "relu", "own": False}, 1),
            Step("linear", 2, {"out": 3, "bias": True, "form": "plain"}, 2),
        ),
        (3,),
        3,
    ),
    "a slice counted from the end, whose tail is cut": Network(
        (("vector", (7, 6)),),
        (
            Step("linear", 0, {"out": 4, "bias": False, "form": "plain"}, 0),
            Step("batch_norm", 1, {}, 1),
            Step("slice", 2, {"axis": 1, "start": -3, "end": 2, "step": 1}, 2),
            Step("linear", 3, {"out": 3, "bias": True, "form": "plain"}, 3),
        ),
        (4,),
        2,
    ),
    "queries and keys that are one value": Network(
        (("image", (7, 3, 4, 4)),),
        (
            Step("conv", 0, {"out": 6, "groups": 1, "kernel": 1, "stride": 1, "bias": False}, 0),
            Step("reshape", 1, {"to": (7, 6, 16), "computed": False}, 1),
            Step("matmul_values", 2, {"with": 2, "of": "xT y"}, 2),
            Step("linear", 3, {"out": 3, "bias": True, "form": "plain"}, 3),
        ),
        (4,),
        1,
    ),
    "channels that are filled before they are read": Network(
        (("vector", (7, 6)),),
        (
            Step("linear", 0, {"out": 8, "bias": False, "form": "plain"}, 0),
            Step("in_place", 1, {"axis": 1, "start": 0, "end": 2, "view": "narrow", "f": "fill", "own": False}, 1),
            Step("mixer", 2, {"axis": 1, "mid": 2, "residual": False}, 2),
            Step("linear", 2, {"out": 3, "bias": True, "form": "plain"}, 3),
        ),
        (3, 4),
        0,
    ),
    "what rectified numbers hide, unless weights change a lot": Network(
        (("image", (7, 3, 4, 4)), ("ids", (7, 4))),
        (
            Step(kind="embedding", on=1, options={"out": 6}, weights=0),
            Step(kind="linear", on=0, options={"out": 6, "bias": True, "form": "plain"}, weights=1),
            Step(kind="mixer", on=3, options={"axis": 1, "mid": 4, "residual": False}, weights=2),
            Step(kind="mixer", on=2, options={"axis": 1, "mid": 2, "residual": False}, weights=3),
            Step(kind="mixer", on=5, options={"axis": 1, "mid": 2, "residual": False}, weights=4),
            Step(kind="mixer", on=6, options={"axis": 1, "mid": 5, "residual": False}, weights=5),
            Step(kind="linear", on=7, options={"out": 3, "bias": True, "form": "plain"}, weights=6),
            Step(kind="linear", on=4, options={"out": 3, "bias": True, "form": "plain"}, weights=7),
        ),
        (8, 9),
        0,
    ),
    "a stream whose readers are not looked for, as it stays anyway": Network(
        (("series", (7, 5, 4)), ("ids", (7, 4))),
        (
            Step(kind="embedding", on=1, options={"out": 6}, weights=0),
            Step(kind="linear", on=0, options={"out": 2, "bias": False, "form": "plain"}, weights=1),
            Step(kind="concat", on=0, options={"with": (0,), "axis": 1, "first": False}, weights=2),
            Step(kind="mixer", on=4, options={"axis": 1, "mid": 2, "residual": False}, weights=3),
            Step(kind="rms_norm", on=4, options={}, weights=4),
            Step(kind="rms_norm", on=6, options={}, weights=5),
            Step(kind="binary", on=5, options={"with": 7, "f": "add"}, weights=6),
            Step(kind="mixer", on=8, options={"axis": 2, "mid": 2, "residual": False}, weights=7),
            Step(kind="linear", on=9, options={"out": 3, "bias": True, "form": "plain"}, weights=8),
            Step(kind="linear", on=3, options={"out": 3, "bias": True, "form": "plain"}, weights=9),
            Step(kind="linear", on=2, options={"out": 3, "bias": True, "form": "plain"}, weights=10),
        ),
        (10, 11, 12),
        200,
    ),
    "attention whose kernel lays its result out otherwise once it is cut": Network(
        (("image", (7, 3, 4, 4)), ("series", (7, 53, 5))),
        (
            Step(kind="mixer", on=1, options={"axis": 2, "mid": 2, "residual": True}, weights=0),
            Step(
                kind="attention",
                on=2,
                options={
                    "heads": 1,
                    "few": 1,
                    "width": 2,
                    "value": 2,
                    "packed": False,
                    "form": "decomposed",
                    "spread": "repeat_interleave",
                },
                weights=1,
            ),
            Step(kind="mixer", on=3, options={"axis": 2, "mid": 3, "residual": True}, weights=2),
            Step(
                kind="in_place",
                on=4,
                options={"axis": 2, "start": 0, "end": 1, "view": "moved", "f": "relu", "own": False},
                weights=3,
            ),
            Step(
                kind="attention",
                on=5,
                options={
                    "heads": 3,
                    "few": 3,
                    "width": 4,
                    "value": 4,
                    "packed": False,
                    "form": "sdpa",
                    "spread": "repeat_interleave",
                },
                weights=4,
            ),
            Step(kind="mixer", on=6, options={"axis": 2, "mid": 9, "residual": False}, weights=5),
            Step(kind="linear", on=7, options={"out": 3, "bias": True, "form": "plain"}, weights=6),
            Step(kind="linear", on=0, options={"out": 3, "bias": True, "form": "plain"}, weights=7),
        ),
        (8, 9),
        0,
    ),
    "what is multiplied by a number on a stream": Network(
        (("ids", (7, 4)),),
        (
            Step(kind="embedding", on=0, options={"out": 5}, weights=0),
            Step(kind="matmul_weight", on=1, options={"out": 2, "side": "left"}, weights=1),
            Step(kind="linear", on=1, options={"out": 2, "bias": False, "form": "plain"}, weights=2),
            Step(kind="matmul_values", on=1, options={"with": 1, "of": "xT y"}, weights=3),
            Step(kind="layer_norm", on=4, options={"trailing": 1, "affine": False}, weights=4),
            Step(kind="batch_norm", on=5, options={}, weights=5),
            Step(kind="matmul_weight", on=6, options={"out": 2, "side": "right"}, weights=6),
            Step(kind="linear", on=7, options={"out": 3, "bias": True, "form": "plain"}, weights=7),
            Step(kind="linear", on=3, options={"out": 3, "bias": True, "form": "plain"}, weights=8),
            Step(kind="linear", on=2, options={"out": 3, "bias": True, "form": "plain"}, weights=9),
        ),
        (8, 9, 10),
        2239,
    ),
    "positions that are picked, and read by no weight": Network(
        (("image", (7, 3, 4, 4)), ("ids", (7, 53))),
        (
            Step(kind="embedding", on=1, options={"out": 4}, weights=0),
            Step(kind="linear", on=0, options={"out": 2, "bias": False, "form": "plain"}, weights=1),
            Step(kind="pick", on=2, options={"f": "index_select", "axis": 2, "at": (0, 1)}, weights=2),
            Step(kind="matmul_values", on=4, options={"with": 4, "of": "x yT"}, weights=3),
            Step(kind="linear", on=3, options={"out": 3, "bias": True, "form": "plain"}, weights=4),
        ),
        (5, 6),
        0,
    ),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_the_fuzzer_found(what):
    assert checks.check(FOUND[what], onnx_too=True, masks=3)["masks"] == 6


def test_channels_may_be_kept_from_last_to_first():
    """A reversed list is a view with negative strides, which torch does not take as it is."""
    index = Index({(axis := Dim(4)): np.arange(4)[::-1]})
    assert torch.from_numpy(index(axis)).tolist() == [3, 2, 1, 0]


def test_every_kind_of_step_is_drawn(monkeypatch):
    """All that can be drawn is: nothing of the table is left out by a predicate that never holds."""
    for rare in ("pixel_shuffle", "conv_transpose", "einsum_weight", "squeeze_excite"):
        monkeypatch.setitem(network.OFTEN, rare, 12)
    made = sample(1, 300, lambda net: Counter(drawn=1))
    assert set(network.KINDS) <= set(made["kinds"])
