"""The dump: a folder per pass, whole, also of a run that fails."""

from __future__ import annotations

import json

import nets
import pytest

import graphprune as gp
from graphprune.driver.dump import dumped
from graphprune.errors import BudgetError, OutputError

RECIPE = "group,score,mask{channels=0.5x},propagate"
TOO_LITTLE = "group,score,mask{macs=0.01x floor=0.9}"


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_per_pass_holds_graph_and_facts(tmp_path):
    program = nets.program("MLP")
    out = gp.compile(program, recipe=RECIPE, dump=tmp_path / "d", measure=False)
    names = ["00-source", "01-group", "02-score", "03-mask", "04-propagate"]
    assert tree(tmp_path / "d") == sorted(
        [f"{n}/{f}" for n in names for f in ("facts.json", "graph.txt")] + ["passes.json"]
    )
    assert (tmp_path / "d/00-source/graph.txt").read_text() == program.graph.text() + "\n"
    assert (tmp_path / "d/04-propagate/graph.txt").read_text() == out.program.graph.text() + "\n"
    facts = json.loads((tmp_path / "d/03-mask/facts.json").read_text())
    sizes = {group["name"]: group["size"] for group in facts["Groups"]["groups"]}
    assert {name: len(at) for name, at in facts["Scores"]["scores"].items()} == sizes
    kept = {name: len(at) for name, at in facts["Keep"]["keep"].items()}
    assert kept.keys() == sizes.keys() and sum(kept.values()) == sum(sizes.values()) // 2
    assert json.loads((tmp_path / "d/04-propagate/facts.json").read_text()) == {}
    rows = json.loads((tmp_path / "d/passes.json").read_text())
    assert [row["folder"] for row in rows] == names
    assert rows[-1]["params"] < rows[0]["params"] and rows[-1]["macs"] < rows[0]["macs"]
    assert rows[-1]["weights_bytes"] < rows[0]["weights_bytes"] and rows[1]["seconds"] > 0


def test_a_run_that_fails_leaves_what_it_had_and_why(tmp_path):
    with pytest.raises(BudgetError):
        gp.compile(
            nets.program("MLP"),
            recipe="group,score,mask{macs=0.01x floor=0.9},propagate",
            dump=tmp_path / "d",
            measure=False,
        )
    assert [row["folder"] for row in json.loads((tmp_path / "d/passes.json").read_text())][-1] == "02-score"
    assert "a budget" in (tmp_path / "d/error.txt").read_text()


def test_what_is_there_is_replaced_by_force_only(tmp_path):
    for _ in range(2):
        with dumped(tmp_path / "d", True) as (dump,):
            gp.run("group", nets.program("MLP"), instruments=[dump])
    with pytest.raises(OutputError, match="exists"), dumped(tmp_path / "d", False):
        pass
    with pytest.raises(OutputError, match="one holds the other"):
        gp.compile(nets.program("MLP"), dump=tmp_path / "out" / "d", out=tmp_path / "out")


def test_a_crash_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), dumped(tmp_path / "d", False):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
