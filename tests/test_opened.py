"""The benchmark of families of dims: what it runs exists, and one recipe is run once."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")
from benchmarks.opened import NEARER, _cell, key, tables, timed
from benchmarks.opened_sides import NAMES, THEIRS, contenders, recipe
from benchmarks.opened_tasks import TASKS


@pytest.mark.parametrize("on", TASKS)
def test_every_contender_of_a_network_is_a_recipe_for_its_budget(on: str) -> None:
    names = contenders(TASKS[on])
    assert {*TASKS[on].names, "auto"} <= {*names} <= {*NAMES}
    assert (THEIRS in names) == bool(TASKS[on].stays)
    assert {"mone", "stun"}.isdisjoint(names)  # no network here has experts
    for name in names:
        for budget in ("macs=0.5x", "params=0.7x"):
            if name != THEIRS:
                assert budget.rstrip("x") in recipe(name, budget).text()


def test_contenders_of_one_recipe_have_one_result() -> None:
    assert key("stories", "params=0.7x", "auto") == key("stories", "params=0.7x", "widths")
    assert len({key("stories", "params=0.7x", name) for name in NAMES}) == len(NAMES) - 1  # auto is widths


@pytest.mark.parametrize("change", [0.1, 0.3])
def test_of_auto_and_all_the_nearer_has_a_row(change: float) -> None:
    """By samples held back, not by what is shown."""
    found = {
        key("vit", "macs=0.5x", "all"): {"accuracy": 90.0, "change": change},
        key("vit", "macs=0.5x", "auto"): {"accuracy": 95.0, "change": 0.2},
        key("vit", "macs=0.7x", "auto"): {"accuracy": 96.0, "change": 0.1},
    }
    rows = {cells[1].strip(): cells[2:4] for cells in (line.split("|") for line in tables(found).splitlines())}
    assert [cell.strip() for cell in rows[NEARER]] == ["-", "90.00" if change < 0.2 else "**95.00**"]


def test_the_table_shows_what_is_there_and_marks_the_best_of_each_column() -> None:
    found = {
        key("stories", "params=0.7x", "all"): {"kl": 0.25},
        key("stories", "params=0.7x", "widths"): {"kl": 0.5},
        key("stories", "macs=0.5x", "slicegpt"): {"refused": "no stream"},
        timed("stories", "0.5x", "all"): {"kl": 0.75},
        key("vit", "macs=0.5x", "all"): {"accuracy": 90.0},
    }
    first, second, third = tables(found).split("\n\n")
    rows = {
        cells[0]: cells[1:] for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in first.splitlines())
    }
    assert rows["stories, kl"] == ["params=0.7x", "macs=0.5x"]
    assert rows["all"] == ["**0.250**", "-"]
    assert rows["auto"] == rows["widths"] == ["0.500", "-"]
    assert rows["slicegpt"] == ["-", "cannot"]
    assert set(rows) == {"stories, kl", "---", "all", "auto", "widths", "slicegpt"}
    assert second.splitlines() == ["| stories, kl | latency 0.5x |", "|---|---|", "| all | **0.750** |"]
    assert third.splitlines()[-1] == "| all | **90.00** |"
    assert _cell(TASKS["vit"], {"accuracy": 80.0}, 80.0) == "**80.00**"
