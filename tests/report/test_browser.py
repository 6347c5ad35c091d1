"""Pages in a browser, where one is installed: nothing wider than a phone, and no complaint of the page's own policy."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_report import REPORT, changed, latency

from graphprune.report.curve import charts
from graphprune.report.curve import render as render_curve
from graphprune.report.network import ACROSS
from graphprune.report.page import render
from graphprune.report.strips import CLOSED

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = 390

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no browser is installed")]


def curve() -> dict[str, Any]:
    outputs = [{"name": "logits", "relative": 0.1, "cosine": 0.99, "same": 0.97}]
    points = [
        {
            "budget": f"0.{k}x",
            "folder": f"macs-0.{k}x",
            "before": REPORT["before"],
            "after": {**REPORT["after"], "macs": k * 1_000_000, "per_target": {"onnx": latency(k / 10, 0.01, "onnx")}},
            "closeness": {"samples": 9, "held_back": True, "outputs": outputs},
        }
        for k in (3, 5, 9)
    ]
    failed = {"budget": "0.01x", "error": "macs=0.01x cannot be met: the least is 0.1x"}
    return {"version": 1, "model": "a.very.long.name.of.a:model_factory", "unit": "macs", "asked": ["0.3x"] * 4,
            "points": [*points, failed]}  # fmt: skip


def network() -> dict[str, Any]:
    """Wider than a phone."""
    layers = [
        {"op": str(k), "name": f"conv{k}", "module": f"stage{k // 15}.block", "kind": "conv", "channels": [64, 32],
         "params": [999, 500], "macs": [999999, 500000], "ms": [1.0, 0.5]}
        for k in range(60)
    ]  # fmt: skip
    return {"layers": layers, "edges": [(k, k + 1) for k in range(59)]}


PAGES = {
    "report": lambda: render(
        changed(network=network(), time={"target": "onnx", "kinds": [{"kind": "conv", "ms": [3.0, 2.0]}]}),
        charts(curve()),
        1,
    ),
    "curve": lambda: render_curve(curve()),
}


def seen(page: str, script: str, folder: Path) -> str:
    """What ``script`` says of a page, of which it has the document as ``inner``; the page is in a frame as wide as a
    phone, as no window is so narrow. The page's own policy must not complain."""
    (folder / "phone.html").write_text(
        f'<iframe width="{PHONE}" height="800" srcdoc="{html.escape(page, quote=True)}"></iframe>'
        "<script>document.querySelector('iframe').onload = (event) => {"
        f" const inner = event.target.contentDocument; document.title = (() => {{ {script} }})(); }};</script>",
        encoding="utf-8",
    )
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [BROWSER, *options, "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", "phone.html"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = re.search(r"<title>(.*?)</title>", done.stdout)
    assert told is not None, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Content Security Policy" not in done.stderr
    return told[1]


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_has_room_for_it(tmp_path: Path, name: str) -> None:
    """Tables that are wider scroll by themselves."""
    told = seen(
        PAGES[name](),
        "const panels = [...inner.querySelectorAll('.panel.on')].filter((one) => one.offsetHeight).length;"
        " return `${inner.documentElement.scrollWidth} ${panels}`;",
        tmp_path,
    )
    wide, panels = map(int, told.split())
    assert wide <= PHONE
    assert panels == (1 if name == "curve" else 0)  # the slider's script ran, and shows one point


def test_a_block_opens_where_it_is_clicked_and_closes_again(tmp_path: Path) -> None:
    told = seen(
        PAGES["report"](),
        "const one = inner.querySelector('.strip'), widths = [one.offsetWidth];"
        " for (const time of [1, 2]) { one.querySelector('summary').click(); widths.push(one.offsetWidth); }"
        " return widths.join(' ');",
        tmp_path,
    )
    assert [*map(int, told.split())] == [CLOSED, 15 * ACROSS, CLOSED]
