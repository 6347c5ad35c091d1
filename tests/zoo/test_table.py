"""The command and its table, on made-up results: nothing is measured here."""

from __future__ import annotations

from typing import Any

import pytest

from . import run
from .table import document, status
from .work import PEER

EXACT: dict[str, Any] = {
    "groups": 3,
    "channels": 40,
    "dense": 4,
    "prunable": 3,
    "share": 0.9,
    "least": 0.25,
    "frozen": {"graph input": 1, "no rule for `x`": 2},
    "settings": [{"error": 1e-15, "moved": 0.5}, {"error": 3e-16, "moved": 0.3}],
    "seconds": 1.5,
}
FAILED = {**EXACT, "settings": [*EXACT["settings"], {"failed": "VerificationError: differs by 2 | at a"}]}
REFUSED = {"refused": "nothing can be pruned:\n  all dims are frozen"}
HANG = {"outcome": "hang", "detail": "no end after 30 s"}


def test_a_row_says_what_was_measured_and_why_it_is_not_exact():
    rows = {"net": {"torch": EXACT, "onnx": FAILED, PEER: HANG}, "other": {"torch": REFUSED}}
    text = document({"net": "vision", "other": "audio"}, rows, {"torch-pruning": "1.6.1", "torch": "2"})
    assert (
        "| net | torch | 3 (40) | 3/4, 90% | 25% | input 1, no rule for `x` 2 | exact, 1e-15 | 0.30 | 1.5 "
        "| **hang**: no end after 30 s |"
    ) in text
    assert "**failed**, 1e-15" in text
    assert "- **net, onnx**: failed: VerificationError: differs by 2 | at a" in text
    assert "- **other, torch**: refused: nothing can be pruned: all dims are frozen" in text
    assert "- torch host: 1 exact, 1 refused of 2; in 0 nothing" in text
    assert "| other | onnx | not measured" in text


@pytest.mark.parametrize("result, word", [(EXACT, "exact"), (FAILED, "failed"), (REFUSED, "refused"), (HANG, "hang")])
def test_status(result, word):
    assert status(result) == word


def test_what_was_measured_is_measured_again_only_for_a_reason(tmp_path, monkeypatch, capsys):
    asked = []

    def measured(name, column):
        asked.append((name, column))
        return EXACT if column != PEER else HANG

    monkeypatch.setattr(run, "measured", measured)
    arguments = ["--only", "ViT", "--cache", str(tmp_path), "--out", str(tmp_path / "zoo.md")]
    run.main(arguments)
    assert sorted(asked) == [("ViT", PEER), ("ViT", "onnx"), ("ViT", "torch")]
    run.main(arguments)
    assert len(asked) == 3
    monkeypatch.setattr(run, "key", lambda column: {"other": "sources"})
    run.main([*arguments, "--keep"])
    assert len(asked) == 3
    run.main(arguments)
    assert len(asked) == 6
    assert "| ViT | torch | 3 (40) |" in (tmp_path / "zoo.md").read_text()


def test_an_unknown_name_is_refused():
    with pytest.raises(SystemExit, match="no architecture Vit"):
        run.main(["--only", "Vit"])
