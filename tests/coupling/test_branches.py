"""Residual branches: which may go, what goes along, and the law that removed = last writers zeroed, on both hosts."""

from __future__ import annotations

import copy
from itertools import combinations

import nets
import numpy as np
import pytest
import torch
from residual import Cached, Twice, transformer
from torch import nn

import graphprune as gp
from graphprune.cost.static import gates, macs, params
from graphprune.coupling.branches import blocks, gate, residuals, streams
from graphprune.ir.graph import Branch
from graphprune.ir.program import Program
from graphprune.pipeline.bypass import Bypass
from graphprune.pipeline.compare import relative

EXACT = 1e-12
ZOO = [name for name in sorted(nets.ZOO) if residuals(nets.program(name).graph)[0]]


def program() -> Program:
    return gp.load(*transformer())


def zeroed(module: nn.Module, names: list[str]) -> nn.Module:
    """The user's module with whole parameters at zero."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in names:
                parameter.zero_()
    return module


@pytest.mark.parametrize("name", ZOO)
def test_a_branch_that_went_is_the_users_module_with_its_last_writers_at_zero(name: str) -> None:
    program, inputs = nets.program(name), nets.ZOO[name].inputs()
    whole = nets.outputs(nets.module(name), inputs)
    for one in residuals(program.graph)[0]:
        cut = Bypass((one.branch,)).apply(program)
        silent = [parameter for parameter, _ in one.silent]
        masked = nets.outputs(zeroed(nets.module(name), silent), inputs)
        found = nets.outputs(cut.model, inputs)
        assert nets.relative_error(masked, found) <= EXACT
        assert nets.relative_error(whole, found) > 1e-6
        for left in silent:  # all of them are needed
            partly = nets.outputs(zeroed(nets.module(name), [other for other in silent if other != left]), inputs)
            assert nets.relative_error(partly, found) > 1e-9, left
        assert not {*silent} & {*cut.graph.parameters}


def test_what_only_a_branch_was_for_is_gone_and_nothing_else() -> None:
    module, x = transformer()
    given = gp.load(module, (x,))
    attention = next(one for one in residuals(given.graph)[0] if one.name == "branch:blocks.1.proj")
    cut = Bypass((attention.branch,)).apply(given)
    gone = {f"blocks.1.{layer}.{part}" for layer in ("norm1", "qkv", "proj") for part in ("weight", "bias")}
    assert set(module.state_dict()) - set(cut.model.state_dict()) == gone
    assert set(module.state_dict()) == set(given.model.state_dict()), "the program given stays as it was"


def test_costs_of_every_choice_are_those_of_what_is_left() -> None:
    given = program()
    found = residuals(given.graph)[0][:4]
    groups = [gate(given.graph, [one]) for one in found]
    known = gates(given.graph, groups)
    predicted = [count(given.graph, given.host, known) for count in (params, macs)]
    for count in range(1, len(found) + 1):
        for chosen in combinations(range(len(found)), count):
            left = Bypass(tuple(found[k].branch for k in chosen)).apply(given)
            keep = {groups[k].dim: 0 for k in chosen}
            actual = [counted(left.graph, left.host)() for counted in (params, macs)]
            assert [cost(keep) for cost in predicted] == pytest.approx(actual, rel=1e-12)


def test_streams_and_blocks_are_in_order() -> None:
    graph = program().graph
    runs = streams(residuals(graph)[0], graph)
    assert [[one.name for one in run] for run in runs] == [
        [f"branch:blocks.{k}.{layer}" for k in range(3) for layer in ("proj", ("down", "down", "scale")[k])]
    ]
    assert [[one.attends for one in block] for block in blocks(runs[0])] == 3 * [[True, False]]


def test_branches_that_must_stay_say_why() -> None:
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    stays = {one.name: one.reason for one in residuals(gp.load(Twice().double(), (x,)).graph)[1]}
    assert "`last.weight`" in stays["branch:last"] or "`last.bias`" in stays["branch:last"]
    assert stays["branch:b"].startswith("no parameter multiplies the whole of it")
    cached = gp.load(Cached().double(), (torch.randn(2, 4, 5, dtype=torch.float64),))
    found, frozen = residuals(cached.graph)
    assert [one.name for one in found] == ["branch:down"]
    assert [one.name for one in frozen] == ["branch:out"]
    assert frozen[0].reason.startswith("part of it leaves the graph as `")


def test_the_same_on_onnx(tmp_path) -> None:
    module, x = transformer(2)
    path = tmp_path / "model.onnx"
    given = gp.load(module.float(), (x.float(),))
    given.host.save_onnx(path)
    onnx = gp.load(path)
    names = [one.name for one in residuals(given.graph)[0]]
    found = residuals(onnx.graph)[0]
    assert [one.name for one in found] == names
    batch = [x.float().numpy()]
    for one in found:
        cut = Bypass((one.branch,)).apply(onnx)
        layer = one.name.removeprefix("branch:")  # a layer, or a scale
        masked = zeroed(module, [layer, f"{layer}.weight", f"{layer}.bias"])
        expected = nets.outputs(masked, (x.float(),))
        assert relative(expected[0], cut.host.run(batch)[0]) <= 1e-5
        assert relative(onnx.host.run(batch)[0], cut.host.run(batch)[0]) > 1e-4
        assert len(cut.graph.parameters) < len(onnx.graph.parameters)


def test_a_bypass_of_what_is_no_branch_is_refused() -> None:
    given = program()
    for branch in (("nothing", 0), ("linear", 0), (residuals(given.graph)[0][0].branch.op, 0)):
        with pytest.raises(gp.GraphpruneError, match="no branch of this model"):
            Bypass((Branch(*branch),)).apply(given)


def test_permuting_is_no_business_of_a_gate() -> None:
    """A group of branches has a dim of its own, which no axis has."""
    graph = program().graph
    dims = {id(dim) for value in graph.values() for dim in value.dims}
    assert all(id(gate(graph, [one]).dim) not in dims for one in residuals(graph)[0])
    assert np.all([gate(graph, [one]).least == 0 for one in residuals(graph)[0]])
