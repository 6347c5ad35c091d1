"""Every pass on a network small enough to read, the same text on both hosts."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from assert_pass import assert_pass

import graphprune as gp
from graphprune.calibration.batches import batches
from graphprune.ir.facts import Keep
from graphprune.ir.program import Program
from graphprune.pipeline.base import passes

hosts = pytest.mark.parametrize("host", tiny.HOSTS)

CHAIN = """
input  %x:Nx3x5x5
weight %bn.bias:4
weight %bn.running_mean:4
weight %bn.running_var:4
weight %bn.weight:4
weight %conv.weight:4x3x3x3
weight %head.bias:2
weight %head.weight:2x4x1x1
%conv2d:Nx4x3x3 = conv(%x, %conv.weight, _) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
%batch_norm:Nx4x3x3 = batch_norm(%conv2d, %bn.weight, %bn.bias, %bn.running_mean, %bn.running_var) eps=1e-05 training=False
%relu:Nx4x3x3 = pointwise(%batch_norm) function=relu zero=first
%conv2d_1:Nx2x3x3 = conv(%relu, %head.weight, %head.bias) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
output %conv2d_1
"""  # noqa: E501
"""Four channels."""
CUT = """
input  %x:Nx3x5x5
weight %bn.bias:{n}
weight %bn.running_mean:{n}
weight %bn.running_var:{n}
weight %bn.weight:{n}
weight %conv.weight:{n}x3x3x3
weight %head.bias:2
weight %head.weight:2x{n}x1x1
%conv2d:Nx{n}x3x3 = conv(%x, %conv.weight, _) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
%batch_norm:Nx{n}x3x3 = batch_norm(%conv2d, %bn.weight, %bn.bias, %bn.running_mean, %bn.running_var) eps=1e-05 training=False
%relu:Nx{n}x3x3 = pointwise(%batch_norm) function=relu zero=first
%conv2d_1:Nx2x3x3 = conv(%relu, %head.weight, %head.bias) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
output %conv2d_1
"""  # noqa: E501
"""The same with ``n`` of them."""
FORK = """
input  %x:Nx3x5x5
weight %left.bias:2
weight %left.weight:2x6x1x1
weight %right.bias:2
weight %right.weight:2x6x1x1
weight %stem.bias:6
weight %stem.weight:6x3x1x1
%conv2d:Nx6x5x5 = conv(%x, %stem.weight, %stem.bias) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
%relu:Nx6x5x5 = pointwise(%conv2d) function=relu zero=first
%conv2d_1_reindex_0:Nx6x5x5 = reindex(%relu) axis=1 fills=False inner=1
%conv2d_1:Nx2x5x5 = conv(%conv2d_1_reindex_0, %left.weight, %left.bias) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
%conv2d_2_reindex_0:Nx6x5x5 = reindex(%relu) axis=1 fills=False inner=1
%conv2d_2:Nx2x5x5 = conv(%conv2d_2_reindex_0, %right.weight, %right.bias) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
%add:Nx2x5x5 = pointwise(%conv2d_1, %conv2d_2) function=add zero=both
output %add
"""  # noqa: E501
"""Two readers, each with a choice of its own."""


def chain(host: str, recipe: str = "") -> Program:
    return gp.run(recipe, tiny.program("chain", host)) if recipe else tiny.program("chain", host)


@hosts
def test_group(host: str) -> None:
    after = """
        conv: 4 channels
            carrier bn.bias[0]
            carrier bn.running_mean[0]
            carrier bn.running_var[0]
            carrier bn.weight[0]
            reader  head.weight[1]
            writer  conv.weight[0]
        conv.weight[1]: 3 frozen, graph input
        head: 2 frozen, reaches the graph output
    """
    assert_pass("group", chain(host), before=CHAIN, after=after)


SKIP = """
input  %x:Nx3x5x5
weight %head.bias:2
weight %head.weight:2x4x1x1
weight %inner.bias:3
weight %inner.weight:3x4x1x1
weight %outer.bias:4
weight %outer.weight:4x3x1x1
weight %stem.bias:4
weight %stem.weight:4x3x1x1
%conv2d:Nx4x5x5 = conv(%x, %stem.weight, %stem.bias) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
%conv2d_1:Nx3x5x5 = conv(%conv2d, %inner.weight, %inner.bias) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
%relu:Nx3x5x5 = pointwise(%conv2d_1) function=relu zero=first
%conv2d_2:Nx4x5x5 = conv(%relu, %outer.weight, %outer.bias) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
%add:Nx4x5x5 = pointwise(%conv2d, %conv2d_2) function=add zero=both
%conv2d_3:Nx2x5x5 = conv(%add, %head.weight, %head.bias) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
output %conv2d_3
"""
"""A residual branch of two layers."""


@hosts
def test_branches(host: str) -> None:
    after = """
        branch:outer: 1 channels
            reader  outer.bias[0]
            reader  outer.weight[0]
        stem.weight[1]: 3 frozen, graph input
        head: 2 frozen, reaches the graph output
        stem: 4 frozen, `branches{alone=true}` leaves channels alone
        inner: 3 frozen, `branches{alone=true}` leaves channels alone
    """
    program = gp.run("group", tiny.program("skip", host))
    assert_pass("branches{alone=true}", program, before=SKIP, after=after)


@hosts
def test_factor(host: str) -> None:
    after = SKIP.replace("weight %inner.weight:3x4x1x1", "weight %inner.rank:3x4x1x1\nweight %inner.weight:3x3x1x1")
    conv = "dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]"
    after = after.replace(
        "%conv2d_1:Nx3x5x5 = conv(%conv2d,",
        f"%conv2d_1_rank:Nx3x5x5 = conv(%conv2d, %inner.rank, _) {conv}\n%conv2d_1:Nx3x5x5 = conv(%conv2d_1_rank,",
    )
    program = tiny.program("skip", host)
    assert_pass("factor{layers=inner}", program, before=SKIP, after=after, equals="original", again=False)


@hosts
def test_propagate_takes_a_branch_out(host: str) -> None:
    after = """
        input  %x:Nx3x5x5
        weight %head.bias:2
        weight %head.weight:2x4x1x1
        weight %stem.bias:4
        weight %stem.weight:4x3x1x1
        %conv2d:Nx4x5x5 = conv(%x, %stem.weight, %stem.bias) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
        %conv2d_3:Nx2x5x5 = conv(%conv2d, %head.weight, %head.bias) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
        output %conv2d_3
    """  # noqa: E501
    known = gp.run("group,branches{alone=true}", tiny.program("skip", host))
    program = known.learn(Keep({"branch:outer": np.arange(0)}))
    assert_pass("propagate", program, before=SKIP, after=after, equals="masked", again=False)


@hosts
def test_score(host: str) -> None:
    after = """
        score by l1 conv: 1.077 1.229 0.978 0.716
    """
    assert_pass("score{by=l1}", chain(host, "group"), before=CHAIN, after=after)


@hosts
def test_mask(host: str) -> None:
    after = """
        keep conv: 0 1
    """
    assert_pass("mask{channels=0.5x}", chain(host, "group,score{by=l1}"), before=CHAIN, after=after, equals="masked")


@hosts
def test_dead(host: str) -> None:
    after = """
        keep conv: 0 2 3
    """
    program = tiny.without(tiny.program("chain", host), "head.weight", 1)
    assert_pass("dead", gp.run("group", program), before=CHAIN, after=after, equals="original")


@hosts
def test_loosen(host: str) -> None:
    shut = "\n".join(line for line in FORK.splitlines() if " = reindex(" not in line)
    for name in ("%conv2d_1_reindex_0", "%conv2d_2_reindex_0"):
        shut = shut.replace(name, "%relu")
    assert_pass("loosen", gp.run("group,score", tiny.program("fork", host)), before=shut, after=FORK)


@hosts
def test_propagate(host: str) -> None:
    program = chain(host, "group,score{by=l1},mask{channels=0.5x}")
    assert_pass("propagate", program, before=CHAIN, after=CUT.format(n=2), equals="masked", again=False)


@hosts
def test_compensate_adds_what_never_changed_to_the_bias_after_it(host: str) -> None:
    """Channel 1 is what its BatchNorm makes of zero: cut, its part goes into the bias, and nothing is lost."""
    program = gp.run("group,dead{constant=true},propagate", with_data(tiny.without(chain(host), "conv.weight", 0)))
    three = CUT.format(n=3)
    assert_pass("compensate{by=mean}", program, before=three, after=three, equals="original", again=False)


@hosts
def test_fold(host: str) -> None:
    after = """
        input  %x:Nx3x5x5
        weight %conv.bias:4
        weight %conv.weight:4x3x3x3
        weight %head.bias:2
        weight %head.weight:2x4x1x1
        %conv2d:Nx4x3x3 = conv(%x, %conv.weight, %conv.bias) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
        %relu:Nx4x3x3 = pointwise(%conv2d) function=relu zero=first
        %conv2d_1:Nx2x3x3 = conv(%relu, %head.weight, %head.bias) dilation=[1, 1] groups=1 pads=[0, 0, 0, 0] stride=[1, 1]
        output %conv2d_1
    """  # noqa: E501
    assert_pass("fold", chain(host), before=CHAIN, after=after)


@hosts
def test_reorder(host: str) -> None:
    after = """
        keep stem: 5 2 4 3
        keep left.weight[1]: 5 2 4
        keep right.weight[1]: 2 4 3
        conv2d_1_reindex_0: view
        conv2d_2_reindex_0: view
    """
    program = gp.run("group,score{by=l1},mask{channels=0.5x unconstrained=readers}", tiny.program("fork", host))
    assert_pass("reorder{menu=view}", program, before=FORK, after=after, equals="masked", again=False)


def with_data(program: Program) -> Program:
    rng = np.random.default_rng(2)
    data = [rng.standard_normal((6, *x.shape[1:])).astype(x.dtype) for x in program.host.example()]
    return replace(program, data=batches(data, program.graph.inputs))


def test_every_pass_is_here() -> None:
    """Whoever adds a pass adds what it does to a network."""
    calls = [
        node
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "assert_pass"
    ]
    checked = {call.args[0].value.partition("{")[0] for call in calls if isinstance(call.args[0], ast.Constant)}
    ours = {name for name, kind in passes().items() if kind.__module__.startswith("graphprune.")}
    assert checked >= ours, f"no assert_pass for {ours - checked}"
