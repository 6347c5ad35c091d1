"""Samples that calibration does not see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import graphprune as gp
from graphprune.calibration.batches import batches
from graphprune.calibration.held_back import MOST, ONE_IN, hold_back
from graphprune.facts import Scores
from graphprune.ir.graph import Graph, Value
from graphprune.ir.program import Loss, Program


class Given:
    """A host of one input."""

    def __init__(self, batch: int | str) -> None:
        self.inputs = [Value("x", (batch, 1), "float32", ())]

    def lift(self) -> Graph:
        return Graph(inputs=self.inputs, outputs=[], ops=[], parameters={})


def parted(count: int, batch: int | str) -> tuple[list[float], list[float], list[float]]:
    """The numbers of the samples that calibrate, those of their labels, and those held back."""
    host: Any = Given(batch)
    data = batches(np.arange(count, dtype=np.float32)[:, None], host.inputs)
    loss = Loss(lambda *_: 0, [[batch[0].copy()] for batch in data])
    program, held = hold_back(Program(host=host, source=host, data=data, loss=loss))
    assert program.loss is not None
    first, second, third = (
        [v for batch in part for v in batch[0][:, 0].tolist()] for part in (program.data, program.loss.rest, held)
    )
    return first, second, third


@given(st.integers(1, 700), st.sampled_from(["n", 1, 3, 8]))
def test_no_sample_is_in_both_parts_and_none_is_lost(count: int, batch: int | str) -> None:
    size = batch if isinstance(batch, int) else 1
    if count < size:
        return
    data, labels, held = parted(count, batch)
    assert sorted(data + held) == list(range(count // size * size))
    assert labels == data
    units = count // size
    assert bool(held) == (units >= ONE_IN)
    assert len(held) <= max(MOST, size, len(data) // (ONE_IN - 1)) and len(data) >= len(held)
    if batch == "n":
        assert len(held) == (min(count // ONE_IN, len(held)) if count <= MOST * ONE_IN else len(held))
        assert count < ONE_IN or len(held) >= min(count // ONE_IN, MOST // 2)


def test_of_a_folder_the_parts_are_read_when_asked_for(tmp_path: Path) -> None:
    for k in range(20):
        np.save(tmp_path / f"{k:02}.npy", np.full((6,), k, np.float32))
    program, held = gp.hold_back(gp.load(net(), torch.ones(2, 6), data=tmp_path))
    assert [v for batch in held for v in batch[0][:, 0]] == [7, 15]
    np.save(tmp_path / "00.npy", np.full((6,), 99, np.float32))
    assert program.data[0][0][0, 0] == 99


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 5))


def test_compile_does_not_calibrate_on_what_it_judges_by() -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    spoiled = x.clone()
    spoiled[7::8] = 1e3  # every eighth, which is held back: the weights are the same
    one, other = (gp.compile(net(), x[:2], macs="0.5x", data=data, measure=False) for data in (x, spoiled))
    for name in one.program.graph.parameters:
        np.testing.assert_array_equal(one.program.host.parameter(name), other.program.host.parameter(name))
    assert one.report["closeness"] != other.report["closeness"]
    assert one.report["closeness"]["samples"] == 8 and one.report["closeness"]["held_back"]


def test_closeness_is_what_the_two_networks_say() -> None:
    module, x = net(), torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    artifact = gp.compile(module, x[:2], macs="0.5x", data=x, measure=False)
    with torch.no_grad():
        a, b = module(x[7::8]), artifact.program.model(x[7::8])
    (found,) = artifact.report["closeness"]["outputs"]
    assert found["relative"] == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-5)
    assert found["cosine"] == pytest.approx(float(nn.functional.cosine_similarity(a, b).mean()), rel=1e-5)
    assert found["same"] == float((a.argmax(1) == b.argmax(1)).double().mean())
    assert 0 < found["relative"] < 1


def test_too_few_samples_are_said_to_be_those_of_calibration() -> None:
    artifact = gp.compile(net(), torch.randn(2, 6), macs="0.5x", data=torch.randn(7, 6), measure=False)
    assert artifact.report["closeness"]["samples"] == 7 and not artifact.report["closeness"]["held_back"]
    assert "closeness" not in gp.compile(net(), torch.randn(2, 6), macs="0.5x", measure=False).report


class Table(nn.Module):
    """One input is the same for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, table: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.h(self.a(x).relu() * table.mean())


@pytest.mark.parametrize("rows", (3, 40, 100))  # fewer than samples, as many, and more
def test_an_input_that_is_the_same_for_every_sample_stays_whole(rows: int) -> None:
    table, x = torch.rand(rows), torch.randn(40, 6)
    data = {"table": table.numpy(), "x": x.numpy()}
    program, held = hold_back(gp.load(Table(), (table, x[:4]), data=data, fixed=("table",)))
    assert all(np.array_equal(batch[0], table) for part in (program.data, held) for batch in part)
    parts = [np.concatenate([batch[1] for batch in part]) for part in (program.data, held)]
    assert [len(part) for part in parts] == [35, 5]
    assert sorted(map(tuple, np.concatenate(parts))) == sorted(map(tuple, x.numpy()))
    assert gp.closeness(program, program, held)["samples"] == 5


@pytest.mark.parametrize("rows", (3, 65, 100))
@pytest.mark.parametrize("by", ("taylor", "fisher"))
def test_a_loss_counts_samples_and_not_what_is_the_same_for_all(rows: int, by: str) -> None:
    torch.manual_seed(0)
    module, table, x, y = Table().double(), torch.rand(rows).double(), torch.randn(65, 6).double(), torch.arange(65) % 3
    data = {"table": table.numpy(), "x": x.numpy(), "labels": y.numpy()}
    program = gp.load(module, (table, x[:4]), data=data, loss="cross_entropy", fixed=("table",))
    (score,) = gp.run(f"group,score{{by={by} combine=sum normalize=none}}", program).fact(Scores).scores.values()
    parts = x.split(65 if by == "taylor" else 1), y.split(65 if by == "taylor" else 1)
    want = torch.zeros(12).double()
    for some, labels in zip(*parts, strict=True):
        module.zero_grad()
        nn.functional.cross_entropy(module(table, some), labels).backward()
        for layer, axis in ((module.a, 1), (module.h, 0)):
            assert layer.weight.grad is not None
            change = (layer.weight.grad * layer.weight).sum(axis).detach()
            want += change.abs() if by == "taylor" else change**2 / 65
    np.testing.assert_allclose(score, want, rtol=1e-9)


class Recurrent(nn.Module):
    """The state has the samples on its second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.h = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return self.h(self.cell(x, state)[0])


def test_a_state_whose_samples_are_on_another_axis_goes_with_them() -> None:
    module, x, state = Recurrent(), torch.randn(40, 5, 6), torch.zeros(1, 1, 8)
    batch = torch.export.Dim("batch")
    example, shapes = (x[:2], state.repeat(1, 2, 1)), ({0: batch}, {1: batch})
    data = {"x": x.numpy(), "state": state.numpy()}
    program, held = hold_back(gp.load(module, example, dynamic_shapes=shapes, data=data, fixed=("state",)))
    assert [[array.shape for array in part] for part in held] == [[(5, 5, 6), (1, 5, 8)]]
    assert gp.closeness(program, program, held)["samples"] == 5
