"""The report: every key is shown, names are escaped, nothing is fetched, the same bytes every time."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from graphprune.report.next_steps import steps
from graphprune.report.page import command, comparison, counted, render, speed, table
from graphprune.report.segments import picture
from graphprune.report.units import count, duration, size

VOID = {"meta", "link", "br", "rect", "line", "img", "input", "hr"}


def latency(median: float, spread: float, target: str) -> dict[str, Any]:
    return {"median_ms": median, "spread_ms": spread, "repeats": 37, "threads": 3, "target": target}


def member(parameter: str, axis: int, role: str) -> dict[str, Any]:
    return {"parameter": parameter, "axis": axis, "role": role}


REPORT: dict[str, Any] = {
    "version": 1,
    "model": "nets.zoo:resnet",
    "host": "torch",
    "before": {
        "params": 169834,
        "macs": 11264512,
        "weights_bytes": 721532,
        "latency_ms": latency(0.842, 0.031, "onnx"),
        "per_target": {"onnx": latency(0.842, 0.031, "onnx"), "tvm": latency(2.314, 0.125, "tvm")},
    },
    "after": {
        "params": 81211,
        "macs": 5631210,
        "weights_bytes": 345120,
        "latency_ms": latency(0.512, 0.022, "onnx"),
        "per_target": {"onnx": latency(0.512, 0.022, "onnx"), "tvm": latency(1.401, 0.094, "tvm")},
    },
    "sizes": {"image": [2, 3, 32, 32], "step": []},
    "groups": [
        {
            "name": "stem.conv",
            "size": 64,
            "kept": 23,
            "members": [
                member("stem.conv.weight", 0, "writer"),
                member("stem.bn.bias", 0, "carrier"),
                member("layer1.conv.weight", 1, "reader"),
            ],
        }
    ],
    "frozen": [{"name": "head.fc", "size": 10, "reason": "reaches the graph output"}],
    "passes": [
        {"name": "group", "options": {"freeze": ""}, "text": "group", "seconds": 0.021, "ops": 42, "params": 169834},
        {
            "name": "mask",
            "options": {"macs": "0.5x", "grain": 8, "floor": 0.1},
            "text": "mask{macs=0.5x grain=8}",
            "seconds": 1.25,
            "ops": 43,
            "params": 81211,
        },
    ],
    "verification": {
        "used": True,
        "compared_with": "masked model",
        "dtype": "float64",
        "max_relative_error": 3.1e-15,
        "tolerance": 1e-12,
        "checks": [
            {"what": "pruned = masked, float64", "max_relative_error": 3.1e-15, "tolerance": 1e-12},
            {"what": "tvm = onnx, float32", "max_relative_error": 2.7e-6, "tolerance": 1e-5},
        ],
    },
    "recipe": "group,mask{macs=0.5x grain=8}",
    "versions": {"graphprune": "0.1.0", "torch": "2.13.0"},
    "seed": 1234,
    "machine": {"cpu": "Some CPU", "cores": 12},
    "targets": {"onnx": {"grain": 1}, "tvm": {"grain": 8, "triple": {"kind": "llvm"}}},
    "notes": ["encoder.norm normalises across a pruned axis"],
    "evaluation": {"what": "digits:held_out", "before": {"accuracy": 0.9917}, "after": {"accuracy": 0.9806}},
    "closeness": {
        "samples": 64,
        "held_back": True,
        "outputs": [{"name": "logits", "relative": 0.0312, "cosine": 0.9995, "same": 0.984}],
    },
}


def changed(**keys: Any) -> dict[str, Any]:
    return copy.deepcopy(REPORT) | keys


class Page(HTMLParser):
    """The text of a page, every attribute, and whether its tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.open = "", list[str](), list[str]()
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "shown",
    [
        "nets.zoo:resnet",
        "0.50x of the MACs, 0.48x of the parameters, 1.64 times as fast on onnx.",
        "170 k",
        "81.2 k",
        "11.3 M",
        "5.63 M",
        "722 kB",
        "345 kB",
        "0.842 ms",
        "0.512 ms",
        "spread 0.031 ms, 37 repeats, 3 threads",
        "2.31 ms",
        "1.40 ms",
        "stem.conv",
        "23 of 64",
        "stem.conv.weight[0]",
        "stem.bn.bias[0]",
        "layer1.conv.weight[1]",
        "head.fc",
        "reaches the graph output",
        "mask{macs=0.5x grain=8}",
        "by default floor=0.1",
        "1.25 s",
        "21.0 ms",
        "3.1e-15",
        "1e-12",
        "pruned = masked, float64",
        "2.7e-06",
        "group,mask{macs=0.5x grain=8}",
        "graphprune 0.1.0",
        "torch 2.13.0",
        "1234",
        "cpu=Some CPU",
        "cores=12",
        "triple.kind=llvm",
        "encoder.norm normalises across a pruned axis",
        "0.9917",
        "0.9806",
        "-0.0111",
        "digits:held_out",
        "on 64 samples held back from calibration: logits changes by 3.12%, cosine 0.9995, the same largest entry",
        "MACs are those of one sample, counted at the example's sizes: image 2x3x32x32, step scalar.",
    ],
)
def test_the_page_shows(shown: str) -> None:
    assert shown in Page(render(REPORT)).text


