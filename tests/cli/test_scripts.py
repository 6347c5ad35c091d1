"""What scripts need of the command line: JSON, how loud it is, lines that fit, and models by whatever name."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from invoking import run, well

from graphprune.cli import main
from graphprune.criteria import Criterion, criteria

NETS = """
import torch
from torch import nn
from widths import WIDTH

def net():
    torch.manual_seed(0)
    layers = nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, 4)
    return nn.Sequential(*layers).eval(), (torch.randn(2, 6),)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with nothing in it but a folder with a network."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "script_nets.py").write_text(NETS)
    (tmp_path / "made" / "widths.py").write_text("WIDTH = 16\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("script_nets", "widths"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


NET = "made/script_nets.py:net"


def test_a_factory_by_its_file_imports_from_beside_it(here: Path) -> None:
    well(f"compile {NET} --params 0.5x --no-verify -o out")
    assert json.loads((here / "out" / "report.json").read_text())["model"] == NET
    (here / "script_nets.py").write_text(NETS.replace("12", "20"))  # of the same name, in another folder
    (here / "widths.py").write_text("WIDTH = 16\n")
    assert "20" in well("inspect script_nets.py:net").stdout and "20" not in well(f"inspect {NET}").stdout
    assert "script_nets.py:4: NameError" in run(f"inspect {_with(here, 'script_nets.py', 'torchy.x')}:net").stderr


def _with(here: Path, name: str, line: str) -> str:
    (here / "broken").mkdir()
    (here / "broken" / name).write_text("import torch\n\n\n" + line)
    return f"broken/{name}"


def test_apply_takes_the_folder(here: Path) -> None:
    well(f"compile {NET} --params 0.5x --no-verify -o out")
    well(f"apply out {NET} -o again")
    assert (here / "again" / "model.pt2").is_file()


# ---- JSON ------------------------------------------------------------------------------------------


def test_bench_and_sweep_as_json(here: Path) -> None:
    well(f"compile {NET} --params 0.5x --no-verify -o out")
    found = json.loads(well("bench out/model.pt2 out/model.pt2 --repeats 3 --json").stdout)
    assert found["b_over_a"] == found["b"]["median_ms"] / found["a"]["median_ms"]
    assert found["a"]["model"] == "out/model.pt2" and found["a"]["repeats"] == 3
    np.savez(here / "x.npz", input=np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32))
    curves = json.loads(well(f"sweep {NET} --data x.npz --json --plot x.svg").stdout)
    assert set(curves) == {"0", "2"} and curves["0"]["0.5"] >= 0 and (here / "x.svg").is_file()


def test_passes_and_targets_as_json() -> None:
    from graphprune.backends.target import targets
    from graphprune.pipeline.base import passes

    listed = json.loads(well("passes --json").stdout)
    assert [one["name"] for one in listed] == list(passes())
    mask = json.loads(well("passes mask --json").stdout)
    floor = next(option for option in mask["options"] if option["name"] == "floor")
    assert floor == {"name": "floor", "default": 0.1, "help": "the least share that any group keeps"}
    found = json.loads(well("targets --json").stdout)
    assert [one["name"] for one in found["targets"]] == list(targets()) and "raspberry-pi-4" in found["boards"]


# ---- what an option can be --------------------------------------------------------------------------


def test_every_choice_has_a_line() -> None:
    from graphprune.allocation import methods
    from graphprune.compensation import METHODS
    from graphprune.pipeline.base import passes

    choices = {name: kind.choices() for name, kind in passes().items()}
    assert set(choices["score"]["by"]) == set(criteria()) and set(choices["mask"]["allocate"]) == set(methods())
    assert set(choices["compensate"]["by"]) == set(METHODS)
    for options in choices.values():
        for lines in options.values():
            assert all(len(line) > 10 and line[-1] != "," for line in lines.values()), lines
    said = well("passes score").stdout
    assert all(re.search(rf"^          {name} ", said, re.M) for name in criteria())
    assert "data: What the others cannot make up for" in said and "loss: What removing it" in said


def test_a_plug_in_s_criterion_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(scoring):
        """Prefer the first channels."""

    monkeypatch.setattr("graphprune.passes.score.criteria", lambda: {**criteria(), "first": Criterion(first)})
    assert "first      Prefer the first channels." in well("passes score").stdout


def test_a_published_recipe_by_name_with_a_budget(here: Path) -> None:
    well(f"compile {NET} --recipe alds --params 0.6x -o out")
    report = json.loads((here / "out" / "report.json").read_text())
    assert report["recipe"].startswith("factor{orders=kernel share=none},") and "params=0.6x" in report["recipe"]
    assert 0.5 < report["budget"]["got"] <= 0.6
    assert re.search(r"alds +Layers as two each", well("passes").stdout)


def test_several_recipes_of_which_the_nearest_is_taken(here: Path) -> None:
    np.savez(here / "x.npz", input=np.random.default_rng(0).standard_normal((32, 6)).astype(np.float32))
    budget = f"{NET} --params 0.6x --data x.npz --no-measure"
    said = " ".join(well(f"compile {budget} --recipe auto --recipe alds -o out").stdout.split())
    contest = json.loads((here / "out" / "report.json").read_text())["contest"]
    assert set(contest["recipes"]) == {"auto", "alds"}
    assert f"Of 2 recipes the nearest, on samples held back: `{contest['taken']}`." in said
    wrong = run(f"compile {budget} --recipe auto --recipe aldz -o other")
    assert wrong.exit_code == 1 and "did you mean `alds`?" in wrong.stderr
    (here / "r.toml").write_text('[[pass]]\nname = "group"\n')
    assert "a recipe has its budget" in run(f"compile {budget} --recipe auto --recipe r.toml -o other").stderr


