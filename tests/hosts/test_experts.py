"""Experts in ONNX files, and in networks of the transformers library."""

from __future__ import annotations

import io
import warnings

import experts  # noqa: F401
import nets
import numpy as np
import onnx
import pytest
import torch

import graphprune as gp
from graphprune.coupling.groups import find_groups
from graphprune.errors import RecipeError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.ir.facts import Groups, Keep
from graphprune.ir.program import Program
from graphprune.pipeline.compare import relative

CHOSEN = {"gate": np.array([0, 2, 3])}


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


@pytest.mark.parametrize("name", ["Dense", "TopTwo", "Numbered", "Placed", "OneHot", "Below"])
def test_an_onnx_file_has_the_experts_of_the_module_it_was_made_from(name):
    program = exported(name)
    groups = find_groups(program.graph)
    router = next(group for group in groups if group.size == experts.EXPERTS)
    assert sorted(group.size for group in groups) == sorted(nets.ZOO[name].prunable.values())
    assert router.least == next(g for g in find_groups(nets.program(name).graph) if g.name == "gate").least
    keep = Keep({router.name: np.array([0, 2, 3])})
    pruned = gp.run("propagate", program.learn(groups).learn(keep))
    assert all(check.error <= check.tolerance for check in gp.verify(pruned))
    other = Keep({router.name: np.array([1, 2, 3])})
    moved = gp.run("propagate", program.learn(groups).learn(other))
    inputs = program.host.example()
    assert relative(pruned.host.run(inputs)[0], moved.host.run(inputs)[0]) > 1e-3  # experts are not alike
