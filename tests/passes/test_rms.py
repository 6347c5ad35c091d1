"""LayerNorms as RMS norms: equal, then the hidden size below them goes with a proof; what cannot be stays, and why."""

from __future__ import annotations

import io
import re
from functools import cache
from typing import Any

import nets
import numpy as np
import onnx
import pytest
import streams
import torch
from assert_pass import assert_pass
from torch import nn

import graphprune as gp
from graphprune.coupling.streams import Stream, Writer
from graphprune.coupling.streams import multiplied as _multiplied
from graphprune.ir.facts import Groups
from graphprune.ir.program import Program
from graphprune.passes import rms
from graphprune.pipeline.compare import relative
from graphprune.pipeline.plan_file import read_plan, write_plan

CUT = "group,score,mask{channels=0.6x},propagate"


@cache
def given(net: str) -> Program:
    kind, host = net.split()
    module, x = {
        "words": streams.words,
        "tied": lambda: streams.words(tied=True),
        "patches": streams.patches,
        "pooled": lambda: streams.patches(pooled=True),
        "spelt": lambda: streams.words(streams.Spelt),
        "first": first,
    }[kind]()
    return gp.load(module, (x,)) if host == "torch" else gp.load(as_onnx(module, x))


def as_onnx(module: nn.Module, x: torch.Tensor) -> onnx.ModelProto:
    file = io.BytesIO()
    module, x = module.float(), x.float() if x.is_floating_point() else x
    torch.onnx.export(module, (x,), file, dynamo=False, opset_version=17, input_names=["x"])
    return onnx.load_from_string(file.getvalue())


TOLERANCE = {"torch": 1e-12, "onnx": 1e-5}
NETS = ("words torch", "words onnx", "tied torch", "patches torch", "patches onnx", "pooled torch")
SPELT = ("spelt torch", "spelt onnx", "first torch", "first onnx")


