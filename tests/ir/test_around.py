"""Errors of shapes show the ops around the fault, the faulty one marked."""

from __future__ import annotations

import nets
import pytest

import graphprune as gp
from graphprune.coupling.relate import relate
from graphprune.errors import ShapeError, VerificationError
from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.graph import Graph, Op, Value, around

RECIPE = "group,score,mask{channels=0.5x},propagate"


def chain(*shapes):
    """Element-wise ops one after the other, whose outputs have these shapes."""
    x = Value("x", (2, 3))
    ops, last = [], x
    for number, shape in enumerate(shapes):
        out = Value(f"y{number}", shape)
        ops.append(Op(f"op{number}", "pointwise", (last,), (out,), {"function": "relu"}, f"block.{number}"))
        last = out
    return Graph(ops, [x], [last], {})


def test_axes_that_disagree_when_rules_are_applied():
    with pytest.raises(ShapeError) as error:
        relate(chain((2, 3), (2, 3), (2, 3), (2, 4), (2, 3), (2, 3), (2, 3)))
    assert str(error.value).splitlines() == [
        str(error.value.message),
        "    %y1:2x3 = pointwise(%y0) function=relu",
        "    %y2:2x3 = pointwise(%y1) function=relu",
        "  > %y3:2x4 = pointwise(%y2) function=relu",
        "    %y4:2x3 = pointwise(%y3) function=relu",
        "    %y5:2x3 = pointwise(%y4) function=relu",
    ]


def test_the_ends_and_long_lines():
    graph = chain((2, 3), (2, 3))
    graph.ops[0].attrs = {"long": "x" * 500}
    first, second = around(graph, graph.ops[0]).splitlines()
    assert first.startswith("  > %y0") and first.endswith("...") and len(first) == 164
    assert second.startswith("    %y1")


def test_a_cut_that_goes_wrong(monkeypatch):
    take = TorchHost.take

    def planted(self, name, axis, keep):
        take(self, name, axis, keep[:-1] if name == "fc2.weight" and axis == 1 else keep)

    monkeypatch.setattr(TorchHost, "take", planted)
    with pytest.raises(ShapeError) as error:
        gp.run(RECIPE, nets.program("MLP"))
    marked = [line for line in str(error.value).splitlines() if line.startswith("  > ")]
    assert len(marked) == 1 and "linear(" in marked[0] and "%fc2.weight" in marked[0]


def test_a_proof_that_fails(monkeypatch):
    done = gp.run(RECIPE, nets.program("MLP"))
    take = TorchHost.take

    def planted(self, name, axis, keep):
        take(self, name, axis, keep[::-1].copy() if name == "fc2.weight" and axis == 1 else keep)

    monkeypatch.setattr(TorchHost, "take", planted)
    with pytest.raises(VerificationError) as error:
        gp.verify(done)
    assert "first at fc2 (linear)" in error.value.message
    marked = [line for line in str(error.value).splitlines() if line.startswith("  > ")]
    assert len(marked) == 1 and "%fc2.weight" in marked[0]