# ---- how much is said -------------------------------------------------------------------------------


def test_quiet_and_verbose(here: Path) -> None:
    quiet = well(f"compile {NET} -q -o out")
    assert not quiet.stdout and not quiet.stderr and (here / "out" / "report.json").is_file()
    assert json.loads((here / "out" / "report.json").read_text())["notes"] is not None
    verbose = well(f"compile {NET} --verbose -o out --force")
    steps = re.findall(r"^ +\d+\.\d s  \[\d+/\d+\] (.*)$", verbose.stderr, re.M)
    assert {"group", "score", "propagate", "verify"} <= set(steps) and verbose.stdout
    assert well(f"inspect {NET} -q").stdout == well(f"inspect {NET}").stdout


COMMANDS = ("", *main.commands)


def test_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune.pipeline.base import passes

    monkeypatch.setenv("COLUMNS", "80")
    lines = [f"{name} --help" for name in COMMANDS] + ["passes", "targets"] + [f"passes {name}" for name in passes()]
    lines += [f"inspect {NET}", f"inspect {NET} --all", f"compile {NET} -o out --no-verify"]
    said = [(line, one) for line in lines for one in well(line).stdout.splitlines()]
    assert not [(line, one) for line, one in said if len(one) > 80 and not one.startswith("Recipe: ")]


# ---- files of other kinds ---------------------------------------------------------------------------


def _foreign(here: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3))
    torch.save(module.state_dict(), here / "state.pth")
    torch.save(module, here / "whole.pt")
    torch.jit.trace(module, torch.zeros(1, 4)).save(str(here / "script.pt"))
    torch.jit.trace(module, torch.zeros(1, 4)).save(str(here / "script.pt2"))
    torch.save(module.state_dict(), here / "old.pth", _use_new_zipfile_serialization=False)
    (here / "evil.bin").write_bytes(pickle.dumps(_Evil(str(here / "touched"))))
    torch.export.save(torch.export.export(module, (torch.zeros(1, 4),)), here / "program.pt2")
    (here / "program.pt2").rename(here / "program.pt")
    (here / "net.keras").write_bytes(b"PK\x03\x04")
    (here / "net.tflite").write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(20))
    (here / "net.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(20))
    (here / "net.safetensors").write_bytes(bytes(16))


class _Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_other_kinds_are_recognised_and_never_unpickled(here: Path) -> None:
    _foreign(here)
    for name, what, way in (
        ("state.pth", "a checkpoint (torch.save)", "give net.py:net"),
        ("whole.pt", "a checkpoint (torch.save)", "torch.load('whole.pt')"),
        ("old.pth", "a pickle", "give net.py:net"),
        ("evil.bin", "a pickle", "give net.py:net"),
        ("script.pt", "a TorchScript archive", "torch.export.save"),
        ("script.pt2", "a TorchScript archive", "torch.export.save"),
        ("program.pt", "a program of torch.export by another name", "name it program.pt2"),
        ("net.keras", "a Keras model", "tf2onnx"),
        ("net.tflite", "a TensorFlow Lite model", "tf2onnx"),
        ("net.h5", "HDF5", "tf2onnx"),
        ("net.safetensors", "weights alone", "safetensors.torch.load_file"),
        ("made", "a folder, not a model", "give a .onnx file"),
    ):
        found = run(f"compile {name} -o out")
        assert found.exit_code == 1 and found.stderr.startswith(f"error: {name}: "), found.output
        assert what in found.stderr and way in found.stderr.partition("hint: ")[2], found.stderr
    assert not (here / "touched").exists()


# ---- without writing anything ------------------------------------------------------------------------


def test_a_dry_run_shows_widths_and_writes_nothing(here: Path) -> None:
    before = sorted(here.rglob("*"))
    np.savez(here / "x.npz", input=np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32))
    said = well(f"compile {NET} --params 0.5x --data x.npz --dry-run").stdout
    made = {path for path in here.rglob("*") if "__pycache__" not in path.parts} - {*before, here / "x.npz"}
    assert not made and "nothing was written, fitted or proven" in said and "Against the original" not in said
    assert re.search(r"^0 +16 +\d+ +0\.\d\dx$", said, re.M) and "report:" not in said
    real = well(f"compile {NET} --params 0.5x --data x.npz -o out").stdout
    figures = [line.split() for one in (said, real) for line in one.splitlines() if line.startswith("parameters")]
    assert figures[0] == figures[1]
    assert "latency" not in said and "latency, torch" in well(f"compile {NET} --dry-run --target torch").stdout


# ---- after TAB -------------------------------------------------------------------------------------


def test_completion_knows_targets_and_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.shell_completion import ShellComplete

    def offered(*words: str) -> set[str]:
        complete = ShellComplete(main, {}, "graphprune", "_GRAPHPRUNE_COMPLETE")
        return {item.value for item in complete.get_completions([*words[:-1]], words[-1])}

    assert offered("comp") == {"compile"}
    assert offered("compile", "m", "--target", "rasp") >= {"raspberry-pi-4"}
    assert offered("compile", "m", "--passes", "group,sc") == {"group,score"}
    assert offered("compile", "m", "--passes", "group,score{b") == {"group,score{by=", "group,score{branches="}
    assert "group,score{by=taylor" in offered("compile", "m", "--passes", "group,score{by=t")
    assert offered("compile", "m", "--passes", "group,score{by=l2},ma") == {"group,score{by=l2},mask"}
    assert offered("passes", "compe") == {"compensate"} and "obs" in offered("sweep", "m", "--by", "o")
