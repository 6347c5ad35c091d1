"""Whatever moment a process dies at, the result is the old or the new one, and the next run leaves nothing else."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graphprune.driver.output import new_folder
from graphprune.errors import OutputError
from graphprune.ir import atomic
from graphprune.ir.atomic import stage

ROOT = Path(__file__).parents[2]
STEPS = [(Path, n) for n in ("rename", "replace", "mkdir", "rmdir", "unlink", "touch", "write_text")] + [
    (os, "link"),
    (atomic, "_rename"),
    (shutil, "rmtree"),
]


def tree(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()} | {
        str(p.relative_to(folder)): "/" for p in folder.rglob("*") if p.is_dir()
    }


def folder(out, force, text):
    with new_folder(out, force) as new:
        for name in ("plan.json", "model"):
            (new / name).write_text(text)


def model(out, force, text):
    """A model file with its weights in a file beside it, under a name that is free."""
    names = [f"{out.name}.data", f"{out.name}.1.data"]
    data = next(name for name in names if not out.with_name(name).exists())
    with stage(out) as place:
        (place.new / data).write_text(text)
        (place.new / out.name).write_text(f"{text} {data}")
        place.put_model(force, [data], [name for name in names if force and name in out.read_text()])


def holds(out):
    """What a user finds at ``out``."""
    if not out.exists():
        return None
    if out.is_dir():
        return {path.read_text() for path in out.iterdir()}, len(list(out.iterdir()))
    text, data = out.read_text().split()
    return {text, out.with_name(data).read_text()}, 2


def fault(monkeypatch, number, act, after):
    """Make the ``number``-th step ``act``, before or after it is done; returns a list as long as steps taken."""
    taken = []

    def wrapped(step):
        def call(*args, **kwargs):
            taken.append(step.__name__)
            mine = len(taken) == number
            if mine and not after:
                act()
            result = step(*args, **kwargs)
            if mine and after:
                act()
            return result

        return call

    for home, name in STEPS:
        monkeypatch.setattr(home, name, wrapped(getattr(home, name)))
    return taken


def dies(write, out, force, number, after):
    """Whether a child that writes to ``out`` came as far as its ``number``-th step, and died there."""
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            fault(patch, number, lambda: os._exit(9), after)
            write(out, force, "new")
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.fixture(params=["renameat2", "renames"])
def renames(request, monkeypatch):
    if request.param == "renames":
        monkeypatch.setattr(atomic, "_renameat2", lambda: None)
    elif atomic._renameat2() is None:
        pytest.skip("a system without renameat2")
    return request.param


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("force", [False, True], ids=["fresh", "over"])
@pytest.mark.parametrize("write", [folder, model])
def test_dying_at_any_step_leaves_the_old_or_the_new(tmp_path, renames, write, force, after):
    for number in range(1, 100):
        here = tmp_path / str(number)
        here.mkdir()
        out = here / "out"
        if force:
            write(out, False, "old")
        old = holds(out)
        died = dies(write, out, force, number, after)
        new = ({"new"}, 2)
        if renames == "renameat2" or write is model:
            assert holds(out) in (old, new), number
        with stage(out):
            pass
        assert holds(out) in (old, new), number
        left = {path.name for path in here.iterdir()}
        assert left <= {"out", "out.data", "out.1.data"} and len(left) <= (1 if write is folder else 2), number
        write(out, out.exists(), "newer")
        assert holds(out) == ({"newer"}, 2)
        if not died:
            return
    raise AssertionError("never ended")


@pytest.mark.parametrize("force", [False, True], ids=["fresh", "over"])
@pytest.mark.parametrize("write", [folder, model])
def test_an_error_at_any_step_leaves_the_old_or_the_new(tmp_path, renames, write, force):
    def failing():
        raise OSError(5, "Input/output error")

    for number in range(1, 100):
        here = tmp_path / str(number)
        here.mkdir()
        out = here / "out"
        if force:
            write(out, False, "old")
        old, raised = holds(out), False
        with pytest.MonkeyPatch.context() as patch:
            taken = fault(patch, number, failing, after=False)
            try:
                write(out, force, "new")
            except (OSError, OutputError):
                raised = True
        with stage(out):
            pass
        assert holds(out) in ([old, ({"new"}, 2)] if raised else [({"new"}, 2)]), (number, taken)
        assert {path.name for path in here.iterdir()} <= {"out", "out.data", "out.1.data"}
        if len(taken) < number:
            return
    raise AssertionError("never ended")


def test_what_appears_meanwhile_stays(tmp_path, renames):
    out = tmp_path / "out"
    for force in (False, True):
        with (
            pytest.raises(OutputError, match="appeared while the result was being made"),
            new_folder(out, force) as new,
        ):
            (new / "plan.json").write_text("new")
            out.mkdir()
            (out / "thesis.tex").write_text("three years of work")
        assert tree(tmp_path) == {"out": "/", "out/thesis.tex": "three years of work"}
        shutil.rmtree(out)
    with pytest.raises(OutputError, match="appeared"), new_folder(out, False) as new:
        (new / "plan.json").write_text("new")
        out.write_text("precious")
    assert tree(tmp_path) == {"out": "precious"}


def test_what_became_something_else_meanwhile_stays_despite_force(tmp_path, renames):
    folder(tmp_path / "out", False, "old")
    with pytest.raises(OutputError, match="appeared"), new_folder(tmp_path / "out", True) as new:
        (new / "plan.json").write_text("new")
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").write_text("precious")
    assert tree(tmp_path) == {"out": "precious"}


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path, renames):
    folder(tmp_path / "far" / "real", False, "old")
    (tmp_path / "out").symlink_to("far/real")
    folder(tmp_path / "out", True, "new")
    assert (tmp_path / "out").is_symlink() and holds(tmp_path / "far" / "real") == ({"new"}, 2)
    assert {path.name for path in (tmp_path / "far").iterdir()} == {"real"}
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError):
        folder(tmp_path / "loop", True, "new")


def test_one_run_at_a_time(tmp_path):
    with new_folder(tmp_path / "out", False) as new:
        with pytest.raises(OutputError, match="being written by another run"), new_folder(tmp_path / "out", True):
            pass
        (new / "plan.json").write_text("first")
    assert tree(tmp_path) == {"out": "/", "out/plan.json": "first"}


def test_an_error_of_something_else_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out", False):
        (tmp_path / "calibration.npz").read_text()
    with pytest.raises(OutputError, match="cannot be written"), new_folder(tmp_path / "out", False) as new:
        (new / "missing" / "model").write_text("")
    assert tree(tmp_path) == {}


def test_what_is_not_ours_in_a_stage_is_left(tmp_path):
    (tmp_path / ".out.graphprune").mkdir()
    (tmp_path / ".out.graphprune" / "mine").write_text("mine")
    folder(tmp_path / "out", False, "new")
    assert tree(tmp_path)[".out.graphprune/mine"] == "mine"


LOOP = """
import sys
from pathlib import Path
from graphprune.driver.output import new_folder
print("ready", flush=True)
for number in range(10**9):
    with new_folder(sys.argv[1], True) as new:
        for name in ("model", "report.html", "plan.json"):
            (new / name).write_text(str(number))
"""


@pytest.mark.parametrize("kills", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_killed_at_random(tmp_path, kills):
    out, rng = tmp_path / "out", random.Random(kills)
    folder(out, False, "old")
    for _ in range(kills):
        line = [sys.executable, "-c", LOOP, str(out)]
        child = subprocess.Popen(line, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.02))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        texts, files = holds(out)
        assert len(texts) == 1 and files in (2, 3)
    folder(out, True, "last")
    assert tree(tmp_path) == {"out": "/", "out/plan.json": "last", "out/model": "last"}