def test_bars_are_in_proportion() -> None:
    narrow = REPORT["groups"][0] | {"name": "narrow", "size": 32, "kept": 8}
    html = render(changed(groups=[*REPORT["groups"], narrow]))
    for name, kept, total, kept_percent, total_percent in (
        ("stem.conv", 23, 64, 35.938, 100.0),
        ("narrow", 8, 32, 12.5, 50.0),
    ):
        bar = html[html.index(f"<title>{name}: {kept} of {total} channels kept</title>") :][:400]
        assert re.findall(r'class="(\w+)" x="0" y="\d" width="([\d.]+)%"', bar)[:2] == [
            ("gone", str(total_percent)),
            ("kept", str(kept_percent)),
        ]


def test_the_page_needs_nothing_else() -> None:
    html = render(REPORT)
    page = Page(html)
    assert not re.search(r"(https?:)?//|url\(|@import|javascript:", html)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not {name for _, name, _ in page.attributes} & {"src", "href", "xlink:href", "srcset", "onclick", "onload"}
    assert "prefers-color-scheme: dark" in html


HOSTILE = '<script>alert("x")</script>&\'"'


def test_names_are_escaped_wherever_they_are() -> None:
    report = changed(
        model=HOSTILE, recipe=HOSTILE, notes=[HOSTILE], machine={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE}
    )
    report["groups"][0]["name"] = HOSTILE
    report["groups"][0]["members"][0]["parameter"] = HOSTILE
    report["frozen"][0].update(name=HOSTILE, reason=HOSTILE)
    report["passes"][0].update(text=HOSTILE, name=HOSTILE, options={HOSTILE: HOSTILE})
    report["verification"]["checks"][0]["what"] = HOSTILE
    report["evaluation"]["what"] = HOSTILE
    report["closeness"]["outputs"][0]["name"] = HOSTILE
    page = Page(render(report))
    assert "script" not in page.tags
    assert page.text.count('<script>alert("x")</script>') >= 10


def test_names_in_sentences_are_code() -> None:
    html = render(changed(notes=["`mask{latency=<b>}` does `that`"]))
    assert "<code>mask{latency=&lt;b&gt;}</code> does <code>that</code>" in html
    assert "`" not in Page(html).text


def test_not_verified_is_said_plainly() -> None:
    report = changed(verification={"used": False})
    text = Page(render(report)).text
    assert "Not verified" in text and "--no-verify" in text and "Exact" not in text
    assert "--no-verify" in table(report)
    assert "Not verified" not in table(REPORT)


def test_a_failed_check_is_called_so() -> None:
    report = changed()
    report["verification"]["checks"][1]["max_relative_error"] = 3e-4
    assert "fails" in Page(render(report)).text
    assert "fails" not in Page(render(REPORT)).text


@pytest.mark.parametrize("many", [0, 1, 39, 41, 200])
def test_any_number_of_groups_and_frozen_axes(many: int) -> None:
    groups = [REPORT["groups"][0] | {"name": f"g{k}", "kept": k % 65} for k in range(many)]
    frozen = [{"name": f"f{k}", "size": "s0", "reason": f"because {k}"} for k in range(many)]
    text = Page(render(changed(groups=groups, frozen=frozen))).text
    assert all(f"g{k}" in text and f"because {k}" in text for k in range(many))
    if not many:
        assert "No group of channels could be pruned" in text


def test_without_optional_parts() -> None:
    report = changed()
    for key in ("notes", "evaluation", "closeness"):
        del report[key]
    for side in ("before", "after"):
        report[side] |= {"latency_ms": None, "per_target": {}}
    text = Page(render(report)).text
    assert "Not measured" in text and "accuracy" not in text and "is NOT known: no data was given" in text
    assert "latency" not in table(report)


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render(REPORT) == render(json.loads(json.dumps(REPORT)))


