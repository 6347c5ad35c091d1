"""What takes long for large networks is done once: reading, sessions of ONNX Runtime, torch.export, whole costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from fuzz.big import build
from torch import nn

import graphprune as gp
from graphprune.allocation.problem import Allocation
from graphprune.cost.polynomial import Polynomial
from graphprune.cost.static import Cost
from graphprune.cost.units import cost as static_cost
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.facts import Groups, Scores

CUT = "group,score,mask{channels=0.5x},propagate"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each was called so far."""
    found: Counter[str] = Counter()

    def count(owner: Any, name: str, what: str) -> None:
        own = getattr(owner, name)

        def counted(*args: Any, **more: Any) -> Any:
            found[what] += 1
            return own(*args, **more)

        monkeypatch.setattr(owner, name, counted)

    count(onnxruntime.InferenceSession, "__init__", "sessions")
    count(OnnxHost, "lift", "reads")
    count(OnnxHost, "copy", "copies")
    count(TorchHost, "lift", "reads")
    count(torch.export, "export", "exports")
    count(Cost, "__call__", "costs")
    yield found


def test_an_onnx_model_is_run_once_for_its_shapes_and_read_once_a_step(calls: Counter[str]) -> None:
    program = gp.load(build("chain", 20))
    assert [calls[what] for what in ("sessions", "reads", "copies")] == [1, 1, 0]
    gp.run(CUT, program)
    assert [calls[what] for what in ("sessions", "reads", "copies")] == [2, 2, 1]


def test_a_proof_reads_the_model_once_and_the_pruned_once(calls: Counter[str]) -> None:
    program = gp.run(CUT, gp.load(build("residual", 20)))
    calls.clear()
    gp.verify(program)
    assert calls["reads"] == 2
    assert calls["sessions"] == 3  # shapes of the pruned one; the masked and the pruned one


def test_a_module_is_traced_once_on_the_way_in_and_once_on_the_way_out(calls: Counter[str], tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    gp.compile(net, torch.randn(2, 3, 8, 8), macs="0.5x", measure=False, out=tmp_path / "out")
    assert calls["exports"] == 2


@pytest.mark.parametrize("allocate", ["uniform", "global"])
def test_the_whole_cost_is_not_asked_for_every_group(
    calls: Counter[str], allocate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, terms = Polynomial.of_one, [0]
    asked: list[int] = []

    def counted(self: Polynomial, number: int, values: Any) -> list[float]:
        terms[-1] += len(self.terms)
        return own(self, number, values)

    monkeypatch.setattr(Polynomial, "of_one", counted)
    for ops in (20, 80):
        program = gp.run("group,score", gp.load(build("chain", ops)))
        calls.clear()
        terms.append(0)
        gp.run(f"mask{{channels=0.5x allocate={allocate}}}", program)
        asked.append(calls["costs"])
    assert 0 < terms[2] < 8 * terms[1]  # four times the groups, not sixteen
    assert asked[1] <= asked[0] + 4  # of a bisection, whose steps are the logarithm of the channels


def test_what_a_group_costs_by_itself_is_what_the_whole_changes_by() -> None:
    program = gp.run("group,score", gp.load(build("dense", 24)))
    groups, rng = program.fact(Groups), np.random.default_rng(0)
    for unit in ("params", "macs", "channels", "memory"):
        cost = static_cost(unit, program.graph, program.host, groups)
        problem = Allocation(program, groups, program.fact(Scores), cost, 0.0, unit)
        counts = {group.name: int(rng.integers(1, group.size + 1)) for group in groups}
        for group in groups:
            options = np.arange(1, group.size + 1)
            whole = np.array([problem.price({**counts, group.name: int(k)}) for k in options])
            own = problem.own_prices(counts, group.name, options)
            np.testing.assert_allclose(own - own[0], whole - whole[0], rtol=1e-12)
