"""`graphprune new`: what it writes installs, is found, and passes its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from graphprune.cli import main
from graphprune.driver.new import KINDS, new
from graphprune.errors import OutputError, RecipeError, TargetError

ROOT = Path(__file__).parents[2]
NAMES = {"pass": "keep_share", "criterion": "count-large", "target": "my-board"}


def python(*arguments: object, **environment: str) -> str:
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package of each kind as written, and the folder that all are installed into; nothing is fetched."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    folders = [new(kind, name, source / kind) for kind, name in NAMES.items()]
    options = "--quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check".split()
    python("-m", "pip", "install", *options, "--target", site, *folders)
    return source, site


@pytest.mark.slow
def test_each_kind_installs_and_passes_its_own_tests(installed: tuple[Path, Path]) -> None:
    source, site = installed
    files = sorted(source.glob("*/tests/test_*.py"))
    assert len(files) == len(KINDS)
    paths = os.pathsep.join((str(site), str(ROOT)))
    told = python("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={source}", *files, PYTHONPATH=paths)
    assert "4 passed" in told


def test_what_is_written_reads_like_the_rest(installed: tuple[Path, Path]) -> None:
    source, _ = installed
    python("-m", "ruff", "check", "--ignore", "TID253", "--config", ROOT / "pyproject.toml", source)
    python("-m", "ruff", "format", "--check", "--config", ROOT / "pyproject.toml", source)


def test_the_command_says_what_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["new", "criterion", "mine"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "written: graphprune-mine",
        "  cd graphprune-mine",
        "  pip install -e '.[test]'",
        "  pytest",
        "  graphprune compile model.onnx --passes 'group,score{by=mine},mask{macs=0.5x},propagate' -o out",
    ]
    assert (tmp_path / "graphprune-mine" / "graphprune_mine" / "__init__.py").is_file()
    with pytest.raises(OutputError, match="graphprune-mine exists"):
        new("criterion", "mine")
    new("criterion", "mine", force=True)


@pytest.mark.parametrize(
    ("kind", "name", "raises", "says"),
    [
        ("pass", "mask", RecipeError, "there is a pass `mask` already"),
        ("criterion", "l2", RecipeError, "there is a criterion `l2` already"),
        ("target", "cpu", TargetError, "there is a target `cpu` already"),
        ("target", "aarch64", TargetError, "there is a target `aarch64` already"),
        ("pass", "../up", RecipeError, "`../up` is no name for a pass\n  hint: small letters and digits"),
        ("pass", "a{b}", RecipeError, "`a{b}` is no name"),
    ],
)
def test_names_that_will_not_do(tmp_path: Path, kind: str, name: str, raises: type, says: str) -> None:
    with pytest.raises(raises) as caught:
        new(kind, name, tmp_path / "out")
    assert says in str(caught.value)
    assert not list(tmp_path.iterdir())