def test_table_is_exact() -> None:
    spread = "median of 37, 3 threads; interquartile range"
    assert table(REPORT).splitlines() == [
        "                 before     after  remains",
        "accuracy         0.9917    0.9806  -0.0111   digits:held_out",
        "parameters        170 k    81.2 k    0.48x",
        "MACs             11.3 M    5.63 M    0.50x",
        "weights          722 kB    345 kB    0.48x",
        "latency, onnx  0.842 ms  0.512 ms    0.61x",
        f"  {spread} 0.031 ms and 0.022 ms",
        "latency, tvm    2.31 ms   1.40 ms    0.61x",
        f"  {spread} 0.125 ms and 0.094 ms",
        "",
        "Against the original, on 64 samples held back from calibration: `logits` changes",
        "  by 3.12%, cosine 0.9995, the same largest entry in 98.4%.",
        "The cut is exact: the result computes what the masked model computes (float64,",
        "  relative error 3.1e-15, tolerance 1e-12).",
        "MACs are those of one sample, counted at the example's sizes: image 2x3x32x32,",
        "  step scalar.",
    ]


def test_macs_of_a_batch_that_is_not_known_to_be_one_are_called_those_of_the_example() -> None:
    (text,) = counted({"sizes": {"x": [2, 3]}, "samples": 1})
    assert text.startswith("MACs are those of the whole example, in which no axis is known to be a batch, ")
    assert text.endswith(" counted at the example's sizes: x 2x3.")
    for sizes, samples in (([2, 3], 2), ([1, 3], 1)):
        (text,) = counted({"sizes": {"x": sizes}, "samples": samples})
        assert text.startswith("MACs are those of one sample, ")


def test_the_command_reproduces() -> None:
    assert command(REPORT).replace(" \\\n   ", "") == (
        "graphprune compile nets.zoo:resnet --passes 'group,mask{macs=0.5x grain=8}' --seed 1234 "
        "--target onnx --target tvm -o out"
    )
    report = changed(model="a b/m.onnx", verification={"used": False}, data="c.npz")
    assert "'a b/m.onnx'" in command(report) and "--no-verify" in command(report) and "--data c.npz" in command(report)
    assert command(changed(model="ResNet")).startswith("gp.compile(model, example_inputs, recipe='group,mask{")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count(0), "0"),
        (count(999), "999"),
        (count(1000), "1.00 k"),
        (count(999_950), "1.00 M"),
        (count(25_557_032), "25.6 M"),
        (count(4_089_184_256), "4.09 G"),
        (size(512), "512 B"),
        (size(46_827_520), "46.8 MB"),
        (duration(0.0004), "< 0.001 ms"),
        (duration(0.0421), "0.042 ms"),
        (duration(3.2), "3.20 ms"),
        (duration(999.4), "999 ms"),
        (duration(61_000), "61.0 s"),
    ],
)
def test_numbers_as_people_read_them(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (2.0, 1.0, "2.00 times as fast"),
        (1.0, 1.5, "1.50 times as slow"),
        (1.0, 0.95, "as fast as before (within the spread)"),
    ],
)
def test_a_difference_within_the_spread_is_called_none(before: float, after: float, words: str) -> None:
    assert speed(latency(before, 0.1, "t"), latency(after, 0.05, "t")) == words


def test_in_turns_the_error_of_the_ratio_decides_and_not_the_spread() -> None:
    """Samples of a busy machine spread more than their ratios do."""
    slow, fast = latency(1.0, 0.3, "t"), latency(0.9, 0.3, "t")
    assert speed(slow, {**fast, "share_error": 0.04}) == "1.11 times as fast"
    assert speed(slow, {**fast, "share_error": 0.06}) == "as fast as before (within the spread)"


def test_growth_is_shown_as_such() -> None:
    report = changed()
    report["after"]["weights_bytes"] = 2 * report["before"]["weights_bytes"]
    row = next(row for row in comparison(report) if row["label"] == "weights")
    assert row["remains"] == "2.00x" and row["share"] == 2.0
    assert 'class="alert-mark"' in render(report) and 'class="alert-mark"' not in render(REPORT)


