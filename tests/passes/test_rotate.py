"""A rotated stream: equal, then its hidden size goes with a proof and less is lost; a wrong matrix is noticed."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import streams
import torch
from assert_pass import assert_pass
from test_rms import TOLERANCE, as_onnx
from torch import nn

import graphprune as gp
from graphprune.cost.static import macs, params
from graphprune.coupling.streams import multiplied, norms
from graphprune.ir.facts import Groups
from graphprune.ir.program import Program
from graphprune.pipeline import rotation
from graphprune.pipeline.compare import relative
from graphprune.pipeline.plan_file import read_plan, write_plan
from graphprune.pipeline.replay import replay
from graphprune.pipeline.rotation import Rotate

PER_BLOCK = "rotate{per=block}"
CUT = "group,score{by=variance over=writers},mask{channels=0.6x},propagate"
RECIPES = {"words": "rms,rotate", "rms": "rotate", "tied": "rotate{untie=true}", "patches": "rms,rotate"}
RECIPES["written"] = "rotate{untie=true}"


@cache
def given(net: str) -> Program:
    kind, _, host = net.partition(" ")
    module, x = {
        "words": streams.words,
        "rms": lambda: streams.words(nn.RMSNorm),
        "tied": lambda: streams.words(nn.RMSNorm, tied=True),
        "patches": streams.patches,
        "written": lambda: streams.words(streams.Written, tied=True),
    }[kind]()
    if host == "onnx":
        return gp.load(as_onnx(module, x), data=[x.numpy()])
    return gp.load(module, (x,), data=[x.numpy()])


@pytest.mark.parametrize(
    "net", ["words torch", "words onnx", "rms torch", "tied torch", "patches torch", "written torch", "written onnx"]
)
def test_nothing_changes_and_then_the_hidden_size_goes(net: str) -> None:
    program, recipe = given(net), RECIPES[net.split()[0]]
    opened = gp.run(recipe, program)
    before, after = (host.run(program.host.example())[0] for host in (program.host, opened.host))
    assert np.abs(before).max() > 0.1
    assert relative(before, after) <= TOLERANCE[program.host.kind]
    done = gp.run(f"{recipe},{CUT}", program)
    checks = {check.what.partition(",")[0]: check for check in gp.verify(done)}
    assert all(check.holds for check in checks.values())
    assert "opened = original" in checks
    assert [done.graph.parameters[norm.weight].shape for norm in norms(done.graph)] == [(5,)] * len(norms(opened.graph))


def test_the_new_coordinates_are_uncorrelated_and_fall() -> None:
    opened = gp.run("rms,rotate", given("words"))
    norms = [op for op in opened.graph.ops if op.kind == "rms_norm"]
    seen = opened.host.watch(opened.data[0], [norm.outputs[0].name for norm in norms])  # whose weights are one
    rows = np.concatenate([seen[norm.outputs[0].name].reshape(-1, streams.WIDTH) for norm in norms])
    moment = rows.T @ rows
    assert np.abs(moment - np.diag(np.diag(moment))).max() < 1e-9 * moment.max()
    assert (np.diff(np.diag(moment)) < 0).all()
    for matrix in opened.plan.of(Rotate)[0].matrices.values():
        for column in matrix.T:
            assert column[np.abs(column).argmax()] > 0


def test_a_stream_of_few_directions_loses_none_of_them() -> None:
    """Half of the hidden size is enough for a stream that has so many directions, whichever those are."""
    module, _ = streams.words(nn.RMSNorm)
    few = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).standard_normal((8, 4)))[0])
    project = few @ few.T
    with torch.no_grad():
        for parameter in (module.tokens.weight, module.places):
            parameter.copy_(parameter @ project)
        for block in module.blocks:
            block.scale.fill_(1)
            for layer in (block.proj, block.down):
                layer.weight.copy_(project @ layer.weight)
                layer.bias.copy_(project @ layer.bias)
    ids = torch.randint(0, streams.TOKENS, (16, streams.PLACES))
    program = gp.load(module, (ids,), data=[ids.numpy()])
    cut = "group{only=tokens},score{by=variance},mask{channels=0.5x},propagate"
    names = [group.name for group in gp.run("group", program).fact(Groups)]
    cut = cut.replace("tokens", next(name for name in names if "places" in name or "tokens" in name))
    lost = {}
    for before in ("", "rotate,"):
        done = gp.run(before + cut, program)
        assert next(op for op in done.graph.ops if op.kind == "rms_norm").inputs[1].shape == (4,)
        lost[before] = relative(program.host.run([ids.numpy()])[0], done.host.run([ids.numpy()])[0])
    assert lost["rotate,"] < 1e-9
    assert lost[""] > 0.05


def test_each_part_of_the_rewrite_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = given("rms")
    expected = program.host.run(program.host.example())[0]
    edit = gp.run("rotate", program).plan.of(Rotate)[0]

    def error() -> float:
        return relative(expected, edit.apply(program).host.run(program.host.example())[0])

    assert error() < 1e-12
    real = multiplied
    with monkeypatch.context() as patch:  # writers by Q in the place of its transpose
        patch.setattr(rotation, "multiplied", lambda host, stream, matrix: real(host, stream, matrix.T))
        assert error() > 1e-3
    with monkeypatch.context() as patch:  # one column of it with another sign, for the writers alone
        signs = np.diag([1.0] * 7 + [-1.0])
        patch.setattr(rotation, "multiplied", lambda host, stream, matrix: real(host, stream, signs @ matrix))
        assert error() > 1e-3


def shortcuts(program: Program) -> list[str]:
    return [name for name in program.graph.parameters if "shortcut" in name]


@pytest.mark.parametrize("net", ["rms torch", "tied torch", "written onnx", "words onnx", "patches torch"])
def test_with_one_rotation_a_block_nothing_changes_and_each_has_a_hidden_size_of_its_own(net: str) -> None:
    program, recipe = given(net), RECIPES[net.split()[0]]
    many = recipe.replace("rotate{untie=true}", "rotate{per=block untie=true}")
    many = many.removesuffix("rotate") + PER_BLOCK if many.endswith("rotate") else many
    opened, one = gp.run(many, program), gp.run(recipe, program)
    before, after = (host.run(program.host.example())[0] for host in (program.host, opened.host))
    assert relative(before, after) <= TOLERANCE[program.host.kind]
    sums = 1 if "patches" in net else 3  # of two blocks there are four, and the first shares what is before it
    assert len(shortcuts(opened)) == sums == len(opened.plan.of(Rotate)[0].matrices) - 1
    tokens = 5  # of a sample
    for cost in (params, macs):  # the matrices on shortcuts count
        more = cost(opened.graph, opened.host)() - cost(one.graph, one.host)()
        assert more == sums * streams.WIDTH**2 * (1 if cost is params else tokens)
    matrices = list(opened.plan.of(Rotate)[0].matrices.values())
    for name, (first, second) in zip(shortcuts(opened), itertools.pairwise(matrices), strict=True):
        expected = second.T @ first
        assert any(np.allclose(opened.host.parameter(name), made, atol=1e-6) for made in (expected, expected.T))
    groups = gp.run(f"{many},group{{places=stream}}", program).fact(Groups)
    assert [group.size for group in groups] == [streams.WIDTH] * (sums + 1)
    done = gp.run(f"{many},group{{places=stream}},score{{by=ifv}},mask{{channels=0.6x floor=0}},propagate", program)
    assert all(check.holds for check in gp.verify(done))
    assert all(max(done.graph.parameters[name].shape) <= 5 for name in shortcuts(done))  # narrower on both axes


def test_a_stream_of_one_sum_has_one_rotation_and_that_is_said() -> None:
    module, x = streams.words(nn.RMSNorm, depth=0)
    done = gp.run(PER_BLOCK, gp.load(module, (x,), data=[x.numpy()]))
    assert not shortcuts(done) and len(done.plan.of(Rotate)[0].matrices) == 1
    assert "no stream has a second sum behind a norm" in done.notes[-1]
    with pytest.raises(gp.GraphpruneError, match="`per` cannot be `blok`"):
        gp.run("rotate{per=blok}", given("rms"))


def test_each_part_of_the_rewrite_with_shortcuts_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = given("rms")
    expected = program.host.run(program.host.example())[0]
    edit = gp.run(PER_BLOCK, program).plan.of(Rotate)[0]

    def error() -> float:
        return relative(expected, edit.apply(program).host.run(program.host.example())[0])

    assert error() < 1e-12
    real_rotated, real_multiplied = rotation._rotated, multiplied

    def without_shortcuts(host: Any, stream: Any, matrix: Any) -> None:
        real_rotated(host, replace(stream, plain=[]), matrix)

    with monkeypatch.context() as patch:
        patch.setattr(rotation, "_rotated", without_shortcuts)
        assert error() > 1e-3
    for name in edit.matrices:

        def flipped(host: Any, stream: Any, matrix: Any, name: str = name) -> None:
            real_multiplied(host, stream, -matrix if stream.name == name else matrix)

        with monkeypatch.context() as patch:  # the wrong sign of one matrix where its stream is written
            patch.setattr(rotation, "multiplied", flipped)
            assert error() > 1e-3, name


@pytest.mark.parametrize("net", ["rms", "patches", "rms, per block"])
def test_the_hidden_size_may_be_permuted_everywhere_and_in_no_fewer_places(net: str) -> None:
    name, _, many = net.partition(", ")
    opened = gp.run(f"{PER_BLOCK if many else RECIPES[net]},group{{places=stream}}", given(name))
    groups = opened.fact(Groups).groups
    assert len(groups) == (4 if many else 1)
    x = opened.host.example()
    expected = opened.host.run(x)[0]
    for group in groups:
        ones = {member.parameter for member in group.members if (opened.host.parameter(member.parameter) == 1).all()}
        assert len(ones) < len(group.members) / 2
        for left_out in (None, *group.members):
            host = opened.host.copy()
            for member in group.members:
                if member is not left_out:
                    host.take(member.parameter, member.axis, np.roll(np.arange(group.size), 1))
            found = relative(expected, host.run(x)[0])
            assert (found < 1e-9) == (left_out is None or left_out.parameter in ones), (left_out, found)


@pytest.mark.parametrize("rotate", ["rotate", PER_BLOCK])
def test_a_plan_does_it_again_to_the_last_bit(rotate: str, tmp_path: Path) -> None:
    done = gp.run(f"rms,{rotate},{CUT}", given("words"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_plan(tmp_path / name, gp.run(f"rms,{rotate},{CUT}", given("words")).plan)
    for file in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    source = given("words").source
    again = gp.apply(read_plan(tmp_path / "a" / "plan.json"), Program(source, source))
    assert all(np.array_equal(again.host.parameter(n), done.host.parameter(n)) for n in done.graph.parameters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w * 2, "no orthogonal matrix of size 8"),
        (lambda w: w[:, :7], "no orthogonal matrix of size 8"),
        (lambda w: w * np.nan, "NaN"),
    ],
)
def test_a_plan_with_a_wrong_matrix_is_refused(change: Any, message: str) -> None:
    step = copy.deepcopy(gp.run("rotate", given("rms")).plan.edits[0].step())
    step["weights"] = {name: change(matrix) for name, matrix in step["weights"].items()}
    with pytest.raises(gp.GraphpruneError, match=message):
        replay({"version": 2, "steps": [step], "parameters": {}}, given("rms").source)
    parted = copy.deepcopy(gp.run(PER_BLOCK, given("rms")).plan.edits[0].step())
    parted["parts"] = ["nothing"]
    with pytest.raises(gp.GraphpruneError, match="parts the stream of `nothing`, no norm of this model"):
        replay({"version": 2, "steps": [parted], "parameters": {}}, given("rms").source)
    step["streams"] = ["nothing"]
    step["weights"] = {"nothing": np.eye(8)}
    with pytest.raises(gp.GraphpruneError, match="no norm of this model"):
        replay({"version": 2, "steps": [step], "parameters": {}}, given("rms").source)


def test_what_cannot_be_is_refused_with_the_reason() -> None:
    with pytest.raises(gp.GraphpruneError, match="is no RMS norm; `rms` before it"):
        gp.run("rotate", given("words"))
    with pytest.raises(gp.GraphpruneError, match=r"`head.weight` has another reader; `rotate\{untie=true\}`"):
        gp.run("rotate", given("tied"))
    module, x = streams.patches(nn.RMSNorm, pooled=True)
    with pytest.raises(gp.GraphpruneError, match="is read by more than linear layers"):
        gp.run("rotate", gp.load(module, (x,), data=[x.numpy()]))
    with pytest.raises(gp.GraphpruneError, match="data"):
        gp.run("rotate", gp.load(module, (x,)))


def test_the_text_before_and_after() -> None:
    layers = nn.Linear(5, 6), nn.RMSNorm(6, eps=0.1), nn.Linear(6, 2)
    module = nets.randomise(nn.Sequential(*layers).double().eval())
    text = """
        input  %input_1:Nx5
        weight %0.bias:6
        weight %0.weight:6x5
        weight %1.weight:6
        weight %2.bias:2
        weight %2.weight:2x6
        %linear:Nx6 = linear(%input_1, %0.weight, %0.bias)
        %rms_norm:Nx6 = rms_norm(%linear, %1.weight) eps=0.1 trailing=1
        %linear_1:Nx2 = linear(%rms_norm, %2.weight, %2.bias)
        output %linear_1
    """
    x = torch.randn(30, 5, dtype=torch.float64)
    program = gp.load(module, (x,), data=[x.numpy()])
    assert_pass("rotate", program, before=text, after=text, equals="original", again=False)
