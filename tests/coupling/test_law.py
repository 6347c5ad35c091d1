"""The law: permuting a group changes nothing. The oracle: pruned computes what masked computes.

Both in float64, on random parameters and buffers. The oracle masks the user's own module, outside
of everything that graphprune traced.
"""

from __future__ import annotations

import copy

import nets
import numpy as np
import pytest
import torch

from graphprune.axes.index import Index
from graphprune.coupling.groups import find_groups
from graphprune.coupling.lanes import thin
from graphprune.ir.facts import Groups, Keep
from graphprune.passes.propagate import Propagate
from graphprune.pipeline import verify as proof
from graphprune.pipeline.run import run_pass

EXACT = 1e-12
MOVES = 1e-6
NETS = sorted(nets.ZOO)


@pytest.mark.parametrize("name", NETS)
def test_what_must_be_prunable_is_and_what_must_be_frozen_says_why(name):
    net, graph = nets.ZOO[name], nets.program(name).graph
    groups = find_groups(graph)
    assert {group.name: group.size for group in groups} == dict(net.prunable)
    everything = find_groups(graph, normalised=True)
    assert {group.name: group.size for group in everything} == {**net.prunable, **net.mixed}
    reasons = {dim.name: dim.reason for dim in groups.frozen}
    for dim, words in net.frozen.items():
        assert words in reasons.get(dim, "not listed"), (dim, reasons)
    for dim in net.mixed:
        assert "normalises across it" in reasons[dim]


def permuted(program, index, leave_out=None):
    """The outputs with every parameter axis in the order that ``index`` gives, but for one."""
    host = program.host.copy()
    for value in program.graph.parameters.values():
        for axis, dim in enumerate(value.dims):
            if index.touches(dim) and (value.name, axis) != leave_out:
                host.take(value.name, axis, index(dim))
    thin(program.graph, host, index)
    return host.run(host.example())


def shifted(size):
    """A permutation without a fixed point."""
    return np.roll(np.arange(size), 1)


@pytest.mark.parametrize("name", NETS)
def test_permuting_a_group_changes_nothing_and_less_than_all_of_it_does(name):
    program = nets.program(name)
    groups = find_groups(program.graph, normalised=True)
    before = program.host.run(program.host.example())
    for group in groups:
        index = Index({group.dim: shifted(group.size)})
        assert nets.relative_error(before, permuted(program, index)) <= EXACT, group.name
        for member in group.members if len(group.members) > 1 else ():  # one alone: nothing would be permuted
            moved = nets.relative_error(before, permuted(program, index, (member.parameter, member.axis)))
            if str(member) in nets.ZOO[name].inert:
                assert moved <= EXACT, f"{group.name} without {member}"
            else:
                assert moved > MOVES, f"{group.name} without {member}"


@pytest.mark.parametrize("name", NETS)
def test_members_are_all_parameter_axes_that_the_permutation_touches(name):
    graph = nets.program(name).graph
    for group in find_groups(graph, normalised=True):
        index = Index({group.dim: shifted(group.size)})
        touched = {
            (value.name, axis)
            for value in graph.parameters.values()
            for axis, dim in enumerate(value.dims)
            if index.touches(dim)
        }
        assert {(member.parameter, member.axis) for member in group.members} == touched


def masked_module(name, parameters):
    """The user's module with every reader slice that is not kept set to zero: plan.json and torch."""
    module = copy.deepcopy(nets.module(name))
    tensors = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers()])
    with torch.no_grad():
        for parameter, axes in parameters.items():
            for axis, entry in axes.items():
                if entry["role"] == "reader":
                    tensor = tensors[parameter]
                    drop = np.setdiff1d(np.arange(tensor.shape[int(axis)]), entry["keep"])
                    tensor.index_fill_(int(axis), torch.from_numpy(drop), 0)
    for router, rows in nets.ZOO[name].router.items():
        if "0" in parameters.get(rows, {}):
            kept = torch.tensor(parameters[rows]["0"]["keep"])
            module.get_submodule(router).register_forward_hook(lambda _, __, y, kept=kept: only(y, kept))
    return module


def only(logits, kept):
    """Minus infinity where an expert is not kept."""
    return torch.full_like(logits, -torch.inf).index_copy(-1, kept, logits.index_select(-1, kept))


