"""What several tests of a search for a latency share."""

from __future__ import annotations

from pathlib import Path

import pytest
from known import Known, measured


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements without a clock, and tables of this test alone."""
    monkeypatch.setenv("GRAPHPRUNE_CACHE", str(tmp_path / "cache"))
    for where in ("driver.latency_search", "backends.best"):
        monkeypatch.setattr(f"graphprune.{where}.interleave", measured)
    monkeypatch.setattr("graphprune.driver.latency_search.share", lambda original, other: other.ms / original.ms)
    Known.log.clear()