SEGMENT = {
    "name": "stem",
    "blocks": [{"name": "stem", "kept": 4, "order": [2, 0, 3, 1]}],
    "takers": [
        {"op": "a", "origin": "layer.<a>", "writes": False, "how": "view", "us": 3.0, "moved_bytes": 0,
         "takes": {"stem": [0, 2]}, "count": 2, "of": 4, "blank": 0},
        {"op": "b", "origin": "layer.b", "writes": False, "how": "gather", "us": 40.0, "moved_bytes": 4096,
         "takes": {"stem": [1, 2]}, "count": 2, "of": 4, "blank": 0},
    ],
    "exact": False,
    **{side: {"copies": 1, "moved_bytes": 4096, "us": 43.0, "concat_bytes": 0, "concat_us": 0.0}
       for side in ("ours", "upscale", "naive", "constrained")},
}  # fmt: skip


def test_segments_say_who_selects_and_how() -> None:
    """The picture shows what is a run: two channels of a that were apart stand together."""
    page = render(changed(segments=[SEGMENT]))
    for words in (
        "Readers that choose their own channels",
        "layer.&lt;a&gt;",
        "one run, in place",
        "gathers",
        "2 of 4",
        "4.10 kB",
        "UPSCALE",
        "a search that was cut short",
    ):
        assert words in page, words
    shown = picture([SEGMENT])
    assert shown is not None
    assert shown["rows"][0]["before"] == [(0.0, 25.0), (50.0, 25.0)]
    assert shown["rows"][0]["after"] == [(0.0, 50.0)]
    assert shown["rows"][1]["after"] == [(0.0, 25.0), (75.0, 25.0)]
    assert "Readers that choose" not in render(changed())


def test_where_the_time_goes_and_what_to_do_next() -> None:
    kinds = [{"kind": f"<k{k}>", "ms": [9.0 - k / 2, 4.0 - k / 4]} for k in range(11)]
    page = render(changed(time={"target": "onnx", "kinds": kinds}))
    assert "&lt;k0&gt;" in page and "&lt;k7&gt;" in page and "&lt;k8&gt;" not in page and "3 others" in page
    assert "Where the time goes" not in render(REPORT)
    torch, onnx = steps(REPORT), steps(changed(host="onnx"))
    assert "rebuild(YourClass()" in torch[1]["code"] and "onnx/model.onnx" in torch[2]["code"]
    assert onnx[0]["title"] == "Load it, anywhere that ONNX runs:" and len(onnx) == 2
    assert "{each.name: arrays[each.name] for each in session.get_inputs()}" in onnx[0]["code"]  # each its own
    folder = changed(model="hf:llama")
    for notes, code in (([], '"out")'), (["... (trust_remote_code=True)"], '"out", trust_remote_code=True)')):
        assert steps({**folder, "notes": notes})[0]["code"].endswith(f"from_pretrained({code}")
    assert steps({**folder, "notes": ["nothing that from_pretrained loads was written: x"]})[0] == torch[0]
    without = steps(changed(notes=["no widths.json was written: it is a function"]))
    assert "gp.apply" in without[1]["code"]
    for one in (*torch, *onnx, *without):
        if "graphprune bench" not in one["code"] and not one["code"].startswith("ls"):
            compile(one["code"], one["title"], "exec")


def test_what_else_would_be_nearer_is_a_line_to_copy() -> None:
    facts = {"auto": True, "data": "x.npz", "closeness": {"held_back": True}}
    fitted = changed(**facts, budget={"unit": "macs", "asked": "0.5x", "got": 0.5})
    shell, python = steps(fitted)[-1]["code"], steps({**fitted, "data": None})[-1]["code"]
    recipes = "--macs 0.5x --recipe auto --recipe all --data x.npz -o nearer"
    assert shell == f"graphprune compile nets.zoo:resnet {recipes}"
    assert 'macs="0.5x", recipe=["auto", "all"], data=data' in python
    compile(python, "step", "exec")
    latency, channels = ({"unit": unit, "asked": "0.5x", "got": 0.5} for unit in ("latency", "channels"))
    timed = {**fitted, "budget": latency}
    (on, *_) = timed["targets"]
    assert f"--latency 0.5x --recipe auto --recipe all --target {on} --data" in steps(timed)[-1]["code"]
    assert (
        f'latency="0.5x", recipe=["auto", "all"], targets=["{on}"], data' in steps({**timed, "data": None})[-1]["code"]
    )
    others: tuple[dict[str, Any], ...] = (
        {"contest": {}},
        {"auto": False},
        {"closeness": {}},
        {"model": "hf:x"},
        {"budget": channels},
    )
    for other in others:
        assert not any("nearer" in one["code"] for one in steps({**fitted, **other}))
