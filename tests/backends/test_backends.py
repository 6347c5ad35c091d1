"""Targets compute what the host computes, and are measured alike."""

from __future__ import annotations

import gc
import itertools
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import graphprune as gp
from graphprune.backends import Target, interleave, runnable, share, target, targets
from graphprune.backends.measure import beside
from graphprune.backends.onnxruntime.target import Onnx
from graphprune.backends.torch import Torch
from graphprune.backends.tvm import winograd
from graphprune.backends.tvm.target import Library, Tvm
from graphprune.backends.tvm.tiles import NARROW, WIDE, Registers, choose
from graphprune.errors import ModelError, TargetError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.host import Array
from graphprune.ir.program import Program

ONNX_TOLERANCE = 1e-5  # relative to the largest output, float32
TVM_TOLERANCE = 1e-4


class Block(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Residual(nn.Module):
    """Dense, depthwise and grouped convolutions. 37 channels fill no vector register."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        groups = (1, channels, 4 if channels % 4 == 0 else 1)
        self.blocks = nn.Sequential(*(Block(channels, g) for g in groups))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Tokens(nn.Module):
    """197 tokens and 38 features: neither has a divisor that a register tile could use."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(38), nn.Linear(38, 114), nn.Linear(38, 38)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.out(torch.softmax(q @ k.transpose(-1, -2) / 6, -1) @ v)


def program(module: nn.Module, x: torch.Tensor) -> Program:
    """Every parameter and buffer random: fresh BatchNorms would hide mistakes."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)
            elif name.endswith(("running_mean", "bias")):
                tensor.copy_(torch.randn(tensor.shape, generator=rng) * 0.3)
    host = TorchHost.export(module, (x,))
    return Program(host=host, source=host)


def image(batch: int = 2, size: int = 16) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def residual() -> Program:
    torch.manual_seed(0)
    return program(Residual(), image())


@pytest.fixture(scope="module")
def onnx_residual(residual: Program, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The same network as an ONNX user has it."""
    host = OnnxHost.load(Onnx().emit(residual, tmp_path_factory.mktemp("onnx")), residual.host.example())
    return Program(host=host, source=host)


@pytest.fixture(scope="module")
def library(residual: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Tvm().emit(residual, tmp_path_factory.mktemp("tvm"))


def error(got: list[Array], want: list[Array]) -> float:
    """The largest difference, relative to the largest output. Shapes and dtypes must agree."""
    assert [(a.shape, a.dtype) for a in got] == [(a.shape, a.dtype) for a in want]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, want, strict=True))


# ---- names and options -------------------------------------------------------------------------------


def test_the_built_in_targets() -> None:
    assert {"torch": Torch, "onnx": Onnx, "tvm": Tvm}.items() <= dict(targets()).items()
    assert target("ort") == Onnx()
    assert target("cpu") == target("tvm") == Tvm()


def test_text_and_target_are_each_others_inverse() -> None:
    for one in (Tvm(), Tvm(mcpu="znver4", schedule=False), Tvm(layout="NCHW", opt=2), Onnx(), Torch()):
        assert target(one.text()) == one
    assert target(" tvm{ schedule=false  mcpu=znver4 opt=3 }").text() == "tvm{mcpu=znver4 schedule=false}"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tmv", "unknown target `tmv`\n  hint: did you mean `tvm`?"),
        ("tvm{mcp=znver4}", "target `tvm` has no option `mcp`\n  hint: did you mean `mcpu`?"),
        ("onnx{opset=9}", "target `onnx` has no option `opset`\n  hint: it has none"),
        ("tvm{opt=fast}", "`tvm`: option `opt` takes a int, not `fast`"),
        ("tvm{opt=9}", "`tvm`: option `opt` is 0 to 3, not 9"),
        ("tvm{layout=NHCW}", "`tvm`: option `layout` is NHWC or NCHW, not `NHCW`\n  hint: did you mean `NHWC`?"),
        ("tvm{mcpu}", "`tvm`: cannot read option `mcpu`\n  hint: write option=value, separated by spaces"),
        ("tvm{", "cannot read the target `tvm{`\n  hint: write it as tvm or tvm{option=value option=value}"),
    ],
)
def test_a_wrong_spec_is_one_clear_error(spec: str, says: str) -> None:
    with pytest.raises(TargetError) as caught:
        target(spec)
    assert str(caught.value) == says


