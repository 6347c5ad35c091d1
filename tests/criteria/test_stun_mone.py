"""STUN and MoNE against the formulas of their papers."""

from __future__ import annotations

from dataclasses import replace

import nets
import numpy as np
import pytest
import torch

import graphprune as gp
from graphprune.coupling.places import places
from graphprune.coupling.routes import routes
from graphprune.criteria.experts import merged_at
from graphprune.ir.facts import Groups, Scores


def test_stun_leaves_one_of_each_cluster_whatever_the_count():
    rows = np.array([[0.0, 0], [5, 5], [0.1, 0], [5, 5.2], [9, 0], [0.04, 0.01]])
    order = np.argsort(-merged_at(rows)).tolist()
    clusters = {0: "a", 2: "a", 5: "a", 1: "b", 3: "b", 4: "c"}
    assert sorted(clusters[k] for k in order[:3]) == ["a", "b", "c"]
    assert sorted(clusters[k] for k in order[:2]) != ["a", "a"]
    assert sorted(merged_at(rows)) == [1, 2, 3, 4, 5, 6]


def test_of_two_clusters_that_are_merged_the_one_nearer_to_the_mean_stands_for_both():
    assert merged_at(np.array([[0.0], [0.02], [0.1], [5]])).tolist() == [4, 1, 2, 3]
    assert merged_at(np.array([[9.0], [0], [0.1], [0.3]])).tolist() == [3, 4, 1, 2]


def scored(name: str, by: str):
    inputs = tuple(nets.ZOO[name].inputs())
    program = nets.program(name)
    data = [[x.numpy() for x in inputs], [x.numpy() * 2 for x in inputs]]
    return gp.run(f"group{{places=experts}},score{{by={by} normalize=none}}", replace(program, data=data)), data


def test_stun_reads_the_rows_of_the_router():
    program, _ = scored("TopTwo", "stun")
    expected = merged_at(nets.module("TopTwo").gate.weight.detach().numpy())
    assert [group.name for group in program.fact(Groups)] == ["gate"]
    assert np.allclose(program.fact(Scores).scores["gate"], expected)


@pytest.mark.parametrize("name", ["TopTwo", "Soft"])
def test_mone_is_how_often_times_how_much_it_varies(name):
    program, data = scored(name, "mone")
    module = nets.module(name)
    with torch.no_grad():
        h = torch.tanh(module.enter(torch.cat([torch.from_numpy(batch[0]) for batch in data])))
        made = (module.of_all(h) - module.shift).numpy()  # (tokens, experts, width)
        share = module.gate(h).softmax(-1)
        used = torch.zeros_like(share).scatter(1, share.topk(2, -1).indices, 1) if name == "TopTwo" else None
    expected = []
    for expert in range(made.shape[1]):
        own = made[:, expert] if used is None else made[used[:, expert].numpy() > 0, expert]
        often = float(share[:, expert].sum()) if used is None else len(own)
        expected.append(often * np.sqrt(own.var(0, ddof=1).sum()) if len(own) > 1 else 0.0)
    assert np.allclose(program.fact(Scores).scores["gate"], expected)


def test_experts_are_a_place_and_no_other_softmax_is():
    graph = nets.program("Limited").graph
    found = places(graph)
    assert sorted(leaf.size for leaf, where in found.items() if where == "experts") == [2, 3]
    assert len(routes(graph)) == 1
    by_size = {leaf.size: where for leaf, where in places(nets.program("TopTwo").graph).items()}
    assert 4 not in by_size  # inner: picked weights are no attention
