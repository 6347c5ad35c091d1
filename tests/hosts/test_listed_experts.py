"""Experts that are modules of a list: in ONNX files, in costs and scores, and in what is done with plans of them."""

from __future__ import annotations

import nets
import numpy as np
import onnx
import onnx.numpy_helper as nh
import pytest
import torch
from test_experts import exported

import graphprune as gp
from graphprune.cost import static
from graphprune.coupling.branches import residuals
from graphprune.coupling.groups import everything, find_groups
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.ir.facts import Keep, Scores
from graphprune.ir.program import Program
from graphprune.pipeline.compare import relative

MADE = "".join(f"u{k} = MatMul(x, up{k}) r{k} = Relu(u{k}) m{k} = MatMul(r{k}, down{k}) " for k in range(3))
SUM = "p0 = Mul(w0, m0) p1 = Mul(w1, m1) p2 = Mul(w2, m2) s = Add(p0, p1) y = Add(s, p2)"
BEST = "values, ids = TopK(logits, one) "
TEXTS = {
    "Gather": "share = Softmax(logits) "
    + "".join(f"g{k} = Gather<axis = 1>(share, at{k}) w{k} = Unsqueeze(g{k}, one) " for k in range(3))
    + SUM,
    "Slice": "share = Softmax(logits) " + "".join(f"w{k} = Slice(share, from{k}, to{k}, one) " for k in range(3)) + SUM,
    "Split": f"share = Softmax(logits) w0, w1, w2 = Split<axis = 1, num_outputs = 3>(share) {SUM}",
    "Equal": BEST
    + "".join(f"e{k} = Equal(ids, at{k}) f{k} = Cast<to = 1>(e{k}) w{k} = Mul(f{k}, values) " for k in range(3))
    + SUM,
    "Where": BEST + "".join(f"e{k} = Equal(ids, at{k}) w{k} = Where(e{k}, values, zero) " for k in range(3)) + SUM,
    "ReduceMax": "share = Softmax(logits) best = ReduceMax<keepdims = 1>(share, one) ids = ArgMax<axis = 1>(share) "
    + "n = Shape(x) none = ConstantOfShape(n) "
    + "".join(f"e{k} = Equal(ids, at{k}) p{k} = Where(e{k}, m{k}, none) " for k in range(3))
    + "s = Add(p0, p1) t = Add(s, p2) y = Mul(t, best)",
    "Concat": "share = Softmax(logits) "
    + "".join(f"c{k} = Unsqueeze(m{k}, one) " for k in range(3))
    + """all = Concat<axis = 1>(c0, c1, c2) t = Unsqueeze(share, one) z = MatMul(t, all) y = Squeeze(z, one)""",
}