def test_describe_says_what_a_report_needs() -> None:
    described = Tvm(opt=2).describe()
    assert described["target"] == "tvm{opt=2}" and described["options"]["layout"] == "NHWC"
    assert described["tuned"] is False and described["remark"].startswith("untuned")
    assert described["mcpu"] and described["cpu"] and described["versions"]["apache-tvm"].startswith("0.")
    assert Onnx().describe()["versions"]["onnxruntime"] != "not installed"
    json.dumps([described, Onnx().describe(), Torch().describe()])


# ---- measuring ---------------------------------------------------------------------------------------


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], None]]:
    """Makes calls that take a given time, on a clock that nothing else moves."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def make(seconds: Sequence[float], log: list[str], name: str) -> Callable[[], None]:
        taking = itertools.cycle(seconds)

        def call() -> None:
            log.append(name)
            now[0] += next(taking)

        return call

    return make


def test_interleave_takes_turns_and_reports_medians(sleeper: Callable[..., Callable[[], None]]) -> None:
    log: list[str] = []
    seen: list[tuple[str, int, int]] = []
    # a's four warm-ups, then five samples of 6, 8, 7, 30, 6 ms: a median of 7, quartiles 6 and 8
    slow = [0.006] * 4 + [0.006, 0.008, 0.007, 0.030, 0.006]
    found = interleave(
        {"a": sleeper(slow, log, "a"), "b": sleeper([0.012], log, "b")},
        repeats=5, threads=2, progress=lambda *step: seen.append(step),
    )  # fmt: skip
    assert "".join(log) == "aaaabbbb" + "ab" + "ba" + "ab" + "ba" + "ab"  # four warm-ups each, then in turns
    assert (found["a"].median_ms, found["a"].spread_ms) == pytest.approx((7, 2))
    assert (found["b"].median_ms, found["b"].spread_ms) == pytest.approx((12, 0))
    assert all((f.repeats, f.threads) == (5, 2) for f in found.values())
    assert found["a"].target == "a" and seen[-1] == ("measure", 5, 5)


def test_interleave_repeats_what_is_short_and_keeps_to_its_budget(sleeper: Callable[..., Callable[[], None]]) -> None:
    log: list[str] = []
    interleave({"a": sleeper([0.0016], log, "a")}, repeats=4)
    assert len(log) == 4 + 4 * 4  # a sample is what lasts 5 ms: four calls of 1.6 ms
    twenty = sleeper([0.02], log, "a")
    assert interleave({"a": twenty}, repeats=1000, seconds=0.101)["a"].repeats == 5
    assert interleave({"a": twenty}, repeats=1000, seconds=0.0)["a"].repeats == 3


def test_a_share_is_of_samples_side_by_side(sleeper: Callable[..., Callable[[], None]]) -> None:
    """The machine is slower in some rounds, for both; one sample was interrupted."""
    log: list[str] = []
    pace = [0.008] * 4 + [0.008, 0.008, 0.016, 0.016, 0.024, 0.008, 0.016]
    half = [0.5 * one for one in pace]
    half[5] = 1.0
    assert share(sleeper(pace, log, "a"), sleeper([0.006] * 4 + half[4:], log, "b"), 7) == pytest.approx(0.5)


def test_the_error_of_a_share_is_what_its_ratios_leave_open(sleeper: Callable[..., Callable[[], None]]) -> None:
    """Ratios of 1.1, 1.15, 1.2, 1.2, 1.25 and 1.3 beside a clock that goes at any pace: quartiles 1.1625 and 1.2375."""
    log: list[str] = []
    pace = [0.006, 0.012, 0.024, 0.006, 0.018, 0.006]
    ratios = [1.2, 1.1, 1.3, 1.15, 1.25, 1.2]
    late = [one * ratio for one, ratio in zip(pace, ratios, strict=True)]
    found = beside(sleeper([0.008] * 4 + pace, log, "a"), sleeper([0.008] * 4 + late, log, "b"), 6, threads=2)
    assert found.share == pytest.approx(1.2) and found.error == pytest.approx(0.93 * 0.075 / 6**0.5)
    assert found.slower and found.before.repeats == 6 and found.after.threads == 2
    assert not replace(found, error=0.1).slower, "1.2 is within twice of it"


def test_measure_gives_a_latency_of_the_target(residual: Program) -> None:
    latency = Onnx().measure(residual, repeats=5, threads=2)
    assert (latency.target, latency.threads, latency.repeats) == ("onnx", 2, 5)
    assert 0 < latency.median_ms < 1000 and latency.spread_ms >= 0


# ---- torch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Onnx, Tvm])
def test_what_has_run_leaves_the_cores_to_what_is_timed_next(residual: Program, kind: type[Target]) -> None:
    """By default the threads of both runtimes wait for the next run in a busy loop, for 50 ms."""
    code = kind().runnable(residual, threads=2)
    idle = []
    for _ in range(5):
        code()
        began = time.process_time()
        time.sleep(0.05)
        idle.append(time.process_time() - began)
    assert min(idle) < 0.01


def test_torch_runs_what_it_wrote_and_restores_the_threads(residual: Program, tmp_path: Path) -> None:
    path = Torch().emit(residual, tmp_path)
    before = torch.get_num_threads()
    seen: list[int] = []
    loaded = runnable(path, threads=before + 1)
    loaded._host.model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))  # type: ignore[attr-defined]
    loaded()
    batch = [image(3).numpy()]
    assert error(loaded.run(batch), residual.host.run(batch)) <= 1e-6
    assert seen == [before + 1] * 2 and torch.get_num_threads() == before
    assert path == tmp_path / "model.pt2"


def test_torch_refuses_an_onnx_model(onnx_residual: Program, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="the model is an ONNX model"):
        Torch().emit(onnx_residual, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- onnx --------------------------------------------------------------------------------------------


def test_onnx_keeps_names_weights_and_open_sizes(residual: Program, tmp_path: Path) -> None:
    path = Onnx().emit(residual, tmp_path)
    model = onnx.load(str(path), load_external_data=False)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    named = {name for name, value in residual.graph.parameters.items() if value.dtype == "float32"}
    assert named and named <= set(weights)
    weight = onnx.numpy_helper.to_array(weights["stem.weight"])
    np.testing.assert_array_equal(weight, residual.host.parameter("stem.weight"))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    for batch in ([image(2).numpy()], [image(5).numpy()]):
        assert error(runnable(path, example=batch).run(batch), residual.host.run(batch)) <= ONNX_TOLERANCE


def test_onnx_of_an_onnx_model_is_that_model(onnx_residual: Program, tmp_path: Path) -> None:
    path = Onnx().emit(onnx_residual, tmp_path)
    names = [node.name for node in onnx.load(str(path)).graph.node]
    assert names == [node.name for node in onnx_residual.host.model.graph]
    batch = onnx_residual.host.example()
    assert error(runnable(path).run(batch), onnx_residual.host.run(batch)) <= ONNX_TOLERANCE


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError):
        runnable(tmp_path / "model.onnx")
    with pytest.raises(TargetError, match=r"model\.txt: no such file"):
        runnable(tmp_path / "model.txt")
    (tmp_path / "model.txt").write_text("not a model")
    with pytest.raises(TargetError, match=r"nothing known runs `\.txt`"):
        runnable(tmp_path / "model.txt")
    with pytest.raises(TargetError, match="no such file"):
        runnable(tmp_path / "other.onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TargetError, match=r"no model\.so, model\.onnx or model\.pt2"):
        runnable(tmp_path / "empty")


# ---- tvm ---------------------------------------------------------------------------------------------


def test_tvm_computes_the_network(residual: Program, library: Path) -> None:
    batch = [image().numpy()]
    assert error(runnable(library.parent, threads=2).run(batch), residual.host.run(batch)) <= TVM_TOLERANCE


def test_tvm_says_what_goes_in_and_out_and_that_it_is_untuned(library: Path) -> None:
    interface = json.loads((library.parent / "model.json").read_text())
    assert interface["inputs"] == [{"name": "x", "shape": [2, 3, 16, 16], "dtype": "float32"}]
    assert interface["outputs"] == [{"name": "output0", "shape": [2, 10], "dtype": "float32"}]
    assert interface["tuned"] is False and interface["target"] == "tvm"
    assert sorted(file.name for file in library.parent.iterdir()) == ["model.json", "model.so"]


def test_what_is_written_in_the_place_of_a_loaded_library_is_loaded(tmp_path: Path) -> None:
    x = image(1)
    first, second = (program(Residual(width), x) for width in (8, 12))
    made = [runnable(Tvm().emit(first, tmp_path))]
    (tmp_path / "model.so").unlink()
    made.append(runnable(Tvm().emit(second, tmp_path)))
    for one, code in zip((first, second), made, strict=True):
        assert error(code.run([x.numpy()]), one.host.run([x.numpy()])) <= TVM_TOLERANCE


def test_tvm_compiles_what_has_no_layout_with_channels_last() -> None:
    """TVM's change of layouts fails over a maximum with a tensor of one number."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x) => (float[1,3,8,8] z)
      <float[3,3,1,1] w = {1,2,3,4,5,6,7,8,9}, float[1] c = {0.5}> { y = Conv(x, w) z = Max(y, c) }"""
    made = gp.load(onnx.parser.parse_model(text))
    batch = made.host.example()
    assert error(Tvm().run(made, batch), made.host.run(batch)) <= TVM_TOLERANCE


def test_tvm_of_an_onnx_model(onnx_residual: Program) -> None:
    batch = onnx_residual.host.example()
    assert error(Tvm().run(onnx_residual, batch), onnx_residual.host.run(batch)) <= TVM_TOLERANCE


@pytest.mark.parametrize("spec", ["tvm{layout=NCHW}", "tvm{schedule=false}", "tvm{opt=0}", "tvm{mcpu=x86-64-v2}"])
def test_tvm_options_change_the_code_and_not_the_result(
    spec: str, residual: Program, library: Path, tmp_path: Path
) -> None:
    if "x86" in spec and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("an x86 processor's name")
    path = target(spec).emit(residual, tmp_path)
    assert path.read_bytes() != library.read_bytes()
    batch = residual.host.example()
    assert error(runnable(path).run(batch), residual.host.run(batch)) <= TVM_TOLERANCE


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (lambda: Residual(37), image(1, 14)),
        (Tokens, torch.randn(2, 197, 38, generator=torch.Generator().manual_seed(2))),
    ],
    ids=["37 channels", "197 tokens"],
)
def test_tvm_schedules_awkward_sizes(module: Callable[[], nn.Module], x: torch.Tensor) -> None:
    torch.manual_seed(0)
    made = program(module(), x)
    assert error(Tvm().run(made, [x.numpy()]), made.host.run([x.numpy()])) <= TVM_TOLERANCE


@pytest.mark.parametrize("registers", [WIDE, NARROW])
@pytest.mark.parametrize("rows", [(1, 16, 16), (1, 7, 7), (17,), (197,), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 10, 24, 37, 64, 80, 1000])
def test_a_tile_fits_and_needs_the_fewest_loads(registers: Registers, rows: tuple[int, ...], channels: int) -> None:
    def cut(size: int, part: int) -> list[int]:
        return [min(part, size - at) for at in range(0, size, part)]

    def loads(words: int, tiles: Sequence[int]) -> int:
        """A tile loads a number of each of its rows, and its vectors of weights."""
        places = [prod(sizes) for sizes in itertools.product(*map(cut, rows, tiles))]
        return sum(place + own for place in places for own in cut(-(-channels // lanes), words))

    lanes, words, tiles = choose(rows, channels, registers)
    assert words * prod(tiles) <= registers.tile and 1 <= lanes <= registers.lanes
    assert words == 1 or channels % lanes == 0
    poor = not any(rows[-1] % n == 0 for n in range(4, registers.tile // 2 + 1)) and rows[-1] > registers.tile // 2
    each = [[n for n in range(1, row + 1) if row % n == 0] for row in rows[:-1]]
    each.append([n for n in range(1, rows[-1] + 1) if poor or rows[-1] % n == 0])
    fitting = [
        (own, parts)
        for own in range(1, 5 if channels % lanes == 0 else 2)
        for parts in itertools.product(*each)
        if own * prod(parts) <= registers.tile
    ]
    assert all(row % tile == 0 for row, tile in zip(rows[:-1], tiles[:-1], strict=True))
    assert loads(words, tiles) == min(loads(*one) for one in fitting)


def test_the_tile_of_a_convolution_is_known() -> None:
    assert choose((1, 56, 56), 64, WIDE) == (16, 4, [1, 1, 4])


def test_tvm_refuses_other_shapes_than_it_was_compiled_for(library: Path) -> None:
    with pytest.raises(TargetError) as caught:
        runnable(library).run([image(1).numpy()])
    assert caught.value.message == (
        "target `tvm`: compiled for inputs of shape [(2, 3, 16, 16)], the batch has [(1, 3, 16, 16)]"
    )


def test_tvm_names_an_unknown_processor(residual: Program, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"LLVM knows no .* CPU `znver44`") as caught:
        Tvm(mcpu="znver44").emit(residual, tmp_path)
    assert caught.value.hint is not None and "znver4" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@given(seed=st.integers(0, 2**32 - 1))
def test_minimal_filtering_is_a_convolution(seed: int) -> None:
    """Lavin and Gray (2016), equation 8: Y = A' [(G g G') * (B' d B)] A."""
    rng = np.random.default_rng(seed)
    tile, kernel = rng.standard_normal((6, 6)), rng.standard_normal((3, 3))
    data, result = (np.array(step(np.eye(6))) for step in (winograd.sampled, winograd.interpolated))
    transformed = winograd.FILTER
    made = result @ ((transformed @ kernel @ transformed.T) * (data @ tile @ data.T)) @ result.T
    windows = np.lib.stride_tricks.sliding_window_view(tile, (3, 3))
    assert np.allclose(made, (windows * kernel).sum((2, 3)), rtol=1e-12, atol=1e-12)


PLAIN: dict[str, Any] = {"padding": 1}


@pytest.mark.parametrize(
    ("cin", "cout", "size", "batch", "options", "eligible"),
    [
        (16, 48, (12, 12), 1, PLAIN, True),
        (32, 16, (13, 10), 3, PLAIN, True),  # tiles that stick out
        pytest.param(19, 37, (9, 14), 2, {}, True, marks=pytest.mark.slow),  # no padding, no whole vectors
        pytest.param(16, 16, (17, 8), 1, {"padding": (2, 0)}, True, marks=pytest.mark.slow),
        (16, 16, (12, 12), 1, PLAIN | {"stride": 2}, False),
        pytest.param(16, 16, (12, 12), 1, PLAIN | {"dilation": 2}, False, marks=pytest.mark.slow),
        pytest.param(32, 32, (12, 12), 1, PLAIN | {"groups": 2}, False, marks=pytest.mark.slow),
        (8, 16, (12, 12), 1, PLAIN, False),
    ],
)
def test_tvm_filters_minimally_where_it_can(
    cin: int, cout: int, size: tuple[int, int], batch: int, options: dict[str, Any], eligible: bool
) -> None:
    """Twice, a residual sum and a second reader: what is fused behind the transforms, and what is not."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(cin, cout, 3, **options)
            self.second, self.norm = nn.Conv2d(cout, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = torch.relu(self.first(x))
            return torch.relu(y + self.norm(self.second(y))), y.mean((2, 3))

    torch.manual_seed(0)
    made = program(Twice(), torch.randn(batch, cin, *size))
    code = Tvm().runnable(made)
    assert isinstance(code, Library)
    kernels = [name for name, _, _ in code.kernel_times()]
    assert sum("winograd_back" in name for name in kernels) == eligible + (cout >= 16)
    assert not any(name.startswith(("fused_add", "fused_relu", "relu")) for name in kernels), "part of the transforms"
    assert error(code.run(made.host.example()), made.host.run(made.host.example())) <= 1e-5
    heads = {op.name for op in made.graph.ops if op.kind == "conv"}
    assert heads == set(Tvm().profile(made)), "every convolution has a time, whatever it is made of"


def test_filtered_convolutions_round_little_more_than_plain_ones() -> None:
    """Sampled at the common points 1 and 2 this would be 1.5e-6, and over fifty layers that adds up."""
    conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 64, 24, 24, generator=torch.Generator().manual_seed(1)).relu()
    code = Tvm().runnable(program(conv, x))
    assert isinstance(code, Library)
    assert any("winograd_back" in name for name, *_ in code.kernel_times())
    (found,) = code.run([x.numpy()])
    exact = conv.double()(x.double()).detach().numpy()
    assert np.sqrt(((found - exact) ** 2).mean() / (exact**2).mean()) <= 1e-6


class Chosen(nn.Module):
    """Readers of channels here and there, and of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 48, 1)
        self.register_buffer("at", torch.randperm(48)[:24])
        self.some, self.run = nn.Conv2d(24, 16, 3, padding=1), nn.Conv2d(20, 16, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.stem(x))
        return self.some(x.index_select(1, self.at)), self.run(x[:, 5:25])


