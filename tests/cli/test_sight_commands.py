"""The options and commands that show what passes do."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from invoking import run

from graphprune.hosts.torch.host import TorchHost

NETS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    layers = nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)
    return nn.Sequential(*layers).eval(), (torch.randn(2, 6),)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sight_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_print_after_and_dump(here: Path) -> None:
    done = run("compile sight_nets:net --channels 0.5x --print-after mask --dump d -o out --no-verify")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("# after ") == 1 and "# after mask{channels=0.5x}: " in done.stderr
    assert "# Keep:\n#   0: 8 of 16\n" in done.stderr and "\noutput %" in done.stderr
    assert "# after" not in done.stdout
    assert (here / "d" / "04-propagate" / "graph.txt").is_file() and (here / "out" / "plan.json").is_file()
    again = run("compile sight_nets:net --dump d -o other")
    assert again.exit_code == 1 and "d exists" in again.stderr and not (here / "other").exists()
    wrong = run("compile sight_nets:net --print-after maks -o other")
    assert wrong.exit_code == 1 and "hint: did you mean `mask`?" in wrong.stderr


def test_bisect_ends_with_a_code_of_its_own(here: Path) -> None:
    line = "bisect sight_nets:net --passes 'group,score,mask{channels=0.5x},propagate'"
    found = run(line)
    assert found.exit_code == 3, found.output
    assert "`propagate` is the first over 0.001" in found.stdout and "8 of 16" in found.stdout
    masked = run(f"{line} --against masked")
    assert masked.exit_code == 0 and "no pass makes the outputs differ" in masked.stdout
    (here / "r.toml").write_text('[[pass]]\nname = "group"\n')
    assert run("bisect sight_nets:net --recipe r.toml").exit_code == 0
    assert run("bisect sight_nets:net --passes grup").exit_code == 1
    for wrong in ("", "--passes group --recipe r.toml", "--passes group --against x"):
        assert run(f"bisect sight_nets:net {wrong}").exit_code == 2


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated"), ("SIGHUP", 129, "terminated")],
)
def test_ended_from_outside_a_command_cleans_up(here: Path, monkeypatch, number: str, code: int, says: str) -> None:
    def ended(self, *_, **__):
        assert {path.name for path in here.glob(".out*")} == {".out.graphprune"}
        signal.raise_signal(getattr(signal, number))

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(TorchHost, "save", ended)
    done = run("compile sight_nets:net --channels 0.5x --no-verify -o out")
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (code, says)
    assert {path.name for path in here.iterdir()} <= {"sight_nets.py", "__pycache__"}
    assert signal.getsignal(signal.SIGTERM) is before
