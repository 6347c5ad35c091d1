"""What others wrote and cannot be: one clear error that says where, or the right result."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import graphprune as gp
from graphprune.cli import main
from graphprune.errors import GraphpruneError, ModelError, RecipeError
from graphprune.pipeline.recipe import Recipe

RECIPE = "group,score,mask{channels=0.5x},propagate"
NET = """import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)


def boom():
    raise KeyError("width")


number = 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bad_net.py").write_text(NET)
    (tmp_path / "bad_text.py").write_text("\ndef net(:\n    pass\n")
    (tmp_path / "bad_start.py").write_text("import os\nraise ValueError('no such setting')\n")
    (tmp_path / "bad_name.py").write_text("import nothing_of_that_name\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("bad_net", "bad_text", "bad_start", "bad_name"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


# ---- factories -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bad_text:net", "{}/bad_text.py:2: SyntaxError: invalid syntax"),
        ("bad_start:net", "{}/bad_start.py:2: ValueError: no such setting"),
        ("bad_name:net", "{}/bad_name.py:1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("bad_net:boom", "{}/bad_net.py:10: KeyError: 'width'"),
        ("bad_net:missing", "`missing` is not there"),
        ("nowhere:net", "No module named 'nowhere'"),
    ],
)
def test_a_factory_that_fails_says_where(name: str, said: str, here: Path) -> None:
    with pytest.raises(ModelError) as error:
        gp.load(name)
    assert error.value.message == f"{name}: {said.format(here)}"


def test_what_is_no_function_makes_no_network() -> None:
    with pytest.raises(ModelError, match="bad_net:number: `number` is no function but of type int"):
        gp.load("bad_net:number")


# ---- dtypes --------------------------------------------------------------------------------------------