def test_what_is_filtered_selects_as_it_pads() -> None:
    torch.manual_seed(0)
    made = program(Chosen(), image(size=12))
    code = Tvm().runnable(made)
    assert isinstance(code, Library)
    kernels = [name for name, _, _ in code.kernel_times()]
    assert sum("winograd_back" in name for name in kernels) == 2
    assert not any(name.startswith(("take", "gather", "strided_slice")) for name in kernels)
    assert error(code.run(made.host.example()), made.host.run(made.host.example())) <= 1e-5


def test_transformed_weights_stay_within_bounds(tmp_path: Path) -> None:
    """Wherever it would pay, but a tenth of all weights and half a megabyte."""
    made = program(nn.Sequential(*[nn.Conv2d(64, 64, 3, padding=1) for _ in range(8)]), torch.randn(1, 64, 14, 14))
    size, weights = Tvm().emit(made, tmp_path).stat().st_size, 8 * 64 * 64 * 9 * 4
    assert size <= 1.1 * weights + 2**20
    kernels = [name for name, _, _ in Tvm().load(tmp_path / "model.so").kernel_times()]  # type: ignore[attr-defined]
    assert sum("winograd_back" in name for name in kernels) == 1


class Joined(nn.Module):
    """Parts of all widths meet, with BatchNorm and an activation behind; another has a slice in it."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 1)
        self.parts = nn.ModuleList(nn.Conv2d(widths[0], width, 1) for width in widths[1:])
        self.norm, self.last = nn.BatchNorm2d(sum(widths)), nn.Conv2d(sum(widths), 8, 1)
        self.head = nn.Conv2d(11, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = torch.cat([x, *[part(x) for part in self.parts]], 1)
        return self.head(torch.cat([self.last(torch.relu(self.norm(y))), y[:, 1:4]], 1))


@pytest.mark.parametrize("widths", [(64, 32), (50, 20, 7, 1, 33), (16, 1, 1), (5, 4)])
def test_tvm_copies_each_part_of_a_concatenation_by_itself(widths: Sequence[int]) -> None:
    """No question per element which part it is of, and BatchNorm is one product and one sum."""
    from graphprune.backends.tvm.lower import imported, lowered, toolchain

    torch.manual_seed(0)
    made = Joined(widths)
    for tensor in (*made.parameters(), *made.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.2, 1.0)
    one = program(made, torch.randn(2, 3, 6, 5))
    loops = lowered(imported(one.host)[0], toolchain().target.Target.from_device("cpu"))
    kernels = {name.name_hint: str(func) for name, func in loops.functions_items()}
    joins = {name: text for name, text in kernels.items() if "concat" in name}
    assert len(joins) == 2 and not any("if_then_else" in text for text in joins.values())
    assert not any("divide" in name or "subtract" in name for name in kernels)
    batch = one.host.example()
    assert error(Tvm().run(one, batch), one.host.run(batch)) <= TVM_TOLERANCE


def test_tvm_names_an_op_it_cannot_import(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(TargetError, match=r"target `tvm`: cannot import the model: .*bessel_j0"):
        Tvm().emit(program(Odd(), torch.randn(2, 3)), tmp_path)


def old_model(path: Path, op: str) -> Path:
    """A file as exporters wrote it in 2019: opset 9, where Slice has attributes."""
    helper, weight = onnx.helper, np.random.default_rng(0).standard_normal((8, 3, 3, 3), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Slice", ["y"], ["z"], "slice", axes=[1], starts=[2], ends=[7]),
        helper.make_node(op, ["z"], ["out"], "last"),
    ]
    kinds = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["N", 3, 8, 8]), ("out", ["N", 5, 8, 8]))]
    graph = helper.make_graph(nodes, "old", kinds[:1], kinds[1:], [onnx.numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4), str(path))
    return path


class Begun:
    """Notes which passes begin."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def before(self, step: Any, program: Program) -> None:
        self.steps.append(step.name)

    def after(self, step: Any, program: Program, seconds: float) -> None:
        pass


