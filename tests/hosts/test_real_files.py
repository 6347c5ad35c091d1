"""Trained files of several makers, as they come: each compiles, or all of its weights have a reason."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import graphprune as gp
from graphprune.coupling.groups import find_groups

SHARED = next((path / "shared" for path in Path(__file__).parents if (path / "shared/data/onnx").is_dir()), None)
FILES = sorted((SHARED / "data/onnx").glob("*.onnx")) if SHARED else []
CASES = sorted((SHARED / "cases/onnx").glob("*.onnx")) if SHARED else []

pytestmark = pytest.mark.skipif(not FILES, reason="no folder shared/data/onnx beside the checkout")


def interface(model: onnx.ModelProto) -> tuple[object, ...]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    return inputs, list(model.graph.output), {(entry.domain, entry.version) for entry in model.opset_import}


def compiled(path: Path, out: Path) -> None:
    """Pruned = masked is proven on the way; what callers see of the file is as it was."""
    program = gp.load(path)
    groups = find_groups(program.graph)
    assert groups.groups or groups.frozen
    if not groups.groups:
        assert all(dim.reason for dim in groups.frozen)
        return
    artifact = gp.compile(program, macs="0.7x", out=out, measure=False)
    assert artifact.report["verification"]["used"]
    assert artifact.report["after"]["macs"] <= 0.7 * artifact.report["before"]["macs"]
    assert interface(onnx.load(out / "model.onnx")) == interface(onnx.load(path))


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files(path: Path, tmp_path: Path) -> None:
    compiled(path, tmp_path / "out")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_cases(path: Path, tmp_path: Path) -> None:
    compiled(path, tmp_path / "out")
