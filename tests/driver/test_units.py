"""Every unit that a budget may be in can be asked for everywhere."""

from __future__ import annotations

import inspect
from dataclasses import fields

import nets
import pytest
import torch
from click.testing import CliRunner

import graphprune as gp
from graphprune.cli import main
from graphprune.cost.static import memory, size, weights_bytes
from graphprune.cost.units import UNITS
from graphprune.passes.mask import Mask


def test_mask_the_interface_and_the_command_line_take_the_same_units():
    assert [field.name for field in fields(Mask)][: len(UNITS)] == list(UNITS)
    assert [name for name in inspect.signature(gp.compile).parameters if name in UNITS] == list(UNITS)
    shown = CliRunner().invoke(main, ["compile", "--help"]).output
    assert all(f"--{name} {unit.example}" in shown for name, unit in UNITS.items())


@pytest.mark.parametrize("name", ["Residual", "Dense"])
def test_memory_can_be_asked_for(name):
    program = nets.program(name)
    done = gp.compile(program, memory="0.7x", measure=False)
    assert done.report["recipe"].startswith("group,score,mask{memory=0.7x allocate=global")
    whole, left = (memory(one.graph, one.host)() for one in (program, done.program))
    assert left <= 0.7 * whole


class Mixed(torch.nn.Module):
    """Weights of two and of four bytes a number, and a table of integers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(8, 24).half(), torch.nn.Linear(24, 4)
        self.register_buffer("shift", torch.arange(4, dtype=torch.int8))

    def forward(self, x):
        return self.b(self.a(x.half()).float().relu()) + self.shift


@pytest.mark.parametrize("name", ["Mixed", "Residual", "Grouped"])
def test_size_is_what_the_weights_take(name):
    program = gp.load(Mixed(), torch.randn(2, 8)) if name == "Mixed" else nets.program(name)
    whole = weights_bytes(program.graph)
    assert size(program.graph, program.host)() == whole
    budget = f"{0.6 * whole / 1000:.6f}kB"
    done = gp.compile(program, size=budget, measure=False)
    left = weights_bytes(done.program.graph)
    assert size(done.program.graph, done.program.host)() == left
    assert 0.3 * whole < left <= 0.6 * whole
    assert (
        done.report["budget"]["left"]
        == left
        == sum(tensor.nbytes for tensor in done.program.model.state_dict().values())
    )


def test_memory_can_be_asked_for_on_the_command_line(tmp_path):
    both = ["compile", "x.onnx", "--memory", "0.7x", "--macs", "0.5x", "-o", str(tmp_path / "o")]
    wrong = CliRunner().invoke(main, both)
    assert wrong.exit_code == 2 and "one budget at a time, not --memory and --macs" in wrong.output
    alone = CliRunner().invoke(main, ["compile", "x.onnx", "--memory", "0.7x", "-o", str(tmp_path / "o")])
    assert alone.exit_code == 1 and "x.onnx: no such file" in alone.output
