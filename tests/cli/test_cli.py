"""The command line's contract: exit codes, files written whole or not at all, what is printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import limits
import numpy as np
import pytest
from invoking import run, well

from graphprune.cli import main

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = x + torch.relu(self.conv2(x))
        return self.head(x.mean((2, 3)))


def net():
    torch.manual_seed(0)
    return Net().eval(), (torch.randn(2, 3, 8, 8),)


def nothing_to_prune():
    return nn.Linear(4, 4), (torch.randn(2, 4),)
"""

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
COMMANDS = ("compile", "inspect", "sweep", "curve", "bisect", "apply", "record", "bench", "passes", "targets", "new")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with a module of small networks in it."""
    (tmp_path / "cli_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cli_nets", raising=False)
    return tmp_path


def left_behind(here: Path) -> set[str]:
    return {path.name for path in here.iterdir()} - {"cli_nets.py", "__pycache__"}


# ---- help ------------------------------------------------------------------------------------------


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    heavy = ("torch", "onnx", "onnx_ir", "onnxruntime", "tvm", "matplotlib", "networkx", "jinja2", "rich")
    code = f"import sys, graphprune, graphprune.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=ENVIRONMENT).strip() == "[]"
    took = limits.least_s([sys.executable, "-m", "graphprune", "--help"], ENVIRONMENT)
    assert took < 5 * limits.imports_s("click", ENVIRONMENT)  # torch alone would be 50


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str) -> None:
    output = well(f"{command} --help").stdout
    assert "Usage:" in output
    assert all(name in output for name in COMMANDS) if not command else True


@pytest.mark.parametrize("command", ["", "compile", "inspect", "apply", "bench"])
def test_every_example_in_the_help_is_accepted(command: str) -> None:
    lines = re.findall(r"^\s+graphprune (\w+ .*?)(?:\s{3,}.*)?$", well(f"{command} --help").stdout, re.MULTILINE)
    lines = [line for line in lines if not line.startswith("COMMAND")]
    assert lines
    for line in lines:
        name, *arguments = shlex.split(line)
        main.commands[name].make_context(name, arguments)


def test_version() -> None:
    assert re.fullmatch(r"graphprune, version \d+\.\d+\.\d+\S*", well("--version").stdout.strip())


def test_the_meaning_of_an_option_is_told_to_its_end() -> None:
    found = {option["name"]: option["help"] for option in json.loads(well("passes factor --json").stdout)["options"]}
    assert found["orders"].endswith("separable (k x 1, then 1 x k), or what loses least at half the parameters")
    assert found["layers"].endswith("separated by `|`")


def test_passes_lists_options_with_defaults_and_meaning() -> None:
    from graphprune.pipeline.base import passes

    output = well("passes").stdout
    for name, kind in passes().items():
        assert f"\n{name}\n" in f"\n{output}"
        for option in kind().options() if name != "mask" else {"floor": 0.1, "grain": 1}:
            assert f"{option}=" in output
    assert re.search(r"floor=0\.1 +\S+", output) and "needs: Groups, Scores" in output
    assert "  with data:\n        group,score{by=obs},mask{macs=0.5x allocate=rd},propagate,compensate" in output


def test_targets_lists_the_built_in_ones() -> None:
    output = well("targets").stdout
    assert {"torch", "onnx", "tvm"} <= {line for line in output.splitlines() if not line.startswith(" ")}


# ---- errors (`tests/messages` has what they say) ------------------------------------------------------


@pytest.mark.parametrize("out", ["file/out", "file"])
def test_an_output_that_cannot_be_written(out: str, here: Path) -> None:
    (here / "file").write_text("a file where a folder is needed")
    before = left_behind(here)
    result = run(f"compile cli_nets:net -o {out} --force")
    assert result.exit_code == 1 and out in result.stderr and "Traceback" not in result.output
    assert left_behind(here) == before
    assert (here / "file").read_text() == "a file where a folder is needed"


def test_a_real_process_prints_no_traceback(here: Path) -> None:
    line = [sys.executable, "-m", "graphprune", "compile", "missing.onnx", "-o", "out"]
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.splitlines()[0] == "error: missing.onnx: no such file" and "Traceback" not in done.stderr


# ---- what works ------------------------------------------------------------------------------------


def test_compile_writes_everything_and_prints_the_table(here: Path) -> None:
    np.savez(here / "data.npz", x=np.random.default_rng(0).standard_normal((8, 3, 8, 8), np.float32))
    result = well("compile cli_nets:net --channels 0.5x --data data.npz --seed 7 -o out")
    assert {path.name for path in (here / "out").iterdir()} == {
        *("model.pt2", "plan.json", "plan.safetensors", "report.html", "report.json"),
        *("widths.json", "weights.pt", "rebuild.py"),
    }
    assert left_behind(here) == {"data.npz", "out"}
    report = json.loads((here / "out/report.json").read_text())
    assert set(report) >= {
        "before",
        "after",
        "groups",
        "frozen",
        "passes",
        "verification",
        "recipe",
        "versions",
        "seed",
    }
    for side in ("before", "after"):
        assert {"params", "macs", "weights_bytes", "latency_ms", "per_target"} <= set(report[side])
        assert {"median_ms", "spread_ms", "repeats"} <= set(report[side]["latency_ms"])
    assert [(group["size"], group["kept"]) for group in report["groups"]] == [(16, 8)]
    assert report["verification"]["used"] and report["verification"]["max_relative_error"] <= 1e-12
    assert report["seed"] == 7 and report["model"] == "cli_nets:net"
    assert re.search(r"^parameters +\S+.* 0\.\d\dx", result.stdout, re.MULTILINE)
    assert f"Recipe: auto, which is {report['recipe']}" in result.stdout and "score{by=obs}" in report["recipe"]
    assert "auto" in (here / "out/report.html").read_text()
    assert result.stdout.rstrip().endswith(f"report: {Path('out/report.html')}")


def test_the_recipe_of_the_report_gives_the_same_plan(here: Path) -> None:
    well("compile cli_nets:net --macs 0.5x -o first")
    recipe = json.loads((here / "first/report.json").read_text())["recipe"]
    well(f"compile cli_nets:net --passes '{recipe}' -o second")
    plans = [json.loads((here / name / "plan.json").read_text()) for name in ("first", "second")]
    assert plans[0] == plans[1]


def test_recipe_file(here: Path) -> None:
    (here / "r.toml").write_text(
        '[[pass]]\nname="group"\n[[pass]]\nname="score"\nby="l1"\n[[pass]]\nname="mask"\nchannels="0.25x"\n[[pass]]\nname="propagate"\n'
    )
    well("compile cli_nets:net --recipe r.toml --no-verify -o out")
    report = json.loads((here / "out/report.json").read_text())
    assert report["recipe"] == "group,score{by=l1},mask{channels=0.25x},propagate"
    assert report["verification"]["used"] is False
    assert "--no-verify was given" in (here / "out/report.html").read_text()


def test_an_existing_output_is_replaced_only_by_force(here: Path) -> None:
    well("compile cli_nets:net --channels 0.5x --no-verify -o out")
    before = (here / "out/plan.json").read_bytes()
    refused = run("compile cli_nets:net --channels 0.25x --no-verify -o out")
    assert refused.exit_code == 1 and "--force" in refused.stderr
    assert (here / "out/plan.json").read_bytes() == before
    well("compile cli_nets:net --channels 0.25x --no-verify -o out --force")
    assert (here / "out/plan.json").read_bytes() != before
    assert left_behind(here) == {"out"}


def _weights(path: Path) -> dict[str, np.ndarray]:
    import torch

    return {name: tensor.detach().numpy() for name, tensor in torch.export.load(path).state_dict.items()}


@pytest.mark.parametrize(("out", "model"), [("again.pt2", "again.pt2"), ("again", "again/model.pt2")])
def test_apply_gives_the_same_weights_to_the_last_bit(out: str, model: str, here: Path) -> None:
    well("compile cli_nets:net --channels 0.5x --no-verify -o out")
    assert well(f"apply out/plan.json cli_nets:net -o {out}").stdout == f"{Path(model)}\n"
    first, again = _weights(here / "out/model.pt2"), _weights(here / model)
    assert list(first) == list(again)
    for name in first:
        assert first[name].dtype == again[name].dtype and first[name].tobytes() == again[name].tobytes()
    assert run(f"apply out/plan.json cli_nets:net -o {out}").exit_code == 1
    well(f"apply out/plan.json cli_nets:net -o {out} --force")
    assert left_behind(here) == {"out", Path(out).name}


def test_apply_takes_other_weights_only_where_told(here: Path) -> None:
    well("compile cli_nets:net --channels 0.5x --no-verify -o out")
    plan = json.loads((here / "out/plan.json").read_text())
    (here / "out/plan.json").write_text(json.dumps({**plan, "fingerprint": "sha256:" + "0" * 64}))
    refused = run("apply out/plan.json cli_nets:net -o again.pt2")
    assert refused.exit_code == 1 and "--allow-other-weights" in refused.stderr and left_behind(here) == {"out"}
    result = well("apply out/plan.json cli_nets:net -o again --allow-other-weights")
    assert "note: the plan was made from other weights" in result.stderr
    assert json.loads((here / "again/plan.json").read_text()) == plan


def test_apply_refuses_the_wrong_file_type(here: Path) -> None:
    well("compile cli_nets:net --channels 0.5x --no-verify -o out")
    result = run("apply out/plan.json cli_nets:net -o again.onnx")
    assert result.exit_code == 1 and "again.pt2" in result.stderr and left_behind(here) == {"out"}


@pytest.mark.parametrize("content", ["", "[]", '{"version": 99, "steps": []}'])
def test_apply_refuses_what_is_not_a_plan(content: str, here: Path) -> None:
    (here / "plan.json").write_text(content)
    result = run("apply plan.json cli_nets:net -o out")
    assert result.exit_code == 1 and "plan.json" in result.stderr and left_behind(here) == {"plan.json"}


def test_inspect_lists_members_and_reasons() -> None:
    output = well("inspect cli_nets:net --all").stdout
    assert "1 group, 16 channels" in output
    for line in (r"writer +conv1\.weight\[0\]", r"carrier +bn1\.running_var\[0\]", r"reader +head\.weight\[1\]"):
        assert re.search(line, output)
    assert re.search(r"head +5 +reaches the graph output", output)


def test_inspect_explains_a_model_with_nothing_to_prune() -> None:
    output = well("inspect cli_nets:nothing_to_prune").stdout
    assert "0 groups" in output and "reaches the graph output" in output


def test_inspect_fits_a_screen_and_is_counted_by_hand() -> None:
    output = well("inspect cli_nets:net").stdout
    found = json.loads(well("inspect cli_nets:net --json").stdout)
    (group,) = found["groups"]
    whole = 16 * 3 * 9 + 16 + 2 * 16 + 16 * 16 * 9 + 16 + 5 * 16 + 5
    assert found["params"] == whole and group["channels"] == 16
    assert group["params"] == whole - 5  # all but the bias of the head
    assert [member["role"] for member in group["members"] if member["parameter"] == "head.weight"] == ["reader"]
    assert f"{group['params'] / whole:.1%}" in output and "head: reaches the graph output" in output
    assert max(map(len, output.splitlines())) <= 100


def test_inspect_text_is_the_program() -> None:
    output = well("inspect cli_nets:net --text").stdout
    assert " = conv(" in output and "output %" in output


def test_the_graph_is_drawn_the_same_every_time(here: Path) -> None:
    well("inspect cli_nets:net --graph one.svg")
    environment = ENVIRONMENT | {"PYTHONHASHSEED": "77"}
    line = [sys.executable, "-m", "graphprune", "inspect", "cli_nets:net", "--graph", "two.svg"]
    subprocess.run(line, check=True, capture_output=True, env=environment)
    svg = (here / "one.svg").read_text()
    assert svg == (here / "two.svg").read_text()
    assert all(name in svg for name in ("1  conv1", "conv1 (conv): ", " of conv1<", "frozen, reaches the graph output"))
    assert left_behind(here) == {"one.svg", "two.svg"}


def test_a_graph_that_cannot_be_written(here: Path) -> None:
    result = run("inspect cli_nets:net --graph nowhere/one.svg")
    assert result.exit_code == 1 and "nowhere/one.svg" in result.stderr and not left_behind(here)


def test_a_plot_replaces_a_file_whole_or_not_at_all(here: Path) -> None:
    Path("x.svg").write_text("mine")
    np.savez("data.npz", np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32))
    result = run("sweep cli_nets:net --data data.npz --plot nowhere/x.svg")
    assert result.exit_code == 1 and "nowhere/x.svg cannot be written" in result.stderr
    well("sweep cli_nets:net --data data.npz --plot x.svg")
    assert Path("x.svg").read_text().endswith("</svg>\n") and left_behind(here) == {"x.svg", "data.npz"}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_recipe_file_may_begin_with_a_mark_of_utf_8_and_errors_name_it(mark: bytes) -> None:
    text = b'[[pass]]\nname = "group"\n\n[[pass]]\nname = "score"\n'
    Path("recipe.toml").write_bytes(mark + text + b'\n[[pass]]\nname = "nothing"\n')
    result = run("bisect cli_nets:net --recipe recipe.toml")
    assert result.exit_code == 1 and result.stderr.startswith("error: recipe.toml: unknown pass `nothing`")
    Path("recipe.toml").write_bytes(mark + text)
    well("bisect cli_nets:net --recipe recipe.toml")


def test_bench_compares_two_models() -> None:
    well("compile cli_nets:net --channels 0.25x --no-verify -o out")
    well("compile cli_nets:net --channels 0.5x --no-verify -o other")
    output = well("bench out/model.pt2 other/model.pt2 --repeats 5").stdout
    assert len(re.findall(r"median [^,]+ ms, interquartile range [^,]+ ms, 5 repeats, 1 thread", output)) == 2, output
    assert re.search(r"^ratio \d+\.\d{3}x ± \d+\.\d{3}: other/model.pt2 is ", output, re.MULTILINE)


# ---- progress --------------------------------------------------------------------------------------


def test_progress_is_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphprune.report import progress

    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with progress.shown() as report:
        for done in range(3):
            report("score", done, 3)
        report("mask", 0, 1)
    assert capsys.readouterr() == ("", "[0/3] score\n[0/1] mask\n")


def test_what_long_work_has_left_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune.report import progress

    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with progress.shown() as report:
        for what, at, done, total in (
            ("a", 0.0, 0, 10),
            ("b", 30.0, 2, 10),
            ("c", 40.0, 8, 10),
            ("d", 48.0, 9, 10),
            ("e", 49.5, 10, 10),
            ("f", 50.0, 0, 4),  # other work
            ("g", 52.0, 1, 4),
        ):
            now[0] = at
            report(what, done, total)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[2/10] b, about 2 min left",
        "[8/10] c, about 10 s left",
        "[9/10] d, about 5 s left",
        "[10/10] e",
        "[0/4] f",
        "[1/4] g, about 6 s left",
    ]


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    from graphprune.report import progress

    with progress.shown() as report:
        report("score", 0, 3)
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_is_a_bar_that_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from graphprune.report import progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.shown() as report:
        report("score[bold]", 1, 3)
    shown = sys.stderr.getvalue()
    assert "score[bold]" in shown and "1/3" in shown and shown.rstrip().endswith("\x1b[2K")


def test_commands_are_all_listed_here() -> None:
    assert tuple(main.commands) == COMMANDS