class First(nn.Module):
    """A LayerNorm of channels that come first, as ConvNeXt has it behind its stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)
        self.weight, self.bias = nn.Parameter(torch.empty(8)), nn.Parameter(torch.empty(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 0.2)
        x = self.weight[:, None, None] * x + self.bias[:, None, None]
        out: torch.Tensor = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        return out


def first() -> tuple[nn.Module, torch.Tensor]:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return nets.randomise(First().double().eval()), x


@pytest.mark.parametrize("net", SPELT)
def test_one_that_is_written_out_becomes_an_rms_norm_that_is(net: str) -> None:
    program = given(net)
    opened = gp.run("rms", program)
    assert not any(op.attrs.get("function") in ("sub", "var") for op in opened.graph.ops)
    before, after = (host.run(program.host.example())[0] for host in (program.host, opened.host))
    assert relative(before, after) <= TOLERANCE[program.host.kind]
    assert not any(group.size == streams.WIDTH for group in gp.run("group", program).fact(Groups))
    done = gp.run(f"rms,{CUT}", program)
    (hidden,) = {len(done.host.parameter(norm.weight).ravel()) for norm in done.graph.norms}
    assert hidden == 5
    assert all(check.holds for check in gp.verify(done))


def test_channels_that_come_first_are_not_rotated() -> None:
    with pytest.raises(gp.GraphpruneError, match="norms another axis than the last"):
        gp.run("rms,rotate", gp.load(*as_call(*first()), data=[np.random.default_rng(0).standard_normal((4, 3, 6, 6))]))


def as_call(module: nn.Module, x: torch.Tensor) -> tuple[nn.Module, tuple[torch.Tensor]]:
    return module, (x,)


@pytest.mark.parametrize("net", NETS)
def test_nothing_changes_and_then_the_hidden_size_goes(net: str) -> None:
    program, untie = given(net), "{untie=true}" if "tied" in net else ""
    opened = gp.run(f"rms{untie}", program)
    assert not any(op.kind == "layer_norm" for op in opened.graph.ops)
    batch = program.host.example()
    before, after = (host.run(batch)[0] for host in (program.host, opened.host))
    assert np.abs(before).max() > 0.1
    assert relative(before, after) <= TOLERANCE[program.host.kind]
    done = gp.run(f"rms{untie},{CUT}", program)
    checks = {check.what.partition(",")[0]: check for check in gp.verify(done)}
    assert all(check.holds for check in checks.values())
    assert "opened = original" in checks
    hidden = next(op for op in done.graph.ops if op.kind == "rms_norm").inputs[1]
    assert hidden is not None
    assert hidden.shape == ((streams.WIDTH,) if "pooled" in net else (5,))  # what leaves the network stays


@pytest.mark.parametrize("net", ["words torch", "patches torch", "patches onnx", "spelt torch", "first onnx"])
def test_the_hidden_size_may_be_permuted_everywhere_and_in_no_fewer_places(net: str) -> None:
    opened = gp.run("rms,group", given(net))
    (group,) = (one for one in opened.fact(Groups) if one.size == streams.WIDTH)
    x = opened.host.example()
    expected = opened.host.run(x)[0]
    for left_out in (None, *group.members):
        host = opened.host.copy()
        for member in group.members:
            if member is not left_out:
                host.take(member.parameter, member.axis, np.roll(np.arange(group.size), 1))
        found = relative(expected, host.run(x)[0])
        unmoved = left_out is not None and "scale" in left_out.parameter  # which is one, everywhere
        assert (found < 1e-5) == (left_out is None or unmoved), (left_out, found)


def test_each_part_of_the_rewrite_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = given("words torch")
    expected = program.host.run(program.host.example())[0]

    def error() -> float:
        opened = gp.run("rms", program)
        return relative(expected, opened.host.run(program.host.example())[0])

    assert error() < 1e-12
    for name in ("tokens.weight", "places", "blocks.0.proj.bias", "blocks.1.down.weight"):

        def multiplied(host: Any, stream: Stream, matrix: Any, name: str = name) -> None:
            fewer = {one: writer for one, writer in stream.writers.items() if one != name}
            _multiplied(host, Stream(stream.dim, stream.norms, fewer, stream.readers), matrix)

        with monkeypatch.context() as patch:
            patch.setattr(rms, "multiplied", multiplied)
            assert error() > 1e-3, name

    def unscaled(host: Any, stream: Stream, matrix: Any) -> None:
        bare = {name: Writer(writer.axis) for name, writer in stream.writers.items()}
        _multiplied(host, Stream(stream.dim, stream.norms, bare, stream.readers), matrix)

    with monkeypatch.context() as patch:
        patch.setattr(rms, "multiplied", unscaled)
        assert error() > 1e-3


class Outside(nn.Module):
    """A stream that something else than a norm reads, or that leaves, or that an input is; and depthwise writers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.stem, self.norm = how, nn.Linear(5, 8), nn.LayerNorm(8, elementwise_affine=how != "bare")
        self.deep, self.head, self.other = nn.Conv1d(8, 8, 3, groups=8, padding=1), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        y = x.repeat(1, 1, 2)[:, :, :8] if self.how == "input" else self.stem(x)
        if self.how == "grouped":
            y = self.deep(y.transpose(1, 2)).transpose(1, 2)
        if self.how == "times":
            y = y * torch.sigmoid(y)
        out = self.head(self.norm(y))
        return (out, y) if self.how == "leaves" else out + self.other(y) if self.how == "read" else out


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("read", "other .* reads it, which is no norm"),
        ("leaves", "leaves the graph"),
        ("times", "mul .*writes it"),
        ("grouped", "writes it in groups"),
        ("input", "is an input|reads it|writes it"),
        ("bare", "has no weight of its own"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(how: str, why: str) -> None:
    module = nets.randomise(Outside(how).double().eval())
    with pytest.raises(gp.GraphpruneError, match="no LayerNorm can be an RMS norm") as error:
        gp.run("rms", gp.load(module, (torch.randn(2, 4, 5, dtype=torch.float64),)))
    assert re.search(why, str(error.value)), error.value


def test_a_tied_embedding_is_untied_only_when_asked_and_counts_then() -> None:
    program = given("tied torch")
    with pytest.raises(gp.GraphpruneError, match=r"`head\.weight` has another reader"):
        gp.run("rms", program)
    opened, before = gp.run("rms{untie=true}", program), gp.run("group", program)
    biases = 2 * 3 * streams.WIDTH + streams.TOKENS - 5 * streams.WIDTH  # of layers that had none; less those of norms
    embedding = streams.TOKENS * streams.WIDTH
    assert opened.history[-1].params - before.history[-1].params == embedding + biases


def test_a_plan_does_it_again(tmp_path: Any) -> None:
    done = gp.run(f"rms,{CUT}", given("words torch"))
    write_plan(tmp_path, done.plan)
    source = given("words torch").source
    again = gp.apply(read_plan(tmp_path / "plan.json"), Program(source, source))
    for name in done.graph.parameters:
        assert np.array_equal(again.host.parameter(name), done.host.parameter(name))


def test_the_text_before_and_after() -> None:
    layers = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 2, bias=False)
    module = nets.randomise(nn.Sequential(*layers).double().eval())
    before = """
        input  %input_1:Nx5
        weight %0.bias:6
        weight %0.weight:6x5
        weight %1.bias:6
        weight %1.weight:6
        weight %2.weight:2x6
        %linear:Nx6 = linear(%input_1, %0.weight, %0.bias)
        %layer_norm:Nx6 = layer_norm(%linear, %1.weight, %1.bias) trailing=1
        %linear_1:Nx2 = linear(%layer_norm, %2.weight, _)
        output %linear_1
    """
    after = before.replace("        weight %1.bias:6\n", "").replace(", _)", ", %2.bias)")
    after = after.replace("layer_norm(%linear, %1.weight, %1.bias)", "rms_norm(%linear, %1.weight) eps=1e-05")
    after = after.replace("        weight %2.weight", "        weight %2.bias:2\n        weight %2.weight")
    program = gp.load(module, (torch.randn(3, 5, dtype=torch.float64),))
    assert_pass("rms", program, before=before, after=after, equals="original")
