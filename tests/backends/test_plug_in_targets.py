"""Targets of other packages that break their word: one clear error that names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.backends.measure import Runnable, interleave
from graphprune.backends.onnxruntime.target import Onnx
from graphprune.backends.target import Target, targets
from graphprune.driver.artifact import emit
from graphprune.errors import TargetError
from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.program import Program
from graphprune.pipeline import base
from graphprune.report.page import verified

HINT = "\n  hint: repair or uninstall the plug-in"


@pytest.fixture(scope="module")
def program() -> Program:
    host = TorchHost.export(nn.Linear(3, 2), (torch.ones(1, 3),))
    return Program(host=host, source=host)


class Code(Runnable):
    """What ``Mine`` loads."""

    def bind(self, batch):
        if self.target == "bind":
            return 3
        return lambda: 0

    def run(self, batch):
        if self.target == "run":
            raise ValueError("no memory")
        return [np.zeros(2)]


@dataclass(frozen=True)
class Mine(Target):
    """Breaks its word where it is told to."""

    name = "mine"

    gives: str = ""

    def emit(self, program, folder):
        if self.gives == "raise":
            raise RuntimeError("\nlinker failed\nat once")
        return None if self.gives == "none" else folder

    def load(self, path, *, threads=1, example=None):
        return print if self.gives == "code" else Code(self.gives, threads, example or [])

    def measure(self, program, **options):
        return 3.5

    def unable(self):
        return False if self.gives == "unable" else None

    def time_ops(self, points, *, threads=1):
        yield {}
        raise OSError("device is gone")


@pytest.mark.parametrize(
    ("gives", "ask", "says", "cause"),
    [
        ("none", lambda m, p: m.runnable(p), "`emit` returned None, not a Path", None),
        ("raise", lambda m, p: m.runnable(p), "`emit` raised RuntimeError: linker failed", RuntimeError),
        ("code", lambda m, p: m.runnable(p), "`load` returned a builtin_function_or_method, not a Runnable", None),
        ("", lambda m, p: m.measure(p), "`measure` returned a float, not a Latency", None),
        ("unable", lambda m, p: m.require(), "`unable` returned a bool, not a str | None", None),
        ("", lambda m, p: list(m.time_ops([])), "`time_ops` raised OSError: device is gone", OSError),
    ],
)
def test_a_target_that_breaks_its_word_is_named(program: Program, gives: str, ask: Any, says: str, cause: Any) -> None:
    with pytest.raises(TargetError) as caught:
        ask(Mine(gives), program)
    assert str(caught.value) == f"target `mine` ({__name__}.Mine): {says}{HINT}"
    assert type(caught.value.__cause__) is (cause or type(None))


def test_a_compile_says_the_same(program: Program, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"target `mine` \(.*\.Mine\): `emit` returned None, not a Path"):
        emit(tmp_path, program, [Mine("none")], None)


def test_what_a_target_loads_is_held_too(program: Program) -> None:
    with pytest.raises(TargetError, match=r"runnable .*\.Code: `run` raised ValueError: no memory"):
        Mine("run").run(program, [])
    with pytest.raises(TargetError, match=r"runnable .*\.Code: `bind` returned a int, not a Callable"):
        interleave({"mine": Mine("bind").runnable(program)})


def test_a_target_that_keeps_its_word_is_left_alone(program: Program) -> None:
    assert [array.shape for array in Mine().run(program, [])] == [(2,)]
    assert not hasattr(Onnx.emit, "__wrapped__")  # an error of graphprune's own is a fault with a traceback


@dataclass(frozen=True)
class Unwritten(Target):
    name = "unwritten"


def test_what_a_target_does_not_write_is_said(program: Program, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"target `unwritten` \(.*\.Unwritten\) has no `emit`\n  hint: write it"):
        Unwritten().emit(program, tmp_path)
    with pytest.raises(TargetError, match="has no `load`\n  hint: write it, or have `unable` say why"):
        Unwritten().load(tmp_path)


@dataclass(frozen=True)
class Written(Target):
    name = "written"

    def emit(self, program, folder):
        path = folder / "code.txt"
        path.write_text(program.graph.text())
        return path


def test_code_that_cannot_be_run_here_is_written_and_said_to_be_unchecked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)).eval()
    made = gp.compile(net, (torch.ones(2, 3),), channels="0.5x", targets=[Written()], out=tmp_path / "out")
    assert (tmp_path / "out" / "written" / "code.txt").is_file() and not made.report["after"]["per_target"]
    said = verified(made.report)
    assert said.endswith("The code for written was NOT checked: it cannot be run here (the target has no `load`).")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (3, r"target `entered` \(package:Kind\) is a int, not a type"),
        (dict, r"target `entered` \(builtins.dict\) is no subclass of Target"),
        (Mine, r"target `entered` \(.*\.Mine\) calls itself `mine`"),
        (ImportError("no module"), r"target `entered` \(package:Kind\) does not load: no module"),
    ],
)
def test_what_is_no_target_is_refused(monkeypatch: pytest.MonkeyPatch, found: Any, says: str) -> None:
    class Entry:
        name, value = "entered", "package:Kind"

        def load(self) -> Any:
            if isinstance(found, Exception):
                raise found
            return found

    monkeypatch.setattr(base, "entry_points", lambda group: [Entry()])
    with pytest.raises(TargetError, match=says):
        targets.__wrapped__()
