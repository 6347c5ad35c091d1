"""Latency budgets: workloads of ops, tables on disk, the model over them, and a search that a target corrects."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import nets
import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known import Known, Sleeper, alone, without_a_clock
from residual import transformer
from torch import nn

import graphprune as gp
from graphprune.allocation import timed
from graphprune.allocation.problem import Allocation
from graphprune.axes.dim import Dim
from graphprune.backends.best import Best
from graphprune.backends.measure import Comparison, Runnable, settled
from graphprune.backends.onnxruntime.target import Onnx
from graphprune.backends.onnxruntime.time_ops import geometry, shapes
from graphprune.backends.target import Target, target
from graphprune.cost.latency.model import LatencyModel, points
from graphprune.cost.latency.table import Surface, Table, grid
from graphprune.cost.latency.tabulated import Sheet
from graphprune.cost.latency.workload import Family, works
from graphprune.cost.static import Cost
from graphprune.driver.latency_search import recorded, to_latency
from graphprune.driver.measured import distance
from graphprune.errors import BudgetError, DataError, RecipeError, TargetError
from graphprune.ir.facts import Group, Groups, Keep, Latency, Scores
from graphprune.ir.graph import Branch
from graphprune.ir.host import Batch
from graphprune.ir.program import Program
from graphprune.passes.mask import Mask
from graphprune.pipeline.bypass import Bypass
from graphprune.pipeline.edits import Cut
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import run
from graphprune.report import page
from graphprune.report.page import comparison, targeted


class Net(nn.Module):
    """Every kind of op that has a family of its own."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
        self.deep = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.point, self.last = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, 32, 3)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.stem(x)))
        z = torch.relu(self.point(y + torch.relu(self.deep(y))))
        return self.head(nn.functional.avg_pool2d(self.last(z), 14).flatten(1))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return gp.load(Net().eval(), torch.randn(1, 3, 32, 32))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_a_clock(tmp_path / "cache", monkeypatch)


def recipe(budget: str, grain: int = 16) -> Recipe:
    return Recipe.parse(f"group,score,mask{{latency={budget} grain={grain}}},propagate")


# ---- workloads -----------------------------------------------------------------------------------------


def test_the_workloads_of_a_network(program: Program) -> None:
    found = {work.op: work for work in works(program.graph, program.host) if work.family.kind != "stream"}
    text = {name: (work.family.text(), *work.widths({}, program.host.sizes())[:2]) for name, work in found.items()}
    assert list(text.values()) == [
        ("conv 1 1 32 3 2 32 3 2 float32", 3, 64),
        ("conv 1 0 16 5 1 16 5 1 float32", 64, 1),
        ("conv 1 1 16 1 1 16 1 1 float32", 64, 128),
        ("conv 1 1 16 3 1 16 3 1 float32", 128, 32),
        ("product 1 float32", 32, 10),
    ]
    assert all(Family.parse(work.family.text()) == work.family for work in found.values())


def test_what_is_fused_takes_no_time_of_its_own(program: Program) -> None:
    streams = [w for w in works(program.graph, program.host) if w.family.kind == "stream"]
    kinds = {op.name: op.kind for op in program.graph.ops}
    assert {kinds[work.op] for work in streams} == {"pool"}


def test_a_point_has_the_geometry_of_its_op() -> None:
    strided = (Family("conv", (2, 1, 32, 3, 2, 30, 5, 1)), (8, 24))
    x, weight, y = shapes(strided)
    assert (x, weight, y) == ([2, 8, 32, 30], [24, 8, 3, 5], [2, 24, 16, 30])
    facts = geometry(strided)
    top, left, bottom, right = facts["pads"]
    padded = nn.functional.pad(torch.zeros(x), (left, right, top, bottom))
    made = nn.functional.conv2d(padded, torch.zeros(weight), stride=tuple(facts["strides"]), groups=facts["group"])
    assert list(made.shape) == y
    assert shapes((Family("conv", (1, 0, 8, 3, 1)), (6, 2))) == ([1, 6, 8], [12, 1, 3], [1, 12, 8])


# ---- tables --------------------------------------------------------------------------------------------


def latency(ms: float) -> Latency:
    return Latency(ms, 0.1, 9, 1, "known")


def test_a_table_survives_and_goes_on(tmp_path: Path) -> None:
    path, family = tmp_path / "t.jsonl", Family("product", (7,))
    table = Table({"target": "known"}, path)
    table.add({(family, (16, 32)): latency(1.0)})
    table.add({(family, (32, 32)): latency(2.0), (Family("stream"), (1, 10)): latency(0.5)})
    again = Table.read(path, {"target": "known"})
    assert again.points == table.points and again.key == table.key
    wanted = [(family, (16, 32)), (family, (64, 64)), (family, (64, 64))]
    assert again.missing(wanted) == [(family, (64, 64))]
    with path.open("a") as file:
        file.write('{"op": "product 7 flo')  # as a crash leaves it
    assert Table.read(path).points == table.points
    Table.read(path).add({(family, (64, 64)): latency(3.0)})
    assert Table.read(path).missing(wanted) == []


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    Table({"target": "a"}, path).add({(Family("stream"), (1, 1)): latency(1.0)})
    with pytest.raises(DataError, match="recorded for"):
        Table.read(path, {"target": "b"})
    with pytest.raises(DataError, match="has no `product 7 float32`"):
        Table.read(path).surface(Family("product", (7,)))
    path.write_text("not a table\n")
    with pytest.raises(DataError, match="not a latency table"):
        Table.read(path)