def of_text(text: str) -> Program:
    """A router over three experts of (6, 4) and (4, 6), in ONNX's text syntax."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> net (float[N,6] x) => (float[N,6] y) {'
        f"logits = MatMul(x, router) {MADE}{text} }}"
    )
    arrays = {"router": rng.standard_normal((6, 3)), "zero": np.zeros(())}
    numbers = {"one": np.array([1])}
    for k in range(3):
        arrays |= {f"up{k}": rng.standard_normal((6, 4)), f"down{k}": rng.standard_normal((4, 6))}
        numbers |= {f"at{k}": np.array(k), f"from{k}": np.array([k]), f"to{k}": np.array([k + 1])}
    for name, array in {**{name: a.astype(np.float32) for name, a in arrays.items()}, **numbers}.items():
        model.graph.initializer.append(nh.from_array(array, name))
    host = OnnxHost(model, {"x": (7, 6)})
    return Program(host=host, source=host)


def kept(program: Program, router: str, *indices: int) -> Program:
    groups = find_groups(program.graph)
    return gp.run("propagate", program.learn(groups).learn(Keep({router: np.array(indices)})))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_experts_of_a_list_in_onnx_are_a_dim_and_pruned_is_masked(text):
    program = of_text(text)
    pruned, other = kept(program, "router", 0, 2), kept(program, "router", 1, 0)
    assert all(check.error <= check.tolerance for check in gp.verify(pruned))
    assert {"up0", "up2"} <= set(pruned.graph.parameters) and "up1" not in pruned.graph.parameters
    assert "down1" not in pruned.host.model.graph.initializers
    inputs = program.host.example()
    assert relative(pruned.host.run(inputs)[0], other.host.run(inputs)[0]) > 1e-3  # experts are not alike
    again = kept(pruned, "router", 1)
    assert [name for name in again.graph.parameters if name.startswith("up")] == ["up2"]
    assert all(check.error <= check.tolerance for check in gp.verify(again))


EXPORTED = ("ComparedListed", "ChunksOfListed", "StackOfListed", "SumOfListed", "FilledListed", "CatOfListed")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EXPORTED, "MultipliedListed"])
def test_an_exported_file_has_the_experts_of_its_module(name):
    program = exported(name)
    groups = find_groups(program.graph)
    assert sorted(group.size for group in groups) == sorted(nets.ZOO[name].prunable.values())
    pruned = kept(program, "gate", 0, 3)
    assert all(check.error <= check.tolerance for check in gp.verify(pruned))


@pytest.mark.parametrize("name", ["SumOfListed", "StackOfListed", "RowsOfListed"])
def test_an_expert_costs_what_only_it_is_for(name):
    """Experts are alike here: what is left is what the cut network has."""
    program = nets.program(name)
    groups = everything(program.graph)
    gates = static.gates(program.graph, groups)
    gate = next(group for group in groups if group.name == "gate")
    pruned = kept(program, "gate", 0, 2)
    for cost in (static.params, static.size):
        whole = cost(program.graph, program.host, gates)
        assert whole() == pytest.approx(cost(program.graph, program.host)())
        assert whole({gate.dim: 2}) == pytest.approx(cost(pruned.graph, pruned.host)())
    if name != "RowsOfListed":  # where rows are as many as are chosen
        macs = static.macs(program.graph, program.host, gates)
        assert macs({gate.dim: 2}) == pytest.approx(static.macs(pruned.graph, pruned.host)())


def test_an_expert_is_no_branch_of_its_own():
    graph = nets.program("ComparedListed").graph
    found, _ = residuals(graph)
    assert [one.op for one in found] == [graph.maker(graph.ops[-1].inputs[0])]


def test_what_only_sums_beside_an_expert_stays():
    """Both go that the first sum adds, and it goes with them."""
    program = nets.program("ChunksOfListed")
    pruned = kept(program, "gate", 2)
    assert {name.split(".")[1] for name in pruned.graph.parameters if name.startswith("experts")} == {"2"}
    assert all(check.error <= check.tolerance for check in gp.verify(pruned))


def test_mone_counts_shares_and_how_much_an_expert_alone_varies():
    name = "StackOfListed"
    module, (x,) = nets.module(name), nets.ZOO[name].inputs()
    program = gp.load(module, (x,), data=[x])
    scores = gp.run("group{places=experts},score{by=mone}", program).fact(Scores).scores["gate"]
    with torch.no_grad():
        h = torch.tanh(module.enter(x))
        made = torch.stack([expert(h) for expert in module.experts])
        expected = module.gate(h).softmax(-1).sum(0) * made.var(1).sum(-1).sqrt()
    assert scores / scores.sum() == pytest.approx((expected / expected.sum()).numpy())


def test_mone_of_experts_that_see_their_own_tokens_alone():
    name = "RowsOfListed"
    module, (x,) = nets.module(name), nets.ZOO[name].inputs()
    program = gp.load(module, (x,), data=[x])
    scores = gp.run("group{places=experts},score{by=mone}", program).fact(Scores).scores["gate"]
    with torch.no_grad():
        h = torch.tanh(module.enter(x))
        ids = module.gate(h).topk(2, -1).indices
        rows = [(ids == k).any(-1) for k in range(4)]
        expected = [
            float(own.sum() * module.experts[k](h[own]).var(0).sum().sqrt()) if own.sum() > 1 else 0.0
            for k, own in enumerate(rows)
        ]
    assert scores / scores.sum() == pytest.approx(np.array(expected) / sum(expected))


def test_layers_whose_rows_data_chooses_are_not_fitted_and_that_is_said():
    module, (x,) = nets.module("RowsOfListed"), nets.ZOO["RowsOfListed"].inputs()
    program = gp.load(module, (x,), data=[x, x.flip(1)])
    pruned = gp.run("group,score{by=l2},mask{params=0.7x},propagate,compensate", program)
    assert any("fits no layer whose rows data chooses: experts." in note for note in pruned.notes)


def test_an_expert_that_nobody_chooses_has_a_score():
    module, (x,) = nets.module("RowsOfListed"), nets.ZOO["RowsOfListed"].inputs()
    module = type(module)().double().eval()
    with torch.no_grad():
        module.gate.bias.copy_(torch.tensor([99.0, 99.0, 0.0, 0.0]))
    program = gp.load(module, (x,), data=[x])
    scores = gp.run("group,score{by=obs}", program).fact(Scores).scores
    assert np.isfinite(scores["experts.2.0"]).all() and scores["experts.0.0"].any()


def test_a_plan_of_experts_of_a_list_is_done_again():
    program = nets.program("ComparedListed")
    pruned = kept(program, "gate", 3, 1)
    again = gp.apply(pruned.plan, nets.module("ComparedListed"), nets.ZOO["ComparedListed"].inputs())
    inputs = program.host.example()
    assert relative(pruned.host.run(inputs)[0], again.host.run(inputs)[0]) == 0


class Scored(torch.nn.Module):
    """Scores of activations of which the one is nothing for some tokens."""

    def __init__(self):
        super().__init__()
        self.q, self.k = torch.nn.Linear(3, 5), torch.nn.Linear(3, 5)

    def forward(self, x):
        q, k = self.q(x).sigmoid(), self.k(x).sigmoid()
        return torch.where(x[..., :1] > 0, q, torch.zeros_like(q)) @ k.mT


def test_nothing_in_the_place_of_a_value_masks_no_width_of_it():
    groups = find_groups(gp.load(Scored().eval(), torch.randn(2, 7, 3)).graph)
    assert not list(groups)
    assert [one.reason for one in groups.frozen if one.size == 5] == [
        "matmul (matmul) contracts it between activations"
    ]
