"""Experts in ONNX files, and in networks of the transformers library."""

from __future__ import annotations

import io
import warnings

import nets
import numpy as np
import onnx
import onnx.numpy_helper as nh
import pytest
import torch

import graphprune as gp
from graphprune.coupling.groups import find_groups
from graphprune.errors import BudgetError, RecipeError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.ir.facts import Keep
from graphprune.ir.program import Program
from graphprune.pipeline.compare import relative


def exported(name: str) -> Program:
    """A network of the zoo by way of torch's exporter."""
    module = nets.randomise(nets.ZOO[name].make().eval())
    inputs = tuple(x.float() for x in nets.ZOO[name].inputs())
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, file, dynamo=True, verbose=False)
    host = OnnxHost(onnx.load_from_string(file.getvalue()), [x.numpy() for x in inputs])
    return Program(host=host, source=host)


ALL = """u = Einsum<equation = "ti,eio->teo">(x, up) r = Relu(u)
    all = Einsum<equation = "teo,eoi->tei">(r, down)"""
TEXTS = {
    "OneHot": f"""{ALL} values, ids = TopK(logits, two) hot3 = OneHot(ids, five, hot) share = Softmax(values)
        placed = Einsum<equation = "tke,tk->te">(hot3, share) y = Einsum<equation = "te,teo->to">(placed, all)""",
    "ScatterElements": f"""{ALL} values, ids = TopK(logits, two) share = Softmax(values) shape = Shape(logits)
        none = ConstantOfShape(shape) placed = ScatterElements<axis = 1>(none, ids, share)
        y = Einsum<equation = "te,teo->to">(placed, all)""",
    "ArgMax": """ids = ArgMax<axis = 1, keepdims = 0>(logits) w = Gather(up, ids) v = Gather(down, ids)
        t = Unsqueeze(x, one) a = MatMul(t, w) b = Relu(a) c = MatMul(b, v) y = Squeeze(c, one)""",
}


def of_text(text: str) -> Program:
    """A router over five experts of (6, 4) and (4, 6), in ONNX's text syntax."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> net (float[N,6] x) => (float[N,6] y) {'
        f"logits = MatMul(x, router) {text} }}"
    )
    weights = {"router": (6, 5), "up": (5, 6, 4), "down": (5, 4, 6)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    numbers = {"one": [1], "two": [2], "five": 5, "hot": np.float32([0, 1])}
    for name, array in {**arrays, **{name: np.asarray(number) for name, number in numbers.items()}}.items():
        model.graph.initializer.append(nh.from_array(array, name))
    host = OnnxHost(model, {"x": (7, 6)})
    return Program(host=host, source=host)


def kept(program: Program, *indices: int) -> Program:
    groups = find_groups(program.graph)
    router = next(group for group in groups if group.size == 5 and len(group.members) > 2)
    return gp.run("propagate", program.learn(groups).learn(Keep({router.name: np.array(indices)})))


def prove(program: Program) -> None:
    pruned, other = kept(program, 0, 2, 3), kept(program, 0, 1, 4)
    assert all(check.error <= check.tolerance for check in gp.verify(pruned))
    inputs = program.host.example()
    assert relative(pruned.host.run(inputs)[0], other.host.run(inputs)[0]) > 1e-3  # experts are not alike


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_experts_in_onnx_are_a_dim_and_pruned_is_masked(text):
    prove(of_text(text))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("Soft", "Numbered", "Placed", "Below")]


@pytest.mark.parametrize("name", ["TopTwo", *SLOW])
def test_an_exported_file_has_the_experts_of_its_module(name):
    program = exported(name)
    assert sorted(group.size for group in find_groups(program.graph)) == sorted(nets.ZOO[name].prunable.values())
    prove(program)


def test_fewer_experts_than_are_chosen_are_refused():
    with pytest.raises(RecipeError, match="1 of `gate` would be left, of which 2 are chosen"):
        kept(nets.program("TopTwo"), 3)


def test_a_budget_leaves_as_many_as_are_chosen():
    program = nets.program("TopTwo")
    pruned = gp.run("group{only=gate},score,mask{channels=0.4x},propagate", program)
    assert pruned.graph.parameters["gate.weight"].shape == (2, 6)
    with pytest.raises(BudgetError, match="cannot be met: with every group at its floor"):
        gp.run("group{only=gate},score,mask{channels=0.3x},propagate", program)
