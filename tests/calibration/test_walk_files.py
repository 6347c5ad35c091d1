"""Values of a walk that do not fit into memory are in files, as long as they are to be read."""

import gc
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.calibration import activations
from graphprune.calibration.activations import Walk
from graphprune.errors import OutputError
from graphprune.ir import large

DEPTH, WIDTH, ROWS = 24, 32, 64


def program():
    torch.manual_seed(0)
    layers = [part for _ in range(DEPTH) for part in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    x = torch.randn(4 * ROWS, WIDTH)
    return gp.load(nn.Sequential(*layers).double(), (x[:2].double(),), data=[[x.double().numpy()]])


def in_files():
    """Bytes of temporary files that this process has mapped."""
    there = f" {tempfile.gettempdir()}/"
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if there in line]
    return sum(int(end, 16) - int(start, 16) for start, end in (one[0].split("-") for one in maps))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_go_with_the_values_in_them(monkeypatch):
    gc.collect()  # what other tests left
    given = program()
    wanted = [given.host.run(batch)[0] for batch in given.data]
    monkeypatch.setattr(activations, "LIMIT_BYTES", 0)
    monkeypatch.setattr(large, "SMALL_BYTES", 0)
    monkeypatch.setattr(large, "FILE_BYTES", 1 << 12)  # each in a file of its own
    value, most = 4 * ROWS * WIDTH * 8, 0
    with Walk(given.host, given.graph, given.data) as walk:
        for position in range(1, len(given.graph.ops) + 1):
            last = list(walk.at(position, [given.graph.ops[position - 1].outputs[0].name]))
            most = max(most, in_files())
    assert np.array_equal([one[given.graph.outputs[0].name] for one in last], wanted)
    assert 0 < most <= 4 * value  # of 48
    del last
    gc.collect()  # hosts refer to themselves
    assert in_files() == 0


def test_a_full_disk_is_told_in_one_line(monkeypatch):
    given = program()
    monkeypatch.setattr(activations, "LIMIT_BYTES", 0)
    monkeypatch.setattr(large, "SMALL_BYTES", 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(large.os, "posix_fallocate", full, raising=False)
    with pytest.raises(OutputError, match=r"no room for [\d,]+ bytes \(No space left on device\)"):
        gp.run("group,score,mask{channels=0.5x},propagate,compensate", given)
