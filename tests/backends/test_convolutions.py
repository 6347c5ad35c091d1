"""Padded convolutions, stems and depthwise ones in what TVM compiles, beside the host: whatever their sizes are."""

from __future__ import annotations

from typing import Any

import nets
import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.backends.tvm.target import Library, Tvm

pytest.importorskip("tvm")

TOLERANCE = 1e-5  # relative to the largest output


class Layer(nn.Module):
    """A convolution, its input padded beforehand as well (``more``: left, right, top, bottom), and an activation."""

    def __init__(self, conv: nn.Module, more: tuple[int, ...] = (0, 0, 0, 0)) -> None:
        super().__init__()
        self.conv, self.more = conv, more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.pad(x, self.more) if any(self.more) else x
        y: torch.Tensor = torch.relu(self.conv(x))
        return y


def depthwise(
    channels: int, kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, times: int = 1
) -> nn.Module:
    return nn.Conv2d(channels, channels * times, kernel, stride, padding, dilation, channels)


def compiled(layer: nn.Module, *shape: int, threads: int = 1, on: Tvm | None = None) -> set[str]:
    """The kernels of a layer whose results are the host's."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    program = gp.load(nets.randomise(layer).eval(), x)
    code = (on or Tvm()).runnable(program, threads=threads)
    assert isinstance(code, Library)
    batch = program.host.example()
    for ours, theirs in zip(code.run(batch), program.host.run(batch), strict=True):
        assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()
    return {name for name, *_ in code.kernel_times()}


DEPTHWISE = {
    "plain": (depthwise(32, 3, 1, 1), (1, 32, 12, 12)),
    "stride, odd sizes": (depthwise(48, 3, 2, 1), (1, 48, 15, 13)),
    "5 x 5, more channels than vectors": (depthwise(40, 5, 1, 2), (1, 40, 11, 14)),
    "7 x 7, not unrolled": (depthwise(16, 7, 1, 3), (1, 16, 16, 9)),
    "37 channels": (depthwise(37, 3, 1, 1), (1, 37, 9, 8)),
    "one axis each its own": (depthwise(32, (3, 5), (2, 1), (0, 2), (1, 2)), (1, 32, 17, 19)),
    "dilation": (depthwise(32, 3, 1, 2, 2), (1, 32, 10, 16)),
    "three a batch": (depthwise(32, 3, 1, 1), (3, 32, 8, 8)),
    "one row": (depthwise(32, 3, 1, 1), (1, 32, 1, 16)),
    "two outputs a channel": (depthwise(24, 3, 1, 1, times=2), (1, 24, 8, 8)),
    "padded unevenly before": (Layer(depthwise(32, 3, 2), (0, 1, 0, 1)), (1, 32, 16, 16)),
    "wide rows": (depthwise(16, 3, 1, 1), (1, 16, 5, 700)),
}


@pytest.mark.parametrize("case", DEPTHWISE)
def test_depthwise_convolutions_are_right(case: str) -> None:
    conv, shape = DEPTHWISE[case]
    compiled(conv if isinstance(conv, Layer) else Layer(conv), *shape)


STEMS = {
    "3 x 3": (nn.Conv2d(3, 32, 3, 2, 1), (1, 3, 32, 32)),
    "7 x 7, odd sizes": (nn.Conv2d(3, 24, 7, 2, 3), (2, 3, 33, 29)),
    "one channel to 20, no padding": (nn.Conv2d(1, 20, 5), (1, 1, 20, 21)),
    "four channels, dilation": (nn.Conv2d(4, 16, 3, (1, 2), (2, 1), 2), (1, 4, 18, 20)),
    "patches": (nn.Conv2d(3, 48, 8, 8), (1, 3, 32, 32)),
}


@pytest.mark.parametrize("case", STEMS)
def test_a_stem_reads_its_image_as_it_is(case: str) -> None:
    conv, shape = STEMS[case]
    kernels = compiled(Layer(conv), *shape)
    assert sum("transpose" in name for name in kernels) == 1, "the result's alone"
    assert any("conv2d_planes" in name for name in kernels)


class Separable(nn.Module):
    """A depthwise convolution, a norm and an activation, a pointwise convolution, and what follows; ``twice``:
    something else reads what lies between."""

    def __init__(
        self, channels: int, outs: int, kernel: int = 3, stride: int = 1, dilation: int = 1, **how: Any
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.deep = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, channels, bias=False)
        self.norm, self.wide = nn.BatchNorm2d(channels), nn.Conv2d(channels, outs, 1)
        self.activation, self.twice = how.get("activation", nn.ReLU6()), how.get("twice", False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.activation(self.norm(self.deep(x)))
        z = self.wide(y)
        return (z + x if z.shape == x.shape else torch.relu(z), *([y] if self.twice else []))


PAIRS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "plain": (Separable(32, 16), (1, 32, 12, 12), 1),
    "stride, odd sizes, 5 x 5": (Separable(48, 24, 5, 2), (1, 48, 15, 13), 1),
    "37 outputs": (Separable(32, 37), (1, 32, 8, 9), 1),
    "40 channels to one": (Separable(40, 1), (1, 40, 8, 8), 1),
    "three a batch, a sum behind": (Separable(32, 32, activation=nn.ReLU()), (3, 32, 7, 7), 1),
    "nothing between but a norm, dilation": (Separable(32, 16, dilation=2, activation=nn.Identity()), (1, 32, 9, 8), 1),
    "several bands": (Separable(64, 16), (1, 64, 40, 40), 1),
    "read by others": (Separable(32, 16, twice=True), (1, 32, 8, 8), 0),
    "37 channels": (Separable(37, 16), (1, 37, 8, 8), 0),
    "another activation": (Separable(32, 16, activation=nn.SiLU()), (1, 32, 8, 8), 0),
    "one row": (Separable(32, 16), (1, 32, 1, 16), 0),
}


@pytest.mark.parametrize("case", PAIRS)
def test_a_pointwise_convolution_makes_what_it_reads(case: str) -> None:
    net, shape, joined = PAIRS[case]
    kernels = compiled(net, *shape, threads=2)
    assert sum("separable" in name for name in kernels) == joined


def test_two_in_one_with_other_registers_and_schedules() -> None:
    for on in (Tvm(mcpu="haswell"), Tvm(schedule=False)):
        assert any("separable" in name for name in compiled(Separable(32, 32), 1, 32, 10, 10, on=on))
    x = torch.randn(1, 32, 10, 10)
    program = gp.load(nets.randomise(Separable(32, 20)).eval(), x)
    heads = [op.name for op in program.graph.ops if op.kind == "conv"]
    assert list(Tvm().profile(program)) == heads[1:], "the first has no time of its own"


@pytest.mark.parametrize("on", [Tvm(mcpu="haswell"), Tvm(layout="NCHW")], ids=["AVX2", "channels first"])
@pytest.mark.parametrize("case", ["5 x 5, more channels than vectors", "one axis each its own"])
def test_other_registers_and_layouts(case: str, on: Tvm) -> None:
    conv, shape = DEPTHWISE[case]
    compiled(Layer(conv), *shape, on=on)


def test_bands_are_shared_by_threads() -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6(), depthwise(32, 3, 1, 1), nn.ReLU6(), nn.Conv2d(32, 8, 1))
    compiled(net, 1, 3, 40, 40, threads=2)


def test_pads_and_whole_windows_cost_no_kernel() -> None:
    net = nn.Sequential(Layer(depthwise(32, 3, 2), (0, 1, 0, 1)), nn.AvgPool2d(40, ceil_mode=True), nn.Flatten())
    kernels = compiled(net, 2, 32, 9, 8)
    assert not any("pool" in name or "pad" in name.removesuffix("_prepacked") for name in kernels)
    shaped = nn.Sequential(nn.ConstantPad2d((1, 2, 0, 1), 0.5), nn.Conv2d(32, 16, 3), nn.AvgPool2d(3, 2, 1))
    assert any("pad" in name.removesuffix("_prepacked") for name in compiled(shaped, 1, 32, 8, 8)), "not zeros"


@pytest.mark.parametrize("name", ["exp", "sigmoid", "tanh", "erf"])
def test_vector_functions_are_exact_to_a_few_units(name: str) -> None:
    numbers = torch.cat(
        [torch.linspace(-30, 30, 4000), torch.linspace(-87, 88, 500), torch.tensor([0.0, -1e-30, 1e-8])]
    )
    limits = torch.tensor([float("inf"), -float("inf"), float("nan"), 100, -200])

    class Function(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = getattr(torch, name)(x)
            return y

    x = torch.cat([numbers, limits])
    (got,) = Tvm().run(gp.load(Function(), x), [x.numpy()])
    want = getattr(torch, name)(x.double()).float().numpy()
    np.testing.assert_allclose(got[: len(numbers)], want[: len(numbers)], rtol=5e-7, atol=1.2e-38)
    np.testing.assert_allclose(got[len(numbers) :], want[len(numbers) :], rtol=5e-7, atol=1.2e-38)


class Rows(nn.Module):
    """A norm and two softmaxes, of rows that fill vectors and others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.norm(x)
        return x, torch.softmax(3 * x, -1), torch.where(x > 0, torch.softmax(x, 1), 0.0)