def test_a_surface_is_exact_on_what_is_bilinear() -> None:
    def ms(a: float, b: float) -> float:
        return 0.2 + 0.01 * a + 0.003 * b + 0.0005 * a * b

    surface = Surface({(a, b): ms(a, b) for a in (16, 64, 256) for b in (32, 48, 128)})
    a, b = np.meshgrid(np.arange(16, 300, 16), np.arange(16, 200, 16))
    np.testing.assert_allclose(surface(a, b), ms(a, b), rtol=1e-12)
    assert surface(64, 48) == pytest.approx(ms(64, 48))


def test_a_surface_fills_what_was_not_measured() -> None:
    surface = Surface({(16, 16): 1.0, (32, 32): 4.0})
    assert surface(16, 32) == pytest.approx(2.0) and surface(32, 16) == pytest.approx(2.0)
    assert Surface({(3, 16): 1.0, (3, 32): 2.0})(3, np.array([16, 24, 48])).tolist() == [1.0, 1.5, 3.0]


def test_the_grid_has_ends_octaves_and_the_sizes_of_few() -> None:
    assert grid(16, [512], 16) == [16, 32, 64, 128, 256, 512]
    assert grid(16, [96, 160], 16) == [16, 32, 64, 96, 128, 160]
    assert grid(16, [16 * k for k in range(4, 20)], 16) == [16, 32, 64, 128, 256, 304]
    assert grid(3, [3], 16) == [3]


def test_interrupted_samples_are_left_out() -> None:
    calm = settled([2.0, 2.1, 2.2, 2.1, 10.6, 10.4], 1, "x")
    assert calm.median_ms == pytest.approx(2.1) and calm.repeats == 4 and calm.spread_ms < 0.2
    assert settled([1.0], 2, "x") == Latency(1.0, 0.0, 1, 2, "x")


# ---- the model -----------------------------------------------------------------------------------------


def model_of(program: Program, grain: int = 16) -> tuple[Program, LatencyModel]:
    scored = run(Recipe.parse("group,score"), program)
    table, _ = recorded(scored, Known(), Mask(latency="0.5x", grain=grain))
    return scored, LatencyModel.of(scored.graph, scored.host, scored.fact(Groups), table, alone(program), "known")


def test_the_model_prices_the_pruned_network(program: Program) -> None:
    """Against the network that is really cut, at widths on the grid: the sum is exact."""
    scored, model = model_of(program)
    assert model.scale == pytest.approx(1.0)
    for ratio in ("0.25x", "0.5x", "0.75x"):
        cut = run(Recipe.parse(f"mask{{channels={ratio} grain=16}},propagate"), scored)
        counts = {name: len(kept) for name, kept in cut.plan["steps"][0]["keep"].items()}
        assert model.total_ms(counts) == pytest.approx(alone(cut), rel=0.02)
        assert sum(model.per_op(counts).values()) == pytest.approx(model.total_ms(counts))


