"""The examples run as they stand."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")


def test_a_language_model_becomes_a_smaller_one_that_generates(tmp_path, monkeypatch, capsys):
    from benchmarks import stories
    from examples import llm

    def absent():
        raise OSError

    monkeypatch.setattr(stories, "network", absent)  # elsewhere, that data is not there
    llm.main(["--out", str(tmp_path / "smaller")])
    told = capsys.readouterr().out.splitlines()
    whole, left = (int(word) for word in told[0].split() if word.isdigit())
    assert left <= 0.7 * whole
    config = json.loads((tmp_path / "smaller" / "config.json").read_text())
    assert f"'intermediate_size': (64, {config['intermediate_size']})" in told[1] and config["intermediate_size"] < 64
    assert [line.partition(":")[0] for line in told[2:]] == ["before", "after"]