@pytest.mark.parametrize("width", [128, 48, 40, 37, 197, 7])
def test_norms_and_softmaxes_are_right(width: int) -> None:
    compiled(Rows(width), 2, 5, width)
    compiled(Rows(width), 2, 5, width, threads=2, on=Tvm(mcpu="haswell"))


class Heads(nn.Module):
    """Products of two tensors, a batch of them, between products with weights."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z: torch.Tensor = x + self.last(torch.softmax(y @ y.transpose(1, 2), -1) @ y)
        return z


UNEVEN: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "pointwise": (Layer(nn.Conv2d(24, 80, 1)), (3, 24, 14, 14)),
    "bands": (Layer(nn.Conv2d(16, 80, 3, 2, 1)), (1, 16, 28, 38)),
    "minimal filtering": (Layer(nn.Conv2d(80, 80, 3, 1, 1)), (1, 80, 30, 30)),
    "depthwise and pointwise": (Separable(32, 80), (1, 32, 16, 19)),
    "columns without a divisor": (Layer(nn.Conv2d(24, 176, 1)), (2, 24, 3, 23)),
    "tokens and heads": (Heads(48, 80), (2, 29, 48)),
    "few channels": (Heads(24, 48), (1, 37, 24)),
    "no whole vectors": (nn.Sequential(nn.Linear(30, 101), nn.ReLU(), nn.Linear(101, 37)), (3, 5, 30)),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", UNEVEN)
def test_tiles_need_not_divide_their_axes(case: str, threads: int) -> None:
    layer, shape = UNEVEN[case]
    compiled(layer, *shape, threads=threads, on=Tvm(mcpu="haswell") if threads > 1 else None)


def test_weights_grow_by_as_much_as_may_be() -> None:
    layer = Layer(nn.Conv2d(128, 128, 3, 1, 1))
    assert not any("winograd" in name for name in compiled(layer, 1, 128, 16, 16))
    assert any("winograd" in name for name in compiled(layer, 1, 128, 16, 16, on=Tvm(growth=3)))


def test_a_smaller_last_tile_is_code_of_its_own() -> None:
    """Else each multiply-add would ask whether it is needed: 176 channels are no whole number of tiles."""
    import tvm

    from graphprune.backends.tvm.lower import imported, lowered

    loops: dict[str, list[str]] = {}

    @tvm.instrument.pass_instrument
    class Watch:
        def run_after_pass(self, module: Any, info: Any) -> None:
            if info.name == "s_tir.LoopPartition":
                loops.update({str(name): f.script().splitlines() for name, f in module.functions_items()})

    on = Tvm(mcpu="haswell")
    program = gp.load(Layer(nn.Conv2d(24, 176, 1)).eval(), torch.zeros(1, 24, 14, 14))
    module = lowered(imported(program.host)[0], on._llvm())
    with tvm.transform.PassContext(opt_level=3, instruments=[Watch()]):
        tvm.compile(module, on._llvm())
    (conv,) = (lines for name, lines in loops.items() if "conv2d" in name)
    parallel = [k for k, line in enumerate(conv) if "T.parallel(" in line]
    assert len(parallel) == 2
    asked = [line for line in conv[parallel[0] : parallel[1]] if "if " in line and "T.bool(True)" not in line]
    assert not asked


def test_an_axis_to_squeeze_may_be_counted_from_the_last() -> None:
    class Squeezed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(-1, keepdim=True).squeeze(-1)

    compiled(nn.Sequential(nn.Conv2d(3, 8, 3), Squeezed()), 1, 3, 8, 8)
