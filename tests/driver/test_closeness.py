"""How close the result is to the original, and the user's own figure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.driver.closeness import closeness
from graphprune.errors import ModelError


class Outputs(nn.Module):
    """Outputs of many kinds, moved by ``by``."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x + self.by, (x + self.by).sum((1, 2)), x * 0, (x > self.by)[:, 0, 0], x.mean(2) + self.by


def test_every_kind_of_output() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    one, other = (gp.load(Outputs(by), torch.from_numpy(x)) for by in (0.0, 0.25))
    found = closeness(one, other, [[x[:1]], [x[1:]]])
    assert found["samples"] == 4
    whole, summed, zero, flags, classes = found["outputs"]
    assert whole["relative"] == pytest.approx(np.sqrt(x.size) * 0.25 / np.linalg.norm(x), rel=1e-5)
    assert whole["same"] is None and summed["same"] is None
    assert summed["relative"] == pytest.approx(2 * 15 * 0.25 / np.linalg.norm(x.sum((1, 2))), rel=1e-5)
    assert zero["relative"] is None and zero["cosine"] == 1
    assert flags["same"] == ((x > 0) == (x > 0.25))[:, 0, 0].mean() and flags["relative"] is None
    assert classes["same"] == 1.0


def test_outputs_of_another_shape_are_no_number() -> None:
    class Kept(nn.Module):
        def __init__(self, limit: float) -> None:
            super().__init__()
            self.limit = limit

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, : 2 if self.limit else 3]

    x = torch.ones(2, 3)
    one, other = (gp.load(Kept(limit), x) for limit in (0.0, 1.0))
    (output,) = closeness(one, other, [[x.numpy()]])["outputs"]
    assert output["relative"] is output["cosine"] is output["same"] is None


def module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 5)).eval().requires_grad_(False)


X = torch.randn(16, 6, generator=torch.Generator().manual_seed(3))


def test_the_users_figure_is_of_each_network_in_turn() -> None:
    net = module()

    def largest(network: nn.Module) -> dict[str, Any]:
        assert not network.training
        with torch.no_grad():
            out = network(X)
        return {"largest": out.max(), "mean": np.float32(out.mean())}

    artifact = gp.compile(net, X[:2], macs="0.5x", evaluate=largest, measure=False)
    found = artifact.report["evaluation"]
    assert found["what"] == "largest"
    assert found["before"]["largest"] == pytest.approx(float(net(X).max()))
    assert found["after"]["mean"] == pytest.approx(float(artifact.program.model(X).mean()), rel=1e-5)


def test_an_onnx_model_is_judged_as_a_session(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    torch.onnx.export(module(), (X[:2],), path, dynamo=True, verbose=False)

    def total(session: onnxruntime.InferenceSession) -> float:
        return float(session.run(None, {session.get_inputs()[0].name: X[:2].numpy()})[0].sum())

    artifact = gp.compile(path, macs="0.5x", evaluate=total, measure=False, out=tmp_path / "out")
    after = total(onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx"))
    assert artifact.report["evaluation"]["after"] == {"total": pytest.approx(after)}
    assert artifact.report["evaluation"]["before"]["total"] == pytest.approx(float(module()(X[:2]).sum()), rel=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda _: "high",
        lambda _: "0.9",
        lambda _: {},
        lambda _: {"a": None},
        lambda _: {"a": math.nan},
        lambda _: 1 / 0,
        lambda: 1,
    ],
    ids=["text", "a number as text", "nothing", "none", "nan", "raises", "no argument"],
)
def test_a_function_that_gives_no_figure_is_refused_before_any_work(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lambda"):
        gp.compile(module(), X[:2], macs="0.5x", evaluate=wrong, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_function_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judges.py").write_text("def one(network):\n    return 1\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert gp.compile(module(), X[:2], macs="0.5x", evaluate="judges:one", measure=False).report["evaluation"] == {
        "what": "judges:one",
        "before": {"one": 1.0},
        "after": {"one": 1.0},
    }
    with pytest.raises(ModelError, match="judges:other"):
        gp.compile(module(), X[:2], macs="0.5x", evaluate="judges:other")
