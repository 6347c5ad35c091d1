"""A run that was stopped goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.driver import stages
from graphprune.pipeline.base import Pass
from graphprune.pipeline.run import run_pass

X = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where stages are kept; every pass is a long one."""
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stages, "LONG_SECONDS", 0.0)
    return tmp_path / "cache" / "stages"


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


class Ran(list[str]):
    """The passes that were run."""

    def watch(self, monkeypatch: pytest.MonkeyPatch, stop: str = "") -> Ran:
        def perform(step: Pass, program: gp.Program) -> gp.Program:
            if step.name == stop:
                raise KeyboardInterrupt
            self.append(step.name)
            return run_pass(step, program)

        monkeypatch.setattr(stages, "run_pass", perform)
        return self


def compiled(out: Path, model: nn.Module | None = None, **options: Any) -> gp.Artifact:
    options = {"data": X, "macs": "0.5x", "cache": True, "measure": False, **options}
    return gp.compile(model or net(), torch.zeros(2, 8), out=out, **options)


def stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str = "compensate", model: nn.Module | None = None
) -> None:
    with monkeypatch.context() as patch:
        Ran().watch(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            compiled(tmp_path / "stopped", model)
    assert not (tmp_path / "stopped").exists()


def test_what_was_learned_is_not_learned_again(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compiled(tmp_path / "whole", cache=False)
    for stop, again in (
        ("mask", ["group", "mask", "propagate", "compensate"]),
        ("compensate", ["group", "propagate", "compensate"]),
    ):
        stopped(tmp_path, monkeypatch, stop)
        assert len(list(place.iterdir())) == {"mask": 1, "compensate": 2}[stop]
        with monkeypatch.context() as patch:
            ran = Ran().watch(patch)
            resumed = compiled(tmp_path / f"after-{stop}")
        assert ran == again and not list(place.iterdir())  # it ended well
        for name in ("plan.json", "plan.safetensors"):
            assert (tmp_path / f"after-{stop}" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert any("`score{by=obs}`: taken from a run that was stopped" in note for note in resumed.report["notes"])
        assert [step["text"] for step in resumed.report["passes"]] == [step["text"] for step in whole.report["passes"]]
        assert not [note for note in whole.report["notes"] if note not in resumed.report["notes"]]


@pytest.mark.parametrize(
    "other",
    [
        {"model": net(1)},
        {"data": X + np.float32(1e-3)},
        {"data": X[::-1].copy()},
        {"seed": 1},
        {"recipe": "group,score{by=wifv},mask{macs=0.5x allocate=rd},propagate", "macs": None},
        {"cache": False},
    ],
    ids=["weights", "data", "order", "seed", "passes", "switched off"],
)
def test_something_else_is_learned_anew(
    other: dict[str, Any], tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path, monkeypatch)
    artifact = compiled(tmp_path / "out", **other)
    assert not any("taken from a run" in note for note in artifact.report["notes"])
    waiting = 0 if "recipe" in other else 2  # a run of the same network and data that ended well clears both
    assert len(list(place.iterdir())) == waiting


class Twice(nn.Module):
    """Two layers read the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.left, self.right = nn.Linear(8, 24), nn.Linear(24, 16), nn.Linear(24, 16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.first(x).relu()
        return self.last(self.left(x).relu() * self.right(x))


def test_what_layers_share_is_kept_once(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(tmp_path / "whole", Twice().eval(), cache=False)
    stopped(tmp_path, monkeypatch, "mask", Twice().eval())
    (path,) = place.iterdir()
    with np.load(path, allow_pickle=False) as file:
        shapes = [file[name].shape for name in file.files]
    assert shapes.count((1, 24, 24)) == 1 and shapes.count((1, 16, 24)) == 2  # an inverse, and the weights of both
    resumed = compiled(tmp_path / "after", Twice().eval())
    assert any("taken from a run that was stopped" in note for note in resumed.report["notes"])
    for name in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_version_learns_anew(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path, monkeypatch)
    monkeypatch.setattr(stages, "versions", lambda: {"graphprune": "9"})
    assert not any("taken from" in note for note in compiled(tmp_path / "out").report["notes"])


def test_damaged_stages_are_none(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path, monkeypatch)
    for k, path in enumerate(sorted(place.iterdir())):
        path.write_bytes(path.read_bytes()[:100] if k else b"")
    whole = compiled(tmp_path / "whole", cache=False)
    artifact = compiled(tmp_path / "out")
    assert artifact.report["notes"] == whole.report["notes"] and not list(place.iterdir())


def test_short_passes_and_losses_keep_nothing(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "LONG_SECONDS", 5.0)
    stopped(tmp_path, monkeypatch)
    assert not place.is_dir() or not list(place.iterdir())
    assert stages.Stages.of(gp.load(net(), torch.zeros(2, 8), data=(X, X[:, :4]), loss="mse")) is None
    assert stages.Stages.of(gp.load(net(), torch.zeros(2, 8))) is None


def test_old_stages_go(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path, monkeypatch)
    for path in place.iterdir():
        os.utime(path, (time.time() - 8 * 86400,) * 2)
    stages.Stages.of(gp.load(net(), torch.zeros(2, 8), data=X))
    assert not list(place.iterdir())


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHPRUNE_CACHE", "/proc/nowhere")
    assert compiled(tmp_path / "out").path