SMALL = [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


class Widening(nn.Module):
    def __init__(self, held: torch.Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("held", held)

    def forward(self, x: torch.Tensor) -> Any:
        wide = x.real if x.is_complex() else x.float()
        return self.b(self.a(wide).relu()) + self.held.real.float().sum()


@pytest.mark.parametrize("dtype", [*SMALL, torch.complex64, torch.int8, torch.uint16], ids=str)
def test_a_torch_input_and_a_buffer_of_any_dtype(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, generator=rng).abs().to(dtype)
    net = Widening(x.clone()).eval()
    program = gp.load(net, x)
    assert torch.equal(program.model(x), net(x))
    assert gp.verify(gp.run(RECIPE, program))[0].error <= 1e-12


def casting(read: int, held: int | None = None) -> onnx.ModelProto:
    """y = relu(float(x) W1) W2; ``held``: the dtype in which W1 is stored."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(1, 5, shape).astype(np.float32) for name, shape in (("w1", (4, 8)), ("w2", (8, 2)))}
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT)]
    if held is not None:
        weights[0] = helper.make_tensor("stored", held, [4, 8], arrays["w1"].ravel().astype(int).tolist())
        nodes.append(helper.make_node("Cast", ["stored"], ["w1"], to=TensorProto.FLOAT))
    nodes += [helper.make_node("MatMul", ["wide", "w1"], ["h"]), helper.make_node("Relu", ["h"], ["r"])]
    nodes += [helper.make_node("MatMul", ["r", "w2"], ["y"])]
    ends = [helper.make_tensor_value_info(name, kind, [2, n]) for name, kind, n in (("x", read, 4), ("y", 1, 2))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("held", ["BFLOAT16", "FLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4"])
def test_an_onnx_weight_of_any_dtype(held: str) -> None:
    program = gp.load(casting(TensorProto.FLOAT, getattr(TensorProto, held)))
    pruned = gp.run(RECIPE, program)
    assert gp.verify(pruned)[0].error <= 1e-5
    assert {len(kept) for edit in pruned.plan["steps"] for kept in edit.get("keep", {}).values()} == {4}


@pytest.mark.parametrize("read", ["BFLOAT16", "FLOAT16", "BOOL"])
def test_an_onnx_input_that_runs(read: str) -> None:
    assert gp.verify(gp.run(RECIPE, gp.load(casting(getattr(TensorProto, read)))))[0].error <= 1e-5


@pytest.mark.parametrize("read", ["FLOAT8E4M3FN", "FLOAT8E5M2", "STRING", "INT4", "UINT4", "COMPLEX64"])
def test_an_onnx_input_that_does_not_run_is_one_error(read: str) -> None:
    with pytest.raises(ModelError, match=r"no example input can be made|is text|ONNX Runtime cannot run it"):
        gp.load(casting(getattr(TensorProto, read)))


# ---- numbers -------------------------------------------------------------------------------------------

HUGE = "9" * 5000


@pytest.mark.parametrize(
    "option",
    [f"macs={HUGE}x", "macs=1e400x", "macs=nan", "macs=-0.5x", f"latency={HUGE}ms", "latency=nanms", "latency=1e400ms"]
    + [f"macs=0.5x {more}" for more in (f"grain={HUGE}", "grain=-4", f"floor={HUGE}", "floor=nan", "floor=-1")],
)
def test_a_number_that_none_can_be_is_refused_in_one_line(option: str) -> None:
    with pytest.raises(GraphpruneError) as error:
        Recipe.parse(f"group,score,mask{{{option}}}")
    assert len(error.value.message) < 200 and "\n" not in error.value.message


@pytest.mark.parametrize("value", [HUGE, "nan", "-inf", "1e400", "[" * 5000 + "]" * 5000])
def test_so_it_is_in_toml(value: str) -> None:
    with pytest.raises(GraphpruneError) as error:
        Recipe.from_toml(f'[[pass]]\nname = "mask"\nmacs = "0.5x"\nfloor = {value}\n')
    assert isinstance(error.value, RecipeError) or "is not a share" in error.value.message
    assert len(error.value.message) < 200 and "\n" not in error.value.message


@pytest.mark.parametrize(
    "option",
    [
        *(("--macs", HUGE), ("--tune", HUGE), ("--tune", "1e400min"), ("--input", f"x={HUGE}x4")),
        *(("--input", f"x={HUGE}"), ("--seed", HUGE), ("--threads", "1e400")),
        *(("--grain", "-3"), ("--floor", "nan"), ("--floor", "1e400")),
    ],
    ids=lambda option: " ".join(option)[:20],
)
def test_and_on_the_command_line(option: tuple[str, str]) -> None:
    given = ["compile", "bad_net:net", *option, "--target", "onnx", "-o", "out"]
    result = CliRunner().invoke(main, given)
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), result.exception
    assert not Path("out").exists() and "error" in result.output.lower()


# ---- names ---------------------------------------------------------------------------------------------


def named(layer: str) -> onnx.ModelProto:
    """Its weights and ops have that name."""
    rng = np.random.default_rng(0)
    shapes = {f"{layer}.in": (4, 8), f"{layer}.out": (8, 2)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), name) for name, s in shapes.items()]
    first, second = shapes
    nodes = [
        helper.make_node("MatMul", ["x", first], ["h"], f"{layer}/first"),
        helper.make_node("Relu", ["h"], ["r"], f"{layer}/relu"),
        helper.make_node("MatMul", ["r", second], ["y"], f"{layer}/second"),
    ]
    ends = [helper.make_tensor_value_info(name, 1, [2, n]) for name, n in (("x", 4), ("y", 2))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("layer", [r"$\frac{a$", "$x$_^{", "\x1b[2J\x07red", "\u202etxet", "<b>&amp", "a\nb"])
def test_names_are_shown_as_they_are_and_obeyed_by_nothing(layer: str) -> None:
    """Formulas in drawings, commands to terminals, marks of direction, tags in pages."""
    onnx.save(named(layer), "model.onnx")
    lines = ["inspect model.onnx --all --graph net.svg", "compile model.onnx --macs 0.5x -o out"]
    lines.append("inspect model.onnx --text")
    for line in lines:
        result = CliRunner().invoke(main, line.split())
        assert result.exit_code == 0, result.output
        assert not {"\x1b", "\x07", "\u202e"} & set(result.output)
    for file in (Path("net.svg"), Path("out/report.html")):
        text = file.read_text(encoding="utf-8")
        assert not {"\x1b", "\x07", "\u202e"} & set(text) and "<b>&amp" not in text


def test_an_error_repeats_a_name_without_obeying_it() -> None:
    assert str(ModelError("\x1b[2Jred\u202e")) == "\\x1b[2Jred\\u202e"


# ---- places where it runs ------------------------------------------------------------------------------

COMMAND = (sys.executable, "-m", "graphprune", "compile", "bad_net:net", "--macs", "0.5x", "-o")


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6))


def test_where_no_more_files_can_be_opened_that_is_the_error() -> None:
    done = subprocess.run([*COMMAND, "out"], capture_output=True, encoding="utf-8", preexec_fn=few_files)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "Too many open files" in done.stderr and not Path("out").exists()


def test_a_locale_without_unicode_stops_nothing() -> None:
    """Neither output folders nor errors; torch itself opens no such path there."""
    text = Path("bad_net.py").read_text(encoding="utf-8")
    Path("bad_net.py").write_text(text.replace('KeyError("width")', "KeyError('größe')"), encoding="utf-8")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([*COMMAND, "größe"], capture_output=True, encoding="utf-8", env=plain)
    assert done.returncode == 0 and Path("größe/report.html").exists(), done.stderr
    failed = subprocess.run(
        [*COMMAND[:4], "bad_net:boom", "--macs", "0.5x", "-o", "x"], capture_output=True, encoding="utf-8", env=plain
    )
    assert failed.returncode == 1 and "KeyError: 'größe'" in failed.stderr
