"""`graphprune curve`: what is shared between points changes none of them, and a run goes on where another ended."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import graphprune as gp
from graphprune.cli import main
from graphprune.driver.curve import budgets
from graphprune.errors import BudgetError, DataError, OutputError, RecipeError
from graphprune.ir.facts import Keep
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import Begun, run
from graphprune.report.curve import columns, render

X = np.random.default_rng(0).standard_normal((48, 6)).astype(np.float32)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


def trace(out: Path, model: nn.Module | None = None, **options: Any) -> dict[str, Any]:
    return gp.curve(model or net(), torch.zeros(2, 6), data=X, out=out, measure=False, **options)


@pytest.mark.parametrize("recipe", [None, "all"])
def test_points_are_what_compile_makes_and_what_they_share_is_made_once(
    recipe: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rd = import_module("graphprune.allocation.rd")  # the package has a function of that name
    runs, measure = [], rd.distortions

    def measured(*arguments: Any) -> Any:
        runs.append(1)
        return measure(*arguments)

    monkeypatch.setattr(rd, "distortions", measured)
    made = trace(tmp_path / "c", budgets="0.4,0.7x", recipe=recipe)
    assert runs == [1]
    for text, point in zip(("0.4", "0.7x"), made["points"], strict=True):
        alone = gp.compile(
            net(), torch.zeros(2, 6), macs=text, data=X, recipe=recipe, measure=False, out=tmp_path / text
        )
        assert point["recipe"] == alone.report["recipe"] and point["closeness"] == alone.report["closeness"]
        for name in ("plan.safetensors", "weights.pt"):
            assert (tmp_path / "c" / point["folder"] / name).read_bytes() == (tmp_path / text / name).read_bytes()
        one, other = (
            json.loads((f / "plan.json").read_text()) for f in (tmp_path / "c" / point["folder"], tmp_path / text)
        )
        assert one["parameters"] == other["parameters"] and one["steps"] == other["steps"]
        report = (tmp_path / "c" / point["folder"] / "report.html").read_text()
        assert report.count('class="dot on"') == 2 and 'href="../curve.html"' in report  # against MACs and parameters
    assert made["points"][0]["after"]["macs"] < made["points"][1]["after"]["macs"]


def test_it_goes_on_where_it_was_and_refuses_what_is_something_else(tmp_path: Path) -> None:
    out = tmp_path / "c"
    first = trace(out, budgets="0.4x,0.7x")
    shutil.rmtree(out / "macs-0.7x")
    kept = (out / "macs-0.4x" / "report.json").stat().st_mtime_ns
    again = trace(out, budgets="0.4x,0.5x,0.7x")
    assert (out / "macs-0.4x" / "report.json").stat().st_mtime_ns == kept
    assert [point["budget"] for point in again["points"]] == ["0.4x", "0.5x", "0.7x"]
    assert again["points"][2]["after"] == first["points"][1]["after"]
    assert json.loads((out / "curve.json").read_text()) == again
    with pytest.raises(OutputError, match="holds the curve of another model, data or options"):
        trace(out, net(1), budgets="0.4x")
    with pytest.raises(OutputError, match="holds the curve of another"):
        trace(out, budgets="0.4x", freeze="0")
    assert [point["budget"] for point in trace(out, net(1), budgets="0.4x", force=True)["points"]] == ["0.4x"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(OutputError, match="exists and holds no curve"):
        trace(tmp_path / "other", budgets="0.4x", force=True)


def test_a_budget_that_cannot_be_met_is_said_and_the_others_are_made(tmp_path: Path) -> None:
    made = trace(tmp_path / "c", budgets="0.001x,0.5x")
    assert "error" in made["points"][0] and made["points"][1]["after"]["macs"]
    page = (tmp_path / "c" / "curve.html").read_text()
    assert made["points"][0]["error"].replace("`", "")[:30] in page.replace("`", "")
    assert [row[0] for row in columns(made)] == ["budget", "original", "0.001x", "0.5x"]


def test_the_page_escapes_names_runs_its_own_script_alone_and_is_whole_without_it(tmp_path: Path) -> None:
    made = trace(tmp_path / "c", budgets="0.4x,0.7x", evaluate=lambda network: {"<b>figure": 1.5})
    page = render({**made, "model": "</title><script>alert(1)</script>"})
    assert page == render({**made, "model": "</title><script>alert(1)</script>"})
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1 and "alert" not in scripts[0]
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and "default-src 'none'" in page
    assert "<b>figure" not in page and "&lt;b&gt;figure" in page
    assert not re.search(r"(src|href)=\"(?!macs-0)", page)
    rows = page[page.index("Every point") :]
    for row in columns(made):
        assert all(cell in rows for cell in row if "<" not in cell)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0.3..0.9", ["0.3x", "0.4x", "0.5x", "0.6x", "0.7x", "0.8x", "0.9x"]),
        ("30%..0.5/2", ["0.3x", "0.5x"]),
        ("0.25x..0.75x/3", ["0.25x", "0.5x", "0.75x"]),
        ("12ms, 0.5x,12ms", ["12ms", "0.5x"]),
    ],
)
def test_budgets(text: str, found: list[str]) -> None:
    assert budgets(text, "latency") == found


@pytest.mark.parametrize(
    "text", ["", "a..b", "0.9..0.3", "0..0.5", "0.3..0.9/1", "0.3..1", "0.3..0.9/x", "half", "0.5,2x", "12ms"]
)
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises((RecipeError, BudgetError)):
        budgets(text, "macs")


def test_a_budget_that_cannot_be_met_may_come_first_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    first, second = trace(tmp_path / "c", budgets="0.0001x,0.5x")["points"]
    assert "cannot be met" in first["error"] and second["folder"] == "macs-0.5x"
    with pytest.raises(BudgetError, match="no budget can be met"):
        trace(tmp_path / "none", budgets="0.0001x,0.0002x")
    assert not (tmp_path / "none").exists()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "curve_nets.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef net():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), (torch.zeros(2, 6),)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    np.savez("x.npz", x=X)
    line = "curve curve_nets:net --budgets 0.4,0.8 --of params -o out --data x.npz".split()
    done = CliRunner().invoke(main, line)
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()[:4]] == ["budget", "original", "0.4", "0.8"]
    assert max(map(len, done.stdout.splitlines())) <= 80
    told = CliRunner().invoke(main, [*line, "--json"])
    assert json.loads(told.stdout) == json.loads(Path("out/curve.json").read_text())
    none = CliRunner().invoke(main, line[:-2])
    assert none.exit_code == 1 and "a curve sets sizes against what they cost" in none.stderr
    with pytest.raises(DataError):
        gp.curve(net(), torch.zeros(2, 6), out="o")


def test_a_recipe_that_begins_otherwise_is_run_whole() -> None:
    program = gp.load(net(), torch.zeros(2, 6))
    steps = Recipe.parse("group,score{by=l2}")
    known = program.learn(Begun(steps.steps, run(steps, program)))
    for rest, shared in (
        ("group,score{by=l2},mask{channels=0.5x}", True),
        ("group,score{by=l1},mask{channels=0.5x}", False),
    ):
        done, alone = run(Recipe.parse(rest), known), run(Recipe.parse(rest), program)
        assert [step.text for step in done.history] == [step.text for step in alone.history]
        assert (done.history[0] is known.fact(Begun).program.history[0]) is shared
        found, wanted = done.fact(Keep).keep, alone.fact(Keep).keep
        assert {name: own.tolist() for name, own in found.items()} == {n: own.tolist() for n, own in wanted.items()}


def test_a_curve_that_is_stopped_before_its_first_point_leaves_nothing(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("macs="):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(tmp_path / "c", budgets="0.5x", progress=stop)
    assert not (tmp_path / "c").exists()


def test_widths_of_ones_own_hold_at_every_budget(tmp_path: Path) -> None:
    made = trace(tmp_path / "c", budgets=[0.5, 0.8], width={"2": 9}, ignore=[])
    for point in made["points"]:
        report = json.loads((tmp_path / "c" / point["folder"] / "report.json").read_text())
        assert {group["name"]: group["kept"] for group in report["groups"]}["2"] == 9
    assert [point["budget"] for point in made["points"]] == ["0.5x", "0.8x"]