def random_keep(groups, rng):
    """A random subset of every group; some whole, some down to one channel."""
    sizes = {
        group: int(rng.choice([group.least, group.size, rng.integers(group.least, group.size + 1)])) for group in groups
    }
    return Keep({g.name: np.sort(rng.permutation(g.size)[:n]) for g, n in sizes.items()})


def cut(program, keep):
    groups = find_groups(program.graph)
    return run_pass(Propagate(), program.learn(groups).learn(keep))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_pruned_computes_what_the_masked_module_computes(name, seed):
    program = nets.program(name)
    keep = random_keep(find_groups(program.graph), np.random.default_rng([seed, NETS.index(name)]))
    pruned = cut(program, keep)
    inputs = nets.ZOO[name].inputs()
    masked = nets.outputs(masked_module(name, pruned.plan["parameters"]), inputs)
    assert nets.relative_error(masked, nets.outputs(pruned.model, inputs)) <= EXACT
    if seed == 0:
        assert all(check.error <= check.tolerance for check in proof.verify(pruned))


@pytest.mark.parametrize("name", NETS)
def test_a_cut_in_any_order_is_a_cut_and_a_permutation(name):
    """``keep`` is ordered: the same channels in another order are the same network."""
    program = nets.program(name)
    groups = find_groups(program.graph)
    rng = np.random.default_rng(5)
    keep = {g.name: rng.permutation(g.size)[: max(g.least, g.size - 1)] for g in groups}
    ordered = cut(program, Keep({name: np.sort(kept) for name, kept in keep.items()}))
    mixed = cut(program, Keep(keep))
    inputs = program.host.example()
    assert nets.relative_error(ordered.host.run(inputs), mixed.host.run(inputs)) <= EXACT


@pytest.mark.parametrize("name", NETS)
def test_a_cut_is_a_smaller_network_that_can_be_cut_again(name):
    """The graph read anew has the groups it had, in the sizes that were kept."""
    program = nets.program(name)
    keep = random_keep(find_groups(program.graph), np.random.default_rng(11))
    pruned = cut(program, keep)
    # a leaf of size one is no group, and a product that loses a factor is called by another name
    there = {group.name for group in find_groups(program.graph) if not gone(group, pruned)}
    sizes = sorted(len(kept) for name, kept in keep.keep.items() if len(kept) > 1 and name in there)
    assert sorted(group.size for group in find_groups(pruned.graph)) == sizes


def gone(group, pruned):
    """Whether it is within an expert that went."""
    return not any(member.parameter in pruned.graph.parameters for member in group.members)


def test_ops_of_single_positions_are_renumbered():
    """The law for what is no parameter: rows of the router alone in another order are another network."""
    program = nets.program("ComparedListed")
    before = program.host.run(program.host.example())
    group = next(group for group in find_groups(program.graph) if group.name == "gate")
    host = program.host.copy()
    for member in group.members:
        host.take(member.parameter, member.axis, shifted(group.size))
    assert nets.relative_error(before, host.run(host.example())) > MOVES


def test_the_oracle_notices_a_channel_too_few():
    """The comparison has teeth: a mask that drops one channel more is far away."""
    program = nets.program("Residual")
    groups = find_groups(program.graph)
    keep = Keep({group.name: np.arange(group.size - 1) for group in groups})
    pruned = cut(program, keep)
    parameters = copy.deepcopy(pruned.plan["parameters"])
    reader = next(axes["1"] for axes in parameters.values() if axes.get("1", {}).get("role") == "reader")
    reader["keep"] = reader["keep"][:-1]
    inputs = nets.ZOO["Residual"].inputs()
    masked = nets.outputs(masked_module("Residual", parameters), inputs)
    assert nets.relative_error(masked, nets.outputs(pruned.model, inputs)) > 1e-4


def test_groups_is_a_graph_of_axes_and_dims():
    groups = find_groups(nets.program("Gate").graph)
    assert isinstance(groups, Groups)
    node = groups.graph.nodes["conv"]
    assert node == {"kind": "dim", "size": 5, "frozen": ""}
    assert set(groups.graph["conv"]) == {
        *("conv.weight:0", "conv.bias:0", "bn.weight:0", "bn.bias:0", "bn.running_mean:0", "bn.running_var:0"),
        "conv2.weight:1",
    }
    assert groups.graph.edges["conv", "conv2.weight:1"] == {"role": "reader", "ops": ("conv2",)}
    assert groups.graph.edges["conv", "bn.running_var:0"]["role"] == "carrier"
    assert groups.graph.nodes["fc"]["frozen"] == "reaches the graph output"
