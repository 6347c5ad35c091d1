"""The page of a trade-off curve: charts, a slider over the points, and every point in a table."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ..cost.units import UNITS
from ..errors import printable
from .environment import templates
from .page import change, comparison, latencies
from .units import count, duration, ratio, size

Point = Mapping[str, Any]

WIDE, TALL, LEFT, BELOW, MARGIN = 320, 210, 46, 34, 12
"""Pixels of a chart, and of its edges."""
TICKS = 4

SCRIPT = """
const slider = document.getElementById("slider");
const show = () => document.querySelectorAll("[data-point]").forEach(
  (one) => one.classList.toggle("on", one.dataset.point === slider.value));
document.body.classList.add("live");
slider.addEventListener("input", show);
show();
"""
"""All that the page needs a script for: showing the point that the slider is at."""


@dataclass(frozen=True)
class _Axis:
    """Something that a point has a figure for: of ``value`` None is said that it has not."""

    label: str
    values: Sequence[float | None]
    whole: float  # the original's
    share: bool = True  # what remains, from 0 to 1; else in its own unit
    percent: bool = False
    drawn: bool = True  # in a chart as well as in the table


def render(curve: Mapping[str, Any]) -> str:
    """One HTML page that needs nothing else and fetches nothing. The same curve gives the same bytes."""
    points = _made(curve)
    return printable(
        templates()
        .get_template("curve.html.j2")
        .render(
            curve=curve,
            points=[_panel(k, point) for k, point in enumerate(points)],
            failed=[point for point in curve["points"] if "error" in point],
            charts=charts(curve),
            of=UNITS[curve["unit"]].of,
            columns=list(columns(curve)),
            script=SCRIPT,
            digest=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
        )
    )


def charts(curve: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every cost against every size, as the template of a chart takes it; dots are numbered as points were made."""
    points = _made(curve)
    return [_chart(x, y) for y in _costs(points) for x in _sizes(points) if x.drawn and y.drawn]


def columns(curve: Mapping[str, Any]) -> Iterator[list[str]]:
    """A head, the original, and a row per point; sizes as what remains of the original's."""
    points = _made(curve)
    axes = [*_sizes(points), *_costs(points)] if points else []
    yield ["budget", *(axis.label for axis in axes)]
    if points:
        yield ["original", *_originals(points[0], axes)]
    rows = iter(range(len(points)))
    for point in curve["points"]:
        if "error" in point:
            yield [point["budget"], *(["-"] * len(axes))]
        else:
            k = next(rows)
            yield [point["budget"], *(_text(axis, axis.values[k]) for axis in axes)]


def _made(curve: Mapping[str, Any]) -> list[Point]:
    return [point for point in curve["points"] if "error" not in point]


def _sizes(points: Sequence[Point]) -> list[_Axis]:
    """What a network is made smaller for."""
    found = [
        _Axis(label, [_share(one, key) for one in points], 1.0, drawn=key != "weights_bytes")  # nearly the parameters
        for key, label in (("macs", "MACs"), ("params", "parameters"), ("weights_bytes", "weights"))
    ]
    times = [{name: after["median_ms"] / before["median_ms"] for name, before, after in latencies(p)} for p in points]
    targets = dict.fromkeys(name for one in times for name in one)
    return found + [_Axis(f"latency, {name}", [one.get(name) for one in times], 1.0) for name in targets]


def _share(point: Point, key: str) -> float | None:
    return point["after"][key] / point["before"][key] if point["before"][key] else None


def _costs(points: Sequence[Point]) -> list[_Axis]:
    """What it loses for it: the change of the output that changes most, and the user's own figures."""
    figures = points[0].get("evaluation", {}).get("before", {}) if points else {}
    found = [_Axis(n, [p["evaluation"]["after"].get(n) for p in points], w, share=False) for n, w in figures.items()]
    if any("closeness" in point for point in points):
        found.append(_Axis("change", [change(p, "relative") for p in points], 0.0, False, True))
        if any(change(point, "same") is not None for point in points):
            found.append(_Axis("agreement", [change(p, "same") for p in points], 1.0, False, True, drawn=False))
    return found


def _originals(point: Point, axes: Sequence[_Axis]) -> Iterator[str]:
    before, times = point["before"], {name: one for name, one, _ in latencies(point)}
    known = {"MACs": count(before["macs"]), "parameters": count(before["params"])}
    known |= {"weights": size(before["weights_bytes"])}
    known |= {f"latency, {name}": duration(one["median_ms"]) for name, one in times.items()}
    for axis in axes:
        yield known.get(axis.label, "-") if axis.share else _text(axis, axis.whole)


def _text(axis: _Axis, value: float | None) -> str:
    if value is None:
        return "-"
    return ratio(1.0, value) if axis.share else f"{value:.1%}" if axis.percent else f"{value:.4g}"


def _panel(number: int, point: Point) -> dict[str, Any]:
    rows = comparison({**point, "targets": {}})
    outputs = point.get("closeness", {}).get("outputs", [])
    return {
        "number": number,
        "budget": point["budget"],
        "rows": rows,
        "outputs": [
            {key: None if one[key] is None else f"{one[key]:.2%}" for key in ("relative", "same")}
            | {"name": one["name"], "cosine": None if one["cosine"] is None else f"{one['cosine']:.4f}"}
            for one in outputs
        ],
        "report": f"{quote(point['folder'])}/report.html",
        "folder": point["folder"],
    }


def _chart(x: _Axis, y: _Axis) -> dict[str, Any]:
    """Places in pixels. The ring is the original; the line goes from budget to budget, and on to it."""
    known = [(k, a, b) for k, (a, b) in enumerate(zip(x.values, y.values, strict=True)) if not (a is None or b is None)]
    lowest, highest = _range(y)
    span = highest - lowest
    widest = max([1.0, *(a for _, a, _ in known)])

    def place(a: float, b: float) -> tuple[float, float]:
        across = LEFT + (WIDE - LEFT - MARGIN) * a / widest
        return round(across, 1), round(TALL - BELOW - (TALL - BELOW - MARGIN) * (b - lowest) / span, 1)

    dots = [(k, *place(a, b), a, b) for k, a, b in known]
    line = [*(dot[1:3] for dot in dots), place(1.0, y.whole)]
    return {
        "title": f"{y.label} against {x.label}",
        "x": f"what remains of the {x.label}",
        "y": y.label,
        "original": place(1.0, y.whole),
        "line": " ".join(f"{a},{b}" for a, b in line),
        "dots": [
            {"number": k, "x": a, "y": b, "title": f"{_text(x, left)} of {x.label}: {y.label} {_text(y, high)}"}
            for k, a, b, left, high in dots
        ],
        "across": [
            {"at": place(widest * k / TICKS, lowest)[0], "text": f"{widest * k / TICKS:.3g}x"} for k in range(TICKS + 1)
        ],
        "up": [
            {"at": place(0, lowest + span * k / TICKS)[1], "text": _text(y, float(f"{lowest + span * k / TICKS:.3g}"))}
            for k in range(TICKS + 1)
        ],
    }


def _range(y: _Axis) -> tuple[float, float]:
    """Of a change from zero up; of a figure whose zero may mean nothing from the lowest to the highest, with room."""
    values = [y.whole, *(value for value in y.values if value is not None)]
    low, high = min(values), max(values)
    if y.percent:
        return 0.0, max(high, 0.01)
    room = max((high - low) / 10, abs(y.whole) / 100, 1e-9)
    return low - room, high + room
