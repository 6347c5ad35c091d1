"""Layers that are two each: exact, cut, chosen whole where that is no larger, replayed, and refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
import torch
from residual import transformer
from torch import nn

import graphprune as gp
from graphprune.allocation import Allocation
from graphprune.cost.static import macs, params
from graphprune.errors import DataError
from graphprune.ir.facts import Groups, Scores
from graphprune.ir.program import Program
from graphprune.pipeline.compare import relative
from graphprune.pipeline.factoring import Factor, undecided
from graphprune.pipeline.plan_file import read_plan, write_plan
from graphprune.pipeline.replay import replay

RANKS = "group{only=*rank},score,mask{macs=0.6x allocate=global},propagate"


class Kernels(nn.Module):
    """Convolutions of which the first narrows with a stride, the second narrows, and the third is depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.Conv2d(12, 6, 3, padding="same")
        self.c, self.d, self.head = (
            nn.Conv2d(6, 6, 3, groups=6),
            nn.Conv2d(6, 14, 3, dilation=2, padding=2),
            nn.Linear(14, 9),
        )
        self.last = nn.Parameter(torch.empty(5, 9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        x = torch.relu(self.head(torch.relu(self.d(self.c(x))).mean((2, 3))))
        return torch.mm(x, self.last.t())


def _torch() -> Program:
    module, x = transformer(2)
    return gp.load(module, (x,), data=[np.random.default_rng(0).standard_normal((32, 4, 5))])


def _kernels() -> Program:
    module = nets.randomise(Kernels().double().eval())
    x = torch.randn(2, 3, 11, 11, dtype=torch.float64)
    return gp.load(module, (x,), data=[np.random.default_rng(0).standard_normal((16, 3, 11, 11))])


def _onnx() -> Program:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]> net (float[N,3,9,9] x) => (float[N,9] y) {
            a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, aw, ab)
            b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (b, cw)
            d = Relu (c)
            e = ReduceMean <axes = [2, 3], keepdims = 0> (d)
            ft = Transpose <perm = [1, 0]> (fw)
            f = MatMul (e, ft)
            g = Add (f, fb)
            h = Relu (g)
            i = Gemm <transB = 1> (h, iw, ib)
            j = Relu (i)
            y = Gemm (j, yw, yb)
        }"""
    )
    rng = np.random.default_rng(1)
    shapes = {"aw": (8, 3, 3, 3), "ab": (8,), "cw": (6, 8, 3, 3), "fw": (12, 6), "fb": (12,), "iw": (10, 12),
              "ib": (10,), "yw": (10, 9), "yb": (9,)}  # fmt: skip
    weights = {name: rng.standard_normal(shape).astype(np.float32) / 3 for name, shape in shapes.items()}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    return gp.load(model, data=[rng.standard_normal((32, 3, 9, 9)).astype(np.float32)])


NETS = {"transformer": _torch(), "kernels": _kernels(), "onnx": _onnx()}
nets_of_all = pytest.mark.parametrize("net", NETS)


@nets_of_all
@pytest.mark.parametrize("options", ["", "{by=data share=all}", "{orders=kernel share=none}", "{orders=point}"])
def test_a_cut_of_ranks_is_proven_and_within_its_budget(net: str, options: str) -> None:
    done = gp.run(f"factor{options},{RANKS},compensate", given := NETS[net])
    checks = {check.what.partition(",")[0] for check in gp.verify(done)}
    assert {"pruned = masked", "opened = original"} <= checks
    whole = macs(given.graph, given.host)()
    assert macs(done.graph, done.host)() <= 0.6 * whole
    assert done.plan.of(Factor)[0].layers


@nets_of_all
def test_ranks_may_be_permuted_in_both_layers_and_in_no_fewer(net: str) -> None:
    opened = gp.run("factor,group{only=*rank}", NETS[net])
    x = NETS[net].data[0]
    expected = opened.host.run(x)[0]
    assert len(opened.fact(Groups)) >= 3
    for group in opened.fact(Groups):
        order = np.roll(np.arange(group.size), 1)
        for left_out in (None, *group.members):
            host = opened.host.copy()
            for member in group.members:
                if member is not left_out:
                    host.take(member.parameter, member.axis, order)
            found = relative(expected, host.run(x)[0])
            assert (found < 1e-5) == (left_out is None), (group.name, left_out, found)


@nets_of_all
def test_what_is_no_smaller_as_two_layers_stays_whole(net: str) -> None:
    given = NETS[net]
    done = gp.run("factor,group{only=*rank},score,mask{params=0.95x allocate=global},propagate", given)
    factored = done.plan.of(Factor)[0].layers
    assert 0 < len(factored) < len(gp.run("factor", given).plan.of(Factor)[0].layers)
    assert params(done.graph, done.host)() <= 0.95 * params(given.graph, given.host)()
    for name, one in factored.items():
        parts = {op.name: op for op in done.graph.ops}
        outers, inner = [parts[own] for own in one.outers], parts[f"{name}_rank"]
        two = sum(int(done.host.parameter(op.inputs[1].name).size) for op in (*outers, inner) if op.inputs[1])
        whole = one.inner.size * sum(outer.size for outer in one.outers.values()) / len(one.values) ** 2
        assert two < whole
    gp.verify(done)


def test_prices_are_the_lesser_of_whole_and_factored() -> None:
    opened = gp.run("factor,group,score", NETS["kernels"])
    groups, rng = opened.fact(Groups), np.random.default_rng(0)
    assert opened.graph.ops[0].name == "conv2d_rank"
    for count in (macs, params):
        cost = count(opened.graph, opened.host, ranks=undecided(opened))
        assert cost() == count(NETS["kernels"].graph, NETS["kernels"].host)()  # whole, as it was given
        problem = Allocation(opened, groups, opened.fact(Scores), cost, 0, "")
        assert problem.tables is not None
        for _ in range(20):
            counts = {group.name: int(rng.integers(1, group.size + 1)) for group in groups}
            expected = problem.price(counts)
            tables = problem.tables({name: np.array([k]) for name, k in counts.items()})
            assert tables is not None
            assert sum(float(table.sum()) for _, table in tables) == pytest.approx(expected)
            for name, k in counts.items():
                assert problem.prices(counts, name, np.array([1, k]))[1] == pytest.approx(expected)
            three = {group.dim: counts[group.name] for group in groups}
            plain = count(opened.graph, opened.host)(three)
            assert expected <= plain
        many = {group.name: np.arange(1, 101) for group in groups}
        assert problem.tables(many) is None, "a layer's two widths and its rank meet in one table, which is not made"
        fewest = {group.dim: 1 for group in groups if group.name.endswith("rank")}
        assert cost(fewest) == count(opened.graph, opened.host)(fewest)


def test_scores_are_singular_values() -> None:
    program = NETS["transformer"]
    weight = program.host.parameter("blocks.0.qkv.weight")
    values = np.linalg.svd(weight, compute_uv=False)
    for by, expected in (("energy", values**2 / (values**2).sum()), ("error", values / values[0])):
        scores = gp.run(f"factor,group{{only=*rank}},score{{ranks={by}}}", program).fact(Scores)
        assert np.allclose(scores.scores["blocks.0.qkv.rank"], expected, rtol=1e-9)


def test_with_data_no_other_rank_comes_closer_to_what_the_layer_makes() -> None:
    rng = np.random.default_rng(0)
    layer = nn.Linear(8, 6).double()
    x = rng.standard_normal((256, 8)) * np.geomspace(1, 0.01, 8)
    program = gp.load(nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 6).double()), (torch.from_numpy(x),), data=[x])
    weight, lost = program.host.parameter("0.weight"), {}
    for by in ("weights", "data"):
        one = gp.run(f"factor{{layers=0 by={by}}}", program).plan.of(Factor)[0].layers["linear"]
        (outer,) = one.outers.values()
        change = x @ (weight - outer[:, :3] @ one.inner[:3]).T
        lost[by] = float((change**2).sum(1).mean())
        if by == "data":
            assert np.isclose(lost[by], (one.values[3:] ** 2).sum(), rtol=1e-3)
        for column in outer.T:
            assert column[np.abs(column).argmax()] > 0
    assert lost["data"] < 0.99 * lost["weights"]


def test_a_plan_is_replayed_to_the_last_bit_and_refused_where_it_does_not_fit(tmp_path: Path) -> None:
    given = NETS["transformer"]
    done = gp.run(f"factor{{by=data}},{RANKS}", given)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_plan(tmp_path / name, gp.run(f"factor{{by=data}},{RANKS}", given).plan)
    for file in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    again = gp.apply(read_plan(tmp_path / "a" / "plan.json"), transformer_again())
    assert all(np.array_equal(again.host.parameter(n), done.host.parameter(n)) for n in done.graph.parameters)


def transformer_again() -> Program:
    return Program(NETS["transformer"].source, NETS["transformer"].source)


def _step() -> dict[str, Any]:
    return copy.deepcopy(gp.run("factor{layers=blocks.0.up}", NETS["transformer"]).plan.edits[0].step())


def _inner(change: Any) -> Any:
    return lambda s: s["weights"].update({k: change(v) for k, v in s["weights"].items() if k.endswith("inner")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["layers"].append(["x"]), "is missing"),
        (lambda s: s["layers"].append(s["layers"][0]), "twice"),
        (_inner(lambda v: v * 2), "do not make"),
        (_inner(lambda v: v[1:]), "do not fit"),
        (_inner(lambda v: v * np.nan), "NaN"),
    ],
)
def test_a_malformed_plan_is_refused(change: Any, message: str) -> None:
    step = _step()
    change(step)
    plan = {"version": 2, "steps": [step], "parameters": {}}
    with pytest.raises(gp.GraphpruneError, match=message):
        replay(plan, NETS["transformer"].source)


def test_the_users_own_module_has_no_place_for_two_layers() -> None:
    module, x = transformer(2)
    done = gp.run(f"factor,{RANKS}", gp.load(module, (x,)))
    with pytest.raises(gp.GraphpruneError, match="`factor` made two layers of one"):
        gp.apply(done, module, (x,), in_place=True)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("factor{by=size}", "`by` cannot be `size`"),
        ("factor{layers=nothing}", "no layer can be factored"),
        ("factor,group,score,mask{macs=0.5x allocate=global}", "cannot weigh channels against ranks"),
        ("factor,group,loosen", "does not follow `factor`"),
        ("factor,group,score,mask{latency=0.5x}", "cannot weigh channels against ranks"),
    ],
)
def test_what_cannot_be_is_refused(recipe: str, message: str) -> None:
    with pytest.raises(gp.GraphpruneError, match=message):
        gp.run(recipe, NETS["transformer"])


class Alike(nn.Module):
    """Three linear layers that read the same: of ``ranks`` that they have in common, or each of inputs of its own."""

    def __init__(self, common: bool) -> None:
        super().__init__()
        layers = [nn.Linear(12, 8) for _ in range(3)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(24, 2)
        nets.randomise(self.double())
        read = torch.randn(4, 12, dtype=torch.float64)
        for k, layer in enumerate(layers):
            with torch.no_grad():
                mine = torch.eye(12, dtype=torch.float64)[4 * k : 4 * k + 4]
                layer.weight.copy_(layer.weight[:, :4] @ (read if common else mine))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.cat([torch.relu(layer(x)) for layer in self.layers], 1))
        return out


@pytest.mark.parametrize("by", ["weights", "data"])
def test_layers_that_read_the_same_share_what_they_read_where_less_is_lost_so(by: str) -> None:
    x = torch.randn(16, 12, dtype=torch.float64)
    for common, expected in ((True, [3]), (False, [1, 1, 1])):
        given = gp.load(Alike(common).eval(), (x,), data=[x.numpy()])
        opened = gp.run(f"factor{{layers=layers* by={by}}}", given)
        assert [len(one.outers) for one in opened.plan.of(Factor)[0].layers.values()] == expected
        done = gp.run(f"factor{{layers=layers* by={by}}},{RANKS.replace('0.6x', '0.7x')}", given)
        assert all(check.holds for check in gp.verify(done))
        lost = relative(given.host.run([x.numpy()])[0], done.host.run([x.numpy()])[0])
        assert (lost < 1e-9) == common  # whose rank is four


def test_a_kernel_is_two_along_its_axes_where_less_is_lost_so() -> None:
    def kernel(conv: nn.Conv2d, separable: bool) -> nn.Conv2d:
        with torch.no_grad():
            if separable:
                conv.weight.copy_(conv.weight[:, :, :, :1] * conv.weight[:1, :1, :1])
        return conv

    for separable, taps in ((True, [(5, 1), (1, 5)]), (False, [(5, 5), (1, 1)])):
        conv = kernel(nn.Conv2d(6, 4, 5, padding=2, dilation=1).double(), separable)
        x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
        program = gp.load(nn.Sequential(conv, nn.ReLU(), nn.Conv2d(4, 4, 1).double()), (x,))
        orders = "least" if separable else "kernel"
        (one,) = gp.run(f"factor{{layers=0 orders={orders}}}", program).plan.of(Factor)[0].layers.values()
        assert [one.inner.shape[2:], *(outer.shape[2:] for outer in one.outers.values())] == taps


def test_a_quantised_weight_stays_whole_and_is_named() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]> net (float[N,6] x) => (float[N,5] y)
           <float s = {0.1}, int8 z = {0}> {
            w = DequantizeLinear (q, s, z)
            a = Gemm <transB = 1> (x, w)
            b = Relu (a)
            y = Gemm <transB = 1> (b, v)
        }"""
    )
    rng = np.random.default_rng(0)
    tensors = {"q": rng.integers(-9, 9, (8, 6)).astype(np.int8), "v": rng.standard_normal((5, 8)).astype(np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in tensors.items())
    opened = gp.run("factor", gp.load(model))
    assert [*opened.plan.of(Factor)[0].layers] == ["y"]
    assert "leaves whole: w (its weight is shared, computed or quantised)" in " ".join(opened.notes)


def test_layers_that_stay_whole_are_named() -> None:
    notes = " ".join(gp.run("factor", NETS["kernels"]).notes)
    assert "leaves whole: c (6 groups)" in notes


def test_smooth_data_that_few_directions_hold_has_singular_values() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    ramps = (100 * torch.rand(48, 1, 1, 1) + torch.linspace(0, 1, 12)).expand(48, 3, 12, 12).clone()
    given = gp.load(net.eval(), ramps[:2], data=ramps)
    done = gp.run("factor{by=data}", given)
    (was,), (now,) = (one.host.run([ramps.numpy()]) for one in (given, done))
    assert relative(was, now) < 1e-5


class Masked(nn.Module):
    """A stream between RMS norms, one number of which is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.up, self.down, self.head = (nn.Linear(*of) for of in ((4, 6), (6, 8), (8, 6), (6, 3)))
        self.norm, self.last = nn.RMSNorm(6, eps=1e-5), nn.RMSNorm(6, eps=1e-5)
        with torch.no_grad():
            self.up.bias[0] = torch.inf

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.emb(x)
        x = self.head(self.last(x + self.down(self.up(self.norm(x)).relu())))
        return x


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("factor{by=data}", "what down"),
        ("rotate", "what last"),
        ("group,score{by=obs}", "what down"),
        ("group{only=emb},score{by=random},mask{channels=0.5x},propagate,compensate", "what up"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_infinite_is_named_where_it_is_found(recipe: str, said: str) -> None:
    given = gp.load(Masked().eval(), torch.randn(2, 4), data=torch.randn(32, 4))
    with pytest.raises(DataError, match=f"{said} .* is infinite"):
        gp.run(recipe, given)
