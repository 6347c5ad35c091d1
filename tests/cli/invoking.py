"""Commands in this process."""

from __future__ import annotations

import shlex

from click.testing import CliRunner, Result

from graphprune.cli import main


def run(line: str) -> Result:
    return CliRunner().invoke(main, shlex.split(line), prog_name="graphprune")


def well(line: str) -> Result:
    """Run a command that must succeed."""
    result = run(line)
    assert result.exit_code == 0, result.output
    return result
