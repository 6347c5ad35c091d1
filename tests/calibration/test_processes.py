"""Several processes come to what one does, to the last bit."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from graphprune.calibration import processes

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.inner = nn.Conv2d(12, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.outer = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.outer(self.norm(self.inner(x)).relu())
        return self.head(x.mean((2, 3)))

def net():
    torch.manual_seed(0)
    return Net(), (torch.randn(4, 3, 8, 8),)
"""

EACH = """
import sys
import numpy as np
import torch.distributed as dist
import graphprune as gp
import net
from graphprune.calibration import curvature

rank, count, where, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if count > 1:
    dist.init_process_group("gloo", init_method=f"file://{where}/meet", rank=rank, world_size=count)
data = np.load("data.npz")["x"]
data = [data[k : k + 4] for k in range(0, len(data), 4)]
try:
    for name, recipe in RECIPES.items():
        curvature.SEGMENT_BYTES = 1 if name == "segments" else 1 << 29
        own = data if kind == "same" or not rank else data[::-1]
        made = gp.compile(*net.net(), recipe=recipe, data=own, out=f"{where}/{name}", measure=False)
    assert made.program.plan.edits
except gp.errors.DataError as error:
    print(error)
if count > 1:
    dist.destroy_process_group()
"""

RECIPES = {
    "obs": "group,score{by=obs},mask{macs=0.6x allocate=rd},propagate,compensate",
    "segments": "group,score{by=obs},mask{macs=0.6x allocate=rd},propagate,compensate",  # a layer at a time
    "moments": "group,score{by=wifv},mask{channels=0.6x},propagate,compensate{by=mean}",
    "branches": "group,branches{alone=true},score{branches=kl},mask{params=0.8x allocate=stepwise},propagate",
    "angles": "group,branches{alone=true},score{branches=angular},mask{params=0.8x allocate=global},propagate",
    "both": "group,branches,score{by=obs},mask{params=0.7x allocate=rd},propagate,compensate",
}


def run(folder: Path, count: int, name: str, kind: str = "same") -> tuple[Path, list[str]]:
    (folder / "net.py").write_text(NET)
    np.savez(folder / "data.npz", x=np.random.default_rng(0).standard_normal((36, 3, 8, 8)).astype(np.float32))
    (folder / "each.py").write_text(EACH.replace("RECIPES", repr(RECIPES)))
    where = folder / name
    where.mkdir()
    begun = [
        subprocess.Popen(
            [sys.executable, "each.py", str(rank), str(count), str(where), kind],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    said = [one.communicate(timeout=600)[0] for one in begun]
    assert all(one.returncode == 0 for one in begun), said
    return where, said


def test_two_processes_come_to_the_plan_of_one(tmp_path):
    (one, _), (two, _) = run(tmp_path, 1, "one"), run(tmp_path, 2, "two")
    for name in RECIPES:
        for file in ("plan.json", *(path.name for path in (one / name).glob("*.safetensors"))):
            assert (two / name / file).read_bytes() == (one / name / file).read_bytes(), (name, file)
        assert {path.name for path in (two / name).iterdir()} == {path.name for path in (one / name).iterdir()}
    assert (two / "segments" / "plan.json").read_bytes() == (one / "obs" / "plan.json").read_bytes()


@pytest.mark.slow
def test_the_command_under_torchrun_writes_the_plan_that_it_writes_alone(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((36, 3, 8, 8)).astype(np.float32))
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, start in (("alone", []), ("two", run)):
        command = [sys.executable, *start, "-m", "graphprune", "compile", "net:net", "--params", "0.7x"]
        command += ["--data", "data.npz", "--no-measure", "-o", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    for file in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()


@pytest.mark.slow
def test_processes_with_data_of_their_own_are_refused(tmp_path):
    where, said = run(tmp_path, 2, "apart", "other")
    assert all("not all processes were given the same calibration data" in text for text in said)
    assert not (where / "obs").exists()


def test_what_is_sent_is_what_comes():
    parts = [[np.arange(3.0), np.array(2)], [], [np.zeros((2, 0, 3), np.float32), np.asfortranarray(np.eye(3))]]
    again = processes._unpacked(processes._packed(parts))
    assert [len(part) for part in again] == [2, 0, 2]
    for one, other in zip(chain(*parts), chain(*again), strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    with pytest.raises(ValueError, match="allow_pickle"):
        processes._packed([[np.array([object()])]])


def test_turns_go_round_in_order(monkeypatch):
    """Each of three processes makes its own, and gets all, in order."""
    numbers, found = 7, []
    for rank in range(3):
        made = []
        monkeypatch.setattr(processes, "count", lambda: 3)
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(processes, "sent", lambda parts, by: (by, parts))

        def one(number, made=made):
            made.append(number)
            return [[np.array(number)]]

        found.append([by for by, _ in processes.turns(numbers, one)])
        assert made == list(range(rank, numbers, 3)) == processes.mine(range(numbers))
    assert found == [[0, 1, 2, 0, 1, 2, 0]] * 3