def test_prices_are_the_model_one_group_at_a_time(program: Program) -> None:
    scored, model = model_of(program)
    menus = Mask(latency="0.5x", grain=16).menus(scored)
    counts = {name: menu[len(menu) // 2] for name, menu in menus.items()}
    for name, menu in menus.items():
        prices = model.prices(counts, [name], np.array(menu))
        assert prices.tolist() == pytest.approx([model.total_ms({**counts, name: count}) for count in menu])


def test_a_table_has_what_the_search_needs_and_no_more(program: Program) -> None:
    scored, _ = model_of(program)
    menus = Mask(latency="0.5x", grain=16).menus(scored)
    found = points(scored.graph, scored.host, scored.fact(Groups), menus, 16)
    widths = {family.text(): {w for f, w in found if f == family} for family, _ in found}
    assert widths["conv 1 1 16 1 1 16 1 1 float32"] == {(a, b) for a in (8, 16, 32, 64) for b in (16, 32, 64, 128)}
    assert widths["conv 1 0 16 5 1 16 5 1 float32"] == {(8, 1), (16, 1), (32, 1), (64, 1)}
    assert len(found) < 60


@pytest.mark.parametrize("name", sorted(k for k, net in nets.ZOO.items() if net.prunable or net.mixed))
def test_the_sheet_says_what_the_widths_of_every_op_say(name: str) -> None:
    """Against every op evaluated by itself: concats, products of groups, axes in several ops, from any state."""
    scored = run(Recipe.parse("group"), nets.program(name))
    rng, groups = np.random.default_rng(0), scored.fact(Groups)
    found, sizes = works(scored.graph, scored.host), scored.host.sizes()
    surfaces: dict[Family, Any] = {
        work.family: lambda inner, outer, k=k: np.sqrt(k + inner * outer) + outer for k, work in enumerate(found)
    }
    sheet = Sheet(found, surfaces, {group.name: group.dim for group in groups}, sizes)

    def alone(counts: dict[str, int]) -> list[float]:
        kept = {group.dim: counts[group.name] for group in groups if group.name in counts}
        at = [(work.family, *work.widths(kept, sizes)) for work in found]
        return [float(surfaces[family](inner, outer) * times) for family, inner, outer, times in at]

    assert sheet.each({}).tolist() == pytest.approx(alone({}))
    for _ in range(5):
        chosen = [group for group in groups if rng.random() < 0.7]
        counts = {group.name: int(rng.integers(1, group.size + 1)) for group in chosen}
        for group in groups:
            options = np.unique(rng.integers(1, group.size + 1, 4))
            same = [group.name, *(other.name for other in groups if other is not group and rng.random() < 0.3)]
            for names in ([group.name], same):  # one, and several that keep as many
                every = [sum(alone({**counts, **dict.fromkeys(names, k)})) for k in options.tolist()]
                assert sheet.sums(counts, names, options).tolist() == pytest.approx(every)
        assert sheet.each(counts).tolist() == pytest.approx(alone(counts))


@pytest.mark.parametrize(("text", "ms"), [("0.5x", 4.0), ("3ms", 3.0), ("2.5e-1x", 2.0), ("500us", 0.5), ("0.002s", 2)])
def test_a_budget_is_a_share_or_a_time(program: Program, text: str, ms: float) -> None:
    assert LatencyModel(Sheet((), {}, {}, {}), 8.0, "x").budget_ms(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["1.2x", "0x", "fast", "-3ms", "12 parsecs"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="is not a budget"):
        LatencyModel(Sheet((), {}, {}, {}), 8.0, "x").budget_ms(text)


# ---- the search ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["0.8x", "0.6x", "0.4x"])
def test_a_latency_is_reached_and_predicted(program: Program, clock: None, budget: str) -> None:
    on = Known()
    found = to_latency(program, recipe(budget), on)
    facts = found.facts
    took = (on.factor * alone(found.program) + on.extra) / (on.factor * alone(program) + on.extra)
    share = float(budget[:-1])
    assert took <= 1.03 * share and took >= 0.85 * share  # few widths to choose from
    assert facts["measured_ms"] == pytest.approx(on.factor * alone(found.program) + on.extra)
    assert abs(facts["predicted_ms"] / facts["measured_ms"] - 1) < 0.1
    assert 1 <= len(facts["rounds"]) <= 4
    assert gp.verify(found.program)


def test_of_several_targets_the_fastest_is_searched_on(
    program: Program, clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Quick(Known):
        name: ClassVar[str] = "quick"
        factor: float = 0.5

    monkeypatch.setattr("graphprune.backends.best.Best._each", lambda self: (Known(), Quick()))
    facts = to_latency(program, recipe("0.6x"), Best()).facts
    assert facts["target"] == "quick" and facts["measured_ms"] <= 1.03 * facts["goal_ms"]


def test_compile_tells_how_far_the_search_is(program: Program, clock: None) -> None:
    told: list[str] = []
    made = gp.compile(
        program,
        latency="0.6x",
        targets=[Known()],
        verify=False,  # it has no code to run
        measure=False,
        progress=lambda what, *_: told.append(what),
    )
    facts = made.report["latency"]
    assert 0.5 * facts["whole_ms"] < facts["measured_ms"] <= 1.03 * facts["goal_ms"]
    assert {"group", "score", "time ops on known", "latency 0.6x on known"} <= set(told)


class Picky(Known):
    """A target that pads to the next multiple of 32 what is none of 16, and fills it slowly."""

    grain: ClassVar[int] = 16

    def runnable(self, program: Program, *, threads: int = 1) -> Runnable:
        works_ = [work.widths({}, program.host.sizes()) for work in works(program.graph, program.host)]
        odd = any(width % 16 for inner, outer, _ in works_ for width in (inner, outer) if width > 10)
        return Sleeper((2.0 if odd else 1.0) * alone(program), threads)


@pytest.fixture
def compiled(clock: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`gp.compile` on a target whose code takes so many ms as it says; ``pace`` has what each measurement of a result
    is multiplied by, in turns, once where it is over."""

    def compile(program: Program, on: Target, pace: Sequence[float] = (), **options: Any) -> Any:
        left = list(pace)

        def beside(original: Any, other: Any, **_: Any) -> Comparison:
            factor = left.pop(0) if left else 1.0
            before, after = (Latency(ms, 0.0, 5, 1, "known") for ms in (2 * original.ms, 2 * factor * other.ms))
            return Comparison(before, after, 0.01)

        monkeypatch.setattr("graphprune.driver.measured.beside", beside)
        monkeypatch.setattr(type(on), "unable", lambda self: None)
        made = gp.compile(program, targets=[on, *options.pop("more", ())], verify=False, **options)
        assert not left, "measured less often than was said"
        return made

    return compile


def test_a_report_has_one_number_for_one_thing(program: Program, compiled: Callable[..., Any]) -> None:
    """What was measured at the end, a tenth less than the search found and on another scale, is what the search is told
    by, wherever the report speaks of it."""
    found = {}
    for budget in ("0.6x", "150ms"):
        report = compiled(program, Known(), pace=[0.9], latency=budget).report
        found[budget] = facts = report["latency"]
        before, after = (report[side]["per_target"]["known"] for side in ("before", "after"))
        assert facts["measured_ms"] == after["median_ms"] == facts["rounds"][facts["taken"]]["measured_ms"]
        assert facts["whole_ms"] == before["median_ms"]
        assert after["share"] == after["median_ms"] / before["median_ms"] and after["share_error"] == 0.01
        assert report["budget"]["got"] == after["share"] and f"got {after['share']:.3f}x" in page.budget(report)[0]
        assert facts["rounds"][facts["taken"]]["predicted_ms"] == facts["predicted_ms"]
        for side, whole in (("before_ms", facts["whole_ms"]), ("predicted_ms", facts["predicted_ms"])):
            assert sum(op[side] for op in facts["ops"]) == pytest.approx(whole)
        (row,) = [row for row in comparison(report) if row["label"] == "latency, known"]
        assert f"measured {row['after']} ({row['remains']})" in targeted(report)[0]
        for note in report["notes"]:
            assert " ms " not in note or f"{facts['measured_ms']:.3g} ms measured of {facts['goal_ms']:.3g} ms" in note
    assert found["0.6x"]["goal_ms"] == pytest.approx(0.6 * found["0.6x"]["whole_ms"])
    assert found["150ms"]["goal_ms"] == pytest.approx(150)


def test_a_latency_that_is_not_reached_at_the_end_is_told(program: Program, compiled: Callable[..., Any]) -> None:
    report = compiled(program, Known(), pace=[1.4], latency="0.6x").report
    share = report["after"]["per_target"]["known"]["share"]
    assert 0.75 < share < 0.9
    (note,) = [note for note in report["notes"] if "NOT reached" in note]
    assert note.startswith("latency=0.6x") and f"{report['latency']['measured_ms']:.3g} ms measured of" in note
    assert f"({share:.2f}x)" in targeted(report)[0]
    assert not any("NOT reached" in note for note in compiled(program, Known(), latency="0.6x").report["notes"])


STEPS = "group,score,mask{macs=0.8x},propagate"


def test_a_recipe_that_makes_a_network_slower_keeps_multiples_of_what_the_target_likes(
    program: Program, compiled: Callable[..., Any]
) -> None:
    done = compiled(program, Picky(), recipe=STEPS)
    assert done.report["recipe"] == "group,score,mask{macs=0.8x grain=16},propagate"
    first, second = done.report["fallback"]["tried"]
    assert first["share"] > 1 > second["share"] == done.report["fallback"]["share"]
    assert second["share"] == done.report["after"]["per_target"]["known"]["share"]
    assert targeted(done.report)[0].startswith("So that it is not slower")
    assert all(len(keep) % 16 == 0 for keep in done.program.plan.of(Cut)[0].keep.values())
    assert "fallback" not in compiled(program, Known(), recipe=STEPS).report
    assert not any("SLOWER" in note for note in done.report["notes"])


def test_where_a_budget_has_no_room_for_the_grain_a_finer_one_is_tried(
    program: Program, compiled: Callable[..., Any]
) -> None:
    """At multiples of 16 half of the layers are more than a twentieth."""
    steps = "group,score,mask{macs=0.05x floor=0},propagate"
    with pytest.raises(BudgetError):
        run(Recipe.parse(steps.replace("}", " grain=16}")), program)
    done = compiled(program, Picky(), pace=[40.0], recipe=steps)
    assert [one["recipe"] for one in done.report["fallback"]["tried"]] == [
        steps,
        "group,score,mask{macs=0.05x floor=0 grain=8},propagate",
    ]


def test_what_is_slower_at_every_grain_says_so(program: Program, compiled: Callable[..., Any]) -> None:
    """The fastest is handed out, measured once more, and told as what it is; so is what has a grain of the user's."""
    pace = [10.0, 3.0, 5.0, 4.0]  # as given, at multiples of 2 and 4, and at those of 2 again
    report = compiled(program, Known(), pace=pace, recipe=STEPS).report
    share = report["after"]["per_target"]["known"]["share"]
    assert report["recipe"] == "group,score,mask{macs=0.8x grain=2},propagate"
    assert share == report["fallback"]["share"] == report["fallback"]["tried"][1]["share"] > 2
    assert any("SLOWER than the original on known: " in note and f"({share:.2f}x" in note for note in report["notes"])
    assert targeted(report)[0].startswith(f"SLOWER than the original: this one takes {share:.2f}x")
    own = compiled(program, Known(), pace=[3.0], macs="0.8x", grain=4).report
    assert "fallback" not in own and any("SLOWER" in note for note in own["notes"])


def test_of_several_targets_none_may_be_slower(program: Program, compiled: Callable[..., Any]) -> None:
    @dataclass(frozen=True)
    class Other(Known):
        name: ClassVar[str] = "other"

    def unable(self: Target) -> None:
        return None

    Other.unable = unable  # type: ignore[method-assign]
    report = compiled(program, Known(), pace=[1.0, 3.0], recipe=STEPS, more=[Other()]).report
    assert report["fallback"]["target"] and len(report["fallback"]["tried"]) == 2


def test_what_is_written_is_what_was_chosen_at_last(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Code for a target and the proof are those of the coarser recipe."""
    asked = [1.5, 0.9]
    monkeypatch.setattr(
        "graphprune.driver.measured.beside",
        lambda *_: Comparison(Latency(1.0, 0.0, 5, 1, "onnx"), Latency(asked.pop(0), 0.0, 5, 1, "onnx")),
    )
    out, steps = tmp_path / "out", "group,score,mask{macs=0.8x},propagate"
    made = gp.compile(program, recipe=steps, targets=["onnx"], out=out)
    assert not asked and made.report["recipe"] == f"group,score,mask{{macs=0.8x grain={Onnx.grain}}},propagate"
    assert made.program.plan.of(Cut)[0].keep != gp.run(steps, program).plan.of(Cut)[0].keep
    want = made.program.graph.parameters["point.weight"].shape
    for path in (out / "model.pt2", out / "onnx" / "model.onnx"):
        assert gp.load(path).graph.parameters["point.weight"].shape == want


class Fork(nn.Module):
    """Three layers read what one makes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 128, 3, padding=1)
        self.readers = nn.ModuleList(nn.Conv2d(128, 8, k, padding=k // 2) for k in (1, 3, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return torch.cat([reader(x) for reader in self.readers], 1)


@pytest.mark.parametrize("mode", ["readers", "both"])
def test_readers_with_widths_of_their_own_keep_to_a_latency(clock: None, mode: str) -> None:
    torch.manual_seed(0)
    program, on = gp.load(Fork().eval(), torch.randn(1, 3, 16, 16)), Known()
    alike, loose = (
        to_latency(program, Recipe.parse(f"group,score,mask{{latency=0.6x grain=16{more}}},propagate"), on)
        for more in ("", f" unconstrained={mode}")
    )
    assert alone(loose.program) < alone(program) and gp.verify(loose.program)
    facts = loose.facts
    assert 0.85 * facts["goal_ms"] <= facts["measured_ms"] <= 1.03 * facts["goal_ms"]
    assert abs(facts["predicted_ms"] / facts["measured_ms"] - 1) < 0.1
    widths = [len(kept) for step in loose.program.plan["steps"] for kept in step.get("keep", {}).values()]
    assert len(set(widths)) > 1 and loose.program.plan != alike.program.plan


class Apart(nn.Module):
    """Three layers read each a third of what one makes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 48, 1)
        self.readers = nn.ModuleList(nn.Conv2d(48, 8, 3) for _ in range(3))
        with torch.no_grad():
            for k, reader in enumerate(self.readers):
                reader.weight *= (torch.arange(48) % 3 == k)[:, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return torch.cat([reader(x) for reader in self.readers], 1)


class Priced(Known):
    """A target of which it is known what selections cost."""

    name: ClassVar[str] = "tvm"


@pytest.mark.parametrize("free", [True, False])
def test_of_readers_that_agree_and_that_choose_the_nearer_result_is_taken(
    compiled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, free: bool
) -> None:
    torch.manual_seed(0)
    data = torch.randn(24, 3, 8, 8)
    program = gp.load(Apart().eval(), data[:1], data=data.numpy())
    contenders = importlib.import_module("graphprune.driver.contenders")
    seen: list[tuple[Program, float]] = []

    def far(source: Program, result: Program, judged: Sequence[Batch], of: Any = contenders.distance) -> float:
        assert sum(len(batch[0]) for batch in judged) == 3, "what was held back"
        seen.append((result, of(source, result, judged) if free else float(len(seen))))
        return seen[-1][1]

    monkeypatch.setattr(contenders, "distance", far)
    made = compiled(program, Priced(), latency="0.8x", measure=False, recipe="auto")
    facts = made.report["latency"]
    agreed, chose = (one["recipe"] for one in facts["contenders"])
    assert agreed == "group,score{by=obs},mask{latency=0.8x allocate=rd},propagate,compensate"
    assert chose == (
        "group,score{by=obs},mask{latency=0.8x allocate=rd unconstrained=mixed target=tvm},"
        "reorder{target=tvm},propagate,compensate"
    )
    assert facts["measured_ms"] <= 1.03 * facts["goal_ms"]
    taken = min(seen, key=lambda one: one[1])
    assert made.program is taken[0] and made.report["recipe"] == (chose if taken is seen[1] else agreed)
    assert free is (taken is seen[1]), "free, no reader of this network loses anything"
    (sentence,) = [line for line in targeted(made.report) if line.startswith("Each reader ")]
    assert ("chooses channels of its own" in sentence) is free and f"by {taken[1]:.1%} on samples held back" in sentence


def test_a_latency_with_data_is_met_by_widths_and_by_all_and_the_nearest_is_taken(compiled: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    data, layers = torch.randn(24, 3, 8, 8), (nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 9, 3))
    program = gp.load(nn.Sequential(*layers).eval(), data[:1], data=data.numpy())
    report = compiled(program, Picky(), latency="0.7x", measure=False).report
    told = report["contest"]["recipes"]
    assert told["auto"]["recipe"].endswith("mask{latency=0.7x allocate=rd grain=16},propagate,compensate")
    assert told["all"]["recipe"] == (
        "factor{by=data},group,branches,score{by=obs},mask{latency=0.7x allocate=rd grain=16},propagate,compensate"
    )
    taken = min(told, key=lambda name: told[name]["change"])
    assert report["contest"]["taken"] == taken and report["recipe"] == told[taken]["recipe"]
    for more in ({"recipe": "auto"}, {"only": "0"}, {"floor": 0.2}, {"dry_run": True}):
        assert "contest" not in compiled(program, Picky(), **{"latency": "0.8x", "measure": False, **more}).report


def test_where_nobody_shares_or_prices_readers_agree(compiled: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    data, chain = torch.randn(24, 3, 8, 8), nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3))
    for module, on in ((chain, Priced()), (Apart(), Known())):
        program = gp.load(module.eval(), data[:1], data=data.numpy())
        assert "contenders" not in compiled(program, on, latency="0.8x", measure=False).report["latency"]


def test_readers_that_agree_again_take_no_more_time(clock: None) -> None:
    """Mixed, with selections that cost as much as a layer: all readers agree, at the latency that was asked for."""
    torch.manual_seed(0)
    program = gp.load(Fork().eval(), torch.randn(1, 3, 16, 16))
    text = "group,score,mask{latency=0.6x grain=16 unconstrained=mixed target=onnx},reorder{target=onnx},propagate"
    done = to_latency(program, Recipe.parse(text), Known())
    assert not any(op.kind in ("slice", "gather", "select") for op in done.program.graph.ops)
    assert done.facts["measured_ms"] <= 1.03 * done.facts["goal_ms"] and gp.verify(done.program)


def test_the_choice_is_the_best_there_is(program: Program, clock: None) -> None:
    """Brute force over all widths: nothing within what the search spent keeps more importance."""
    on = Known(factor=1.0, extra=0.0)
    scored, _ = model_of(program)
    facts = to_latency(program, recipe("0.6x"), on).facts
    menus = Mask(latency="0.6x", grain=16).menus(scored)
    scores = scored.fact(Scores)
    model = model_of(program)[1]
    names, best = list(menus), 0.0
    for combo in np.ndindex(*(len(menu) for menu in menus.values())):
        counts = {name: menus[name][k] for name, k in zip(names, combo, strict=True)}
        if model.total_ms(counts) <= facts["goal_ms"]:
            kept = sum(np.sort(scores[g])[::-1][: counts[g.name]].sum() for g in scored.fact(Groups))
            best = max(best, kept / sum(scores[g].sum() for g in scored.fact(Groups)))
    assert facts["importance"] >= 0.99 * best


def test_measured_distortion_decides_where_it_is_asked_for(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured once for all rounds, and less of it in the result than where scores decide."""
    torch.manual_seed(0)
    x = torch.randn(24, 3, 32, 32)
    program, log = gp.load(Net().eval(), x[:1], data=x.numpy()), list[int]()
    rd = importlib.import_module("graphprune.allocation.rd")  # the package has a function of that name

    def counted(*given: Any, of: Any = rd.distortions) -> Any:
        log.append(1)
        return of(*given)

    monkeypatch.setattr(rd, "distortions", counted)
    scored = run(Recipe.parse("group,score"), program)
    whole = rd.measured_losses(scored, scored.fact(Groups)).losses
    lost = {}
    for allocate in ("uniform", "rd"):
        text = f"group,score,mask{{latency=0.5x grain=16 allocate={allocate}}},propagate,compensate"
        found = to_latency(program, Recipe.parse(text), Known())
        assert found.facts["measured_ms"] <= 1.03 * found.facts["goal_ms"]
        (keep,) = (step["keep"] for step in found.program.plan["steps"] if "keep" in step)
        lost[allocate] = sum(whole[name][len(kept)] for name, kept in keep.items())
    assert len(log) == 2, "once for all rounds, once for this test"
    assert lost["rd"] <= lost["uniform"]
    assert found.facts["rounds"][-1]["loss"] == pytest.approx(lost["rd"])


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(256, 1024), nn.Linear(1024, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


@pytest.mark.parametrize("allocate", ["uniform", "rd"])
def test_layers_alike_keep_to_a_latency(clock: None, allocate: str) -> None:
    """The same layer of all blocks keeps as many channels, each its own best ones; left to themselves they differ."""
    torch.manual_seed(0)
    blocks = [Perceptron() for _ in range(3)]
    module = nn.Sequential(*blocks).eval()
    with torch.no_grad():
        blocks[1].down.weight.mul_(0.1)  # of which more would go
    data = np.random.default_rng(3).standard_normal((64, 256), np.float32)
    program, kept = gp.load(module, torch.randn(2, 256), data=data), {}
    for alike in ("layers", "no"):
        mask = f"mask{{latency=0.75x grain=64 allocate={allocate} alike={alike}}}"
        found = to_latency(program, Recipe.parse(f"group,score,{mask},propagate"), Known())
        assert 0.9 * found.facts["goal_ms"] <= found.facts["measured_ms"] <= 1.03 * found.facts["goal_ms"]
        (cut,) = found.program.plan.of(Cut)
        kept[alike] = [cut.keep.get(f"{k}.up", range(1024)) for k in range(3)]
    assert len({len(channels) for channels in kept["layers"]}) == 1
    assert len({tuple(channels) for channels in kept["layers"]}) == 3
    assert len({len(channels) for channels in kept["no"]}) > 1


def test_branches_have_prices(clock: None) -> None:
    """What is left without any of them takes what the model says, and that which adds least goes first."""
    module, x = transformer(3)
    with torch.no_grad():
        for name, part in module.named_parameters():
            part.mul_(1e-4 if name.startswith(("blocks.1.proj.", "blocks.1.down.")) else 1)
    data = np.random.default_rng(3).standard_normal((32, 4, 5))
    program = gp.load(module, (x,), data=[data])
    scored = run(Recipe.parse("group,branches,score{by=wifv}"), program)
    table, _ = recorded(scored, Known(), Mask(latency="0.5x", allocate="rd"))
    model = LatencyModel.of(scored.graph, scored.host, scored.fact(Groups), table, None, "known")
    gates = scored.fact(Groups).gates
    assert len(gates) == 6
    for gate in gates:
        left = Bypass(gate.branches).apply(program)
        assert model.total_ms({gate.name: 0}) == pytest.approx(alone(left), rel=0.02)
        assert model.total_ms({gate.name: 0}) < model.total_ms({})
    found = to_latency(
        program, Recipe.parse("group,branches,score{by=wifv},mask{latency=0.8x allocate=rd},propagate"), Known()
    )
    gone = {branch for edit in found.program.plan.of(Bypass) for branch in edit.branches}
    weak = {branch for gate in gates for branch in gate.branches if "blocks.1." in gate.name}
    assert len(weak) == 2 and weak <= gone
    assert found.facts["measured_ms"] <= 1.03 * found.facts["goal_ms"]
    with pytest.raises(RecipeError, match="takes branches by measured distortion alone"):
        run(Recipe.parse("mask{latency=0.7x}"), scored)


def test_tables_are_reused(program: Program, clock: None) -> None:
    first = to_latency(program, recipe("0.6x"), Known()).facts
    again = to_latency(program, recipe("0.5x"), Known()).facts
    assert first["table"]["measured_now"] > 20 and again["table"]["measured_now"] == 0
    assert len(Known.log) == 1 and Path(again["table"]["path"]).is_file()
    to_latency(program, recipe("0.6x"), Known(), threads=2)
    assert len(Known.log) == 2, "two threads are another table"


def test_an_interrupted_recording_goes_on(program: Program, clock: None) -> None:
    scored = run(Recipe.parse("group,score"), program)
    mask = Mask(latency="0.5x", grain=16)

    def stop(what: str, done: int, total: int) -> None:
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorded(scored, Known(), mask, progress=stop)
    table, fresh = recorded(scored, Known(), mask)
    assert sum(map(len, table.points.values())) == Known.log[0] == fresh + 10


def test_an_offline_table_decides_alone(program: Program, clock: None, tmp_path: Path) -> None:
    scored = run(Recipe.parse("group,score"), program)
    path = tmp_path / "device.jsonl"
    recorded(scored, Known(), Mask(latency="0.5x", grain=16), table=Table({"target": "a device"}, path))
    Known.log.clear()
    facts = to_latency(program, recipe("0.5x"), Known(blind=True), table=Table.read(path)).facts
    assert Known.log == [] and facts["measured_ms"] is None and facts["not_measured"] == "it is only a table"
    assert 0.3 * facts["whole_ms"] < facts["predicted_ms"] <= 0.5 * facts["whole_ms"]


def test_what_cannot_be_reached_says_what_can(program: Program, clock: None) -> None:
    with pytest.raises(BudgetError, match=r"latency=0.01x cannot be reached on known: .* remain of .* \(0\.\d+x\)"):
        to_latency(program, recipe("0.01x"), Known())


@pytest.mark.parametrize("blind", [False, True])
def test_a_latency_that_is_there_already_is_refused(program: Program, clock: None, blind: bool) -> None:
    whole = alone(program) if blind else Known().factor * alone(program) + Known().extra
    told = f"latency=999ms is no less than the network takes on known: {whole:.3g} ms\n  hint: ask for less"
    with pytest.raises(BudgetError, match=told):
        to_latency(program, recipe("999ms"), Known(blind=blind))


class Overrated(Known):
    """Takes half of what its ops take alone when they are narrow: the table refuses too early."""

    def runnable(self, program: Program, *, threads: int = 1) -> Runnable:
        ms = alone(program)
        return Sleeper(ms if ms > self.extra else ms / 2, threads)


def test_a_budget_below_the_tables_floor_is_measured_before_it_is_refused(program: Program, clock: None) -> None:
    scored, model = model_of(program)
    menus = Mask(latency="0.5x", grain=16).menus(scored)
    least = model.total_ms({name: menu[0] for name, menu in menus.items()})
    on = Overrated(extra=1.2 * least)
    facts = to_latency(program, recipe(f"{0.8 * least:.6f}ms"), on).facts
    assert facts["rounds"][0]["predicted_ms"] == pytest.approx(least)
    assert facts["measured_ms"] <= 1.03 * 0.8 * least
    with pytest.raises(BudgetError) as told:
        to_latency(program, recipe(f"{0.3 * least:.6f}ms"), on)
    assert f"at its floor {0.5 * least:.3g} ms remain" in str(told.value)


def test_narrow_axes_may_keep_halves_of_the_grain(program: Program) -> None:
    scored = run(Recipe.parse("group,score"), program)
    menus = Mask(latency="0.5x", grain=16).menus(scored)
    assert menus == {"stem": [8, 16, 32, 48, 64], "point": [16, 32, 48, 64, 80, 96, 112, 128], "last": [4, 8, 16, 32]}
    coarse = Mask(latency="0.5x", grain=24, floor=0.0).menus(scored)
    assert coarse["last"] == [6, 12, 24, 32]


@settings(max_examples=300)
@given(
    size=st.integers(1, 70),
    grain=st.integers(1, 40),
    floor=st.floats(0, 1),
    chosen=st.integers(1, 9),
    multiple=st.integers(1, 6),
    branch=st.booleans(),
)
def test_a_menu_has_counts_that_there_are(
    size: int, grain: int, floor: float, chosen: int, multiple: int, branch: bool
) -> None:
    """Half the grain may be more than an axis has, fewer than an op chooses of it, or no multiple that one takes."""
    if branch:  # kept or not
        size, chosen, multiple = 1, 1, 1
    group = Group("c", Dim(size), size, (), (Branch("add", 0),) if branch else (), min(chosen, size), multiple)
    problem = Allocation(
        Program(host=None, source=None),  # no menu asks for them
        Groups((group,), (), nx.Graph()), Scores("", {}), Cost("", (), {}), 0.0, "", floor, grain,
    )  # fmt: skip
    counts = timed.menu(problem, group)
    assert counts == sorted(set(counts)) and counts[-1] == size and counts[0] >= group.least
    assert all(count % multiple == 0 for count in counts[:-1])


def test_a_latency_mask_alone_says_what_it_needs(program: Program) -> None:
    with pytest.raises(RecipeError, match="needs a LatencyModel"):
        run(recipe("0.5x"), program)


def test_a_target_without_op_times_says_so_before_any_work(program: Program) -> None:
    begun: list[str] = []
    with pytest.raises(TargetError, match="target `torch` does not time single ops") as error:
        to_latency(program, recipe("0.5x"), target("torch"), progress=lambda step, *_: begun.append(step))
    assert "--target ort" in (error.value.hint or "") and not begun


# ---- real targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ort", "cpu"])
def test_real_targets_time_ops(name: str) -> None:
    if name == "cpu":
        pytest.importorskip("tvm")
    wanted = [
        (Family("conv", (1, 1, 16, 3, 2, 16, 3, 2)), (16, 32)),
        (Family("conv", (1, 0, 16, 3, 1, 16, 3, 1)), (32, 1)),
        (Family("conv", (1, 4, 9, 3, 1, 9, 3, 1)), (16, 32)),
        (Family("conv", (2, 1, 40, 5, 1)), (8, 16)),
        (Family("product", (49,)), (64, 96)),
        (Family("stream"), (1, 100)),
    ]
    found = {p: one for batch in target(name).time_ops(wanted) for p, one in batch.items()}
    assert list(found) == wanted
    assert all(one.median_ms > 0 and one.repeats >= 3 and one.threads == 1 for one in found.values())


@pytest.mark.parametrize("name", ["ort", "cpu"])
def test_real_targets_profile_ops_in_place(program: Program, name: str) -> None:
    if name == "cpu":
        pytest.importorskip("tvm")
    found = target(name).profile(program)
    heads = {op.name for op in program.graph.ops if op.kind in ("conv", "linear")}
    assert heads <= set(found) and all(ms > 0 for ms in found.values())


@pytest.mark.slow
def test_compile_to_a_latency_reports_prediction_and_measurement(program: Program, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from graphprune.cli import main

    model = Onnx().emit(program, tmp_path)
    args = ["compile", str(model), "--target", "ort", "--latency", "0.7x", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, args)
    if "was not reached" in done.output:
        pytest.skip("the machine is too busy to measure on")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    facts = report["latency"]
    assert facts["budget"] == "0.7x" and facts["target"] == "onnx" and facts["rounds"] and facts["ops"]
    told = any("NOT reached" in note for note in report["notes"])
    assert told or facts["measured_ms"] <= 1.03 * facts["goal_ms"] + 2 * facts["share_error"] * facts["whole_ms"]
    assert "mask{latency=0.7x" in report["recipe"]
    assert "latency 0.7x on onnx" in done.output


def test_a_latency_budget_is_filled_by_the_table(program: Program) -> None:
    """Where all scores are alike nothing tells counts apart but the budget."""
    scored, model = model_of(program)
    mask = Mask(latency="0.6x", grain=16)
    menus = mask.menus(scored)
    alike = Scores("none", {group.name: np.zeros(group.size) for group in scored.fact(Groups)})
    for known in (scored, scored.learn(alike)):
        keep = mask.run(known.learn(model)).fact(Keep).keep
        counts, goal = {name: len(kept) for name, kept in keep.items()}, 0.6 * model.whole_ms
        assert model.total_ms(counts) <= goal * (1 + 1e-9)
        for name, menu in menus.items():
            higher = [count for count in menu if count > counts[name]]
            assert not higher or model.total_ms({**counts, name: higher[0]}) > goal


def test_the_report_says_why_less_than_the_latency_is_taken(program: Program, clock: None) -> None:
    """Widths in steps of 64 are few."""
    facts = to_latency(program, recipe("0.97x", 64), Known()).facts
    taken = facts["measured_ms"]
    assert taken < 0.97 * facts["goal_ms"]
    (note,) = distance(facts)
    assert note.startswith(f"latency=0.97x: {taken:.3g} ms measured of {facts['goal_ms']:.3g} ms, for ")