@pytest.mark.parametrize("spec", ["cpu", "best-cpu", "raspberry-pi-4{link=false}"])
def test_what_tvm_cannot_import_is_refused_before_any_pass_runs(spec: str) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[4,2,5] x) => (float[4,1,2,3] y) '
        "{ y = GRU<hidden_size=3>(x, w, r) }"
    )
    weights = {"w": np.ones((1, 9, 5), np.float32), "r": np.ones((1, 9, 3), np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    begun = Begun()
    with pytest.raises(TargetError, match=r"cannot import the model: .*not supported.*GRU"):
        gp.compile(model, targets=[spec], instruments=[begun])
    assert begun.steps == []


def test_tvm_reads_old_opsets_and_open_sizes(tmp_path: Path) -> None:
    host = OnnxHost.load(old_model(tmp_path / "old.onnx", "Relu"))
    batch = host.example()
    assert error(Tvm().run(Program(host=host, source=host), batch), host.run(batch)) <= TVM_TOLERANCE


def test_without_tvm_the_error_says_how_to_get_it(
    residual: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tvm", None)
    with pytest.raises(TargetError) as caught:
        Tvm().emit(residual, tmp_path)
    assert caught.value.hint == "pip install graphprune[tvm]"


def test_a_library_goes_when_nobody_runs_it(residual: Program, tmp_path: Path) -> None:
    """A search loads dozens, each with all weights."""
    path = Tvm().emit(residual, tmp_path)
    outputs = Tvm().load(path).run(residual.host.example())
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert error(outputs, residual.host.run(residual.host.example())) <= TVM_TOLERANCE


def test_a_library_without_its_interface_is_refused(library: Path, tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(library.read_bytes())
    with pytest.raises(ModelError, match=r"model\.json: not what the tvm target writes"):
        runnable(tmp_path)


# ---- networks of real shapes -------------------------------------------------------------------------


class Logits(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(x).logits
        return logits


def real(name: str) -> nn.Module:
    from transformers import (
        MobileNetV2Config,
        MobileNetV2ForImageClassification,
        ResNetConfig,
        ResNetForImageClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    torch.manual_seed(0)
    if name == "resnet18":
        sizes = ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
        return Logits(ResNetForImageClassification(sizes))
    if name == "mobilenetv2":
        return Logits(MobileNetV2ForImageClassification(MobileNetV2Config()))
    small = ViTConfig(
        image_size=64,
        patch_size=16,
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
    )
    return Logits(ViTForImageClassification(small))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "vit"])
def test_real_networks_on_every_target(name: str, tmp_path: Path) -> None:
    made = program(real(name), image(1, 64))
    batch = made.host.example()
    path = Onnx().emit(made, tmp_path)
    reference = runnable(path, example=batch).run(batch)
    assert error(reference, made.host.run(batch)) <= ONNX_TOLERANCE
    assert error(Tvm().run(made, batch), reference) <= TVM_TOLERANCE
    host = OnnxHost.load(path, batch)
    assert error(Tvm().run(Program(host=host, source=host), batch), reference) <= TVM_TOLERANCE


def test_what_numpy_has_no_type_for_is_measured_all_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (8, 3, 1, 1)), ("u", (3, 8, 1, 1)))
    ]
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["wide"], to=1),
        onnx.helper.make_node("Conv", ["wide", "w"], ["h"]),
        onnx.helper.make_node("Conv", ["h", "u"], ["y"]),
    ]
    ins = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.BFLOAT16, [1, 3, 4, 4])]
    outs = [onnx.helper.make_tensor_value_info("y", 1, None)]
    graph = onnx.helper.make_graph(nodes, "g", ins, outs, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    artifact = gp.compile(model, channels="0.5x", targets=["onnx"], out=tmp_path / "out")
    (found,) = (row for row in artifact.report["verification"]["checks"] if row["what"].startswith("code for onnx"))
    assert found["max_relative_error"] <= 1e-5


@pytest.mark.parametrize("threads", [0, 100_000])
def test_threads_that_no_machine_has_work_for_are_refused_before_any_is_started(
    threads: int, residual: Program, tmp_path: Path
) -> None:
    path = Onnx().emit(residual, tmp_path)
    with pytest.raises(TargetError, match=rf"`onnx` cannot run on {threads} threads \(1 to "):
        Onnx().load(path, threads=threads, example=residual.host.example())
