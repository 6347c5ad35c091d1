"""`dead` cuts what is proven to count for nothing, for every input, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.parser
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.errors import VerificationError
from graphprune.ir.facts import Keep
from graphprune.ir.program import Program
from graphprune.passes import dead

SIZES = (0.0, 1.0, -1.0, 30.0, -30.0, 1e6, -1e6)


def kept(program: Program, recipe: str = "group,dead") -> list[list[int]]:
    return [at.tolist() for at in gp.run(recipe, program).fact(Keep).keep.values()]


def cut(program: Program) -> Program:
    """Cut, proven, and equal to the original on large, negative and zero inputs alike."""
    done = gp.run("group,dead,propagate", program)
    assert [check.what.partition(",")[0] for check in gp.verify(done)][1] == "pruned = original"
    rng = np.random.default_rng(1)
    for size in SIZES:
        batch = [size * (rng.standard_normal(x.shape).astype(x.dtype)) for x in program.host.example()]
        for mine, theirs in zip(program.host.run(batch), done.host.run(batch), strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=0, atol=1e-12 * max(np.abs(mine).max(), 1e-300))
    return done


class Gate(nn.Module):
    """x -> linear(act(affine(x))): channels that a gate with a bias shuts for small inputs."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor], channels: int = 6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.1, 1, channels, dtype=torch.float64))
        self.last = nn.Linear(channels, 3).double()
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.act(x * self.scale))
        return out


GATES = {
    "never proven": (lambda x: F.relu(x - 3.0), False),
    "the same, by a far bound": (lambda x: F.relu(x - 100.0), False),
    "square": (lambda x: F.relu(-torch.square(x)), True),
    "sigmoid below its bias": (lambda x: F.relu(torch.sigmoid(x) - torch.ones(6, dtype=torch.float64) * 2), True),
    "sigmoid above it": (lambda x: F.relu(torch.sigmoid(x) - torch.ones(6, dtype=torch.float64) * 0.5), False),
    "hardtanh": (lambda x: F.relu(F.hardtanh(x, -2, 2) - torch.full((6,), 2.0, dtype=torch.float64)), True),
    "hardtanh, a bound short": (lambda x: F.relu(F.hardtanh(x, -2, 2) - torch.full((6,), 1.9).double()), False),
    "relu6": (lambda x: F.relu(F.relu6(x) - torch.full((6,), 6.5, dtype=torch.float64)), True),
    "one side open": (lambda x: F.relu(x.clamp(min=-2) - torch.full((6,), 2.0, dtype=torch.float64)), False),
    "softplus": (lambda x: F.relu(-F.softplus(x)), True),
    "softplus, steeper": (lambda x: F.relu(F.softplus(-x, beta=2) - torch.full((6,), 1.0).double()), False),
    "tanh of sums": (lambda x: F.relu(torch.tanh(x) + torch.tanh(-x) - torch.full((6,), 2.0).double()), True),
    "abs": (lambda x: F.relu(-x.abs()), True),
    "no function known": (lambda x: F.relu(F.silu(x) - torch.full((6,), 3.0).double()), False),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_shut_only_where_no_input_opens_it(name: str) -> None:
    act, shut = GATES[name]
    torch.manual_seed(0)
    program = gp.load(Gate(act).eval(), torch.randn(4, 1, dtype=torch.float64))
    assert kept(program) == [[0] if shut else list(range(6))]
    cut(program)


def chain(*, bias: float, act: nn.Module | None = None) -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), act or nn.ReLU(), nn.Linear(5, 3)).double().eval()
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0, bias
    return gp.load(net, torch.randn(3, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("bias", "act", "dead", "constant"),
    [
        (-1.0, nn.ReLU(), True, True),
        (0.0, nn.ReLU(), True, True),
        (1.0, nn.ReLU(), False, True),
        (0.0, nn.Sigmoid(), False, True),
        (0.0, nn.GELU(), True, True),  # of no known bounds: what it makes of one number is asked of the host
        (0.3, nn.GELU(), False, True),
        (-4.0, nn.Hardswish(), True, True),
        (0.0, nn.Softplus(), False, True),
        (0.0, nn.Dropout(0.5), True, True),
    ],
)
def test_zero_weights_leave_a_constant(bias: float, act: nn.Module, dead: bool, constant: bool) -> None:
    program = chain(bias=bias, act=act)
    assert (2 not in kept(program)[0]) is dead
    assert (2 not in kept(program, "group,dead{constant=true}")[0]) is constant
    cut(program)


def test_a_padded_constant_is_not_the_same_everywhere_and_a_padded_zero_is() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).double().eval()
    with torch.no_grad():
        norm.weight[1:3] = 0
        norm.bias[1], norm.bias[2] = 0.5, -0.5
    program = gp.load(net, torch.randn(2, 3, 5, 5, dtype=torch.float64))
    assert kept(program) == kept(program, "group,dead{constant=true}") == [[0, 1, 3]]
    cut(program)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.max_pool2d(x + F.relu(self.a(x)), 2)
        x = x + F.relu6(self.b(x))
        out: torch.Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


def test_a_residual_channel_is_dead_where_every_branch_of_it_is() -> None:
    torch.manual_seed(0)
    net: Any = Residual().double().eval()
    with torch.no_grad():
        for layer in (net.stem, net.a, net.b):
            layer.weight[1], layer.bias[1] = 0, -0.5  # everywhere
        for layer in (net.stem, net.a):
            layer.weight[3], layer.bias[3] = 0, -0.5  # in all but one branch
        net.head.weight[:, 5] = 0  # unread there, and read by a and b
    program = gp.load(net, torch.randn(2, 3, 6, 6, dtype=torch.float64))
    assert kept(program) == [[0, 2, 3, 4, 5]]
    cut(program)


def test_the_sign_of_what_is_rectified_counts() -> None:
    """What is not negative, times weights that are not positive, is below a ReLU behind it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    middle: Any = net[2]
    with torch.no_grad():
        middle.weight[4], middle.bias[4] = -middle.weight[4].abs(), -0.1
    program = gp.load(net, torch.randn(3, 4, dtype=torch.float64))
    assert kept(program) == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 5]]
    cut(program)


class Attend(nn.Module):
    """A hidden layer that a norm bounds, behind attention that sums values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 5), nn.Linear(5, 4)
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = torch.softmax(self.q(x) @ self.k(x).transpose(-1, -2), -1)
        x = self.norm(self.out(scores @ self.v(x)))
        out: torch.Tensor = self.down(F.relu(self.up(x)))
        return out


def test_attention_sums_values_and_a_norm_bounds_what_is_behind_it() -> None:
    torch.manual_seed(0)
    net = Attend().double().eval()
    with torch.no_grad():
        for layer, channel in ((net.v, 3), (net.q, 1), (net.q, 2), (net.k, 1)):
            layer.weight[channel], layer.bias[channel] = 0, 0  # queries and keys: dead where both are
        net.up.weight[:2], net.up.bias[0], net.up.bias[1] = 1, -8.01, -7.9  # 4 numbers of 2 at most
    program = gp.load(net, torch.randn(2, 7, 4, dtype=torch.float64))
    keep = {name: at.tolist() for name, at in gp.run("group,dead", program).fact(Keep).keep.items()}
    assert (keep["v"], keep["up"]) == ([0, 1, 2, 4], list(range(1, 8)))
    assert [at for name, at in keep.items() if name in "qk"] == [[0, 2, 3, 4, 5]]
    cut(program)


class Shut(nn.Module):
    """The second layer is shut by all channels of the first together: by one of them it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)
        nn.init.constant_(self.second.weight, -3)
        nn.init.constant_(self.second.bias, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(F.relu(self.second(F.hardtanh(self.first(x), 1, 2))))
        return out


@pytest.mark.parametrize(
    ("unread", "left"), [([], (4, 1)), ([0, 1, 2, 3, 4], (1, 1)), ([2], (1, 1))], ids=["read", "unread", "one unread"]
)
def test_the_one_channel_that_a_dead_group_keeps_is_as_it_was(unread: list[int], left: tuple[int, int]) -> None:
    """It stays zero with all that makes it so; one that nothing reads may become anything."""
    torch.manual_seed(0)
    net = Shut().double().eval()
    with torch.no_grad():
        net.last.weight[:, unread] = 0
    done = cut(gp.load(net, torch.randn(7, 3, dtype=torch.float64)))
    assert (len(done.host.parameter("first.weight")), len(done.host.parameter("second.weight"))) == left


class Shared(nn.Module):
    """Four heads of queries over two of keys and values, of two channels each."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(4, 8), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, _ = x.shape
        heads = ((self.q, 4), (self.k, 2), (self.v, 2))
        q, k, v = (layer(x).view(n, length, count, 2).transpose(1, 2) for layer, count in heads)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        out: torch.Tensor = self.out(y.transpose(1, 2).reshape(n, length, 8))
        return out


@pytest.mark.parametrize(("zeros", "widths"), [((1, 3), (8, 4, 2, 4)), ((2, 3), (8, 4, 4, 8))])
def test_values_that_several_heads_share(zeros: tuple[int, int], widths: tuple[int, ...]) -> None:
    """A channel of every head of the values is dead where it is zero in all of them; one head is not proven to be."""
    torch.manual_seed(0)
    net = Shared().double().eval()
    with torch.no_grad():
        net.v.weight[list(zeros)], net.v.bias[list(zeros)] = 0, 0
    done = cut(gp.load(net, torch.randn(2, 7, 4, dtype=torch.float64)))
    weights = [done.host.parameter(f"{layer}.weight") for layer in ("q", "k", "v", "out")]
    assert tuple(w.shape[name == 3] for name, w in enumerate(weights)) == widths


def planted(seed: int) -> Any:
    """Convolutions, activations, norms and a concat at random; some channels dead, some nearly."""
    rng, widths = np.random.default_rng(seed), [5, 6]
    torch.manual_seed(seed)
    acts = [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU]
    norm = nn.BatchNorm2d if seed % 2 else lambda n: nn.Identity()
    first = nn.Sequential(nn.Conv2d(3, widths[0], 1), norm(widths[0]), acts[rng.integers(7)]())
    second = nn.Sequential(nn.Conv2d(3, widths[1], 3, padding=1), norm(widths[1]), acts[rng.integers(7)]())

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second
            self.mid, self.last = nn.Conv2d(sum(widths), 6, 3, padding=1), nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.cat([self.first(x), self.second(x)], 1)
            out: torch.Tensor = self.last(F.relu(F.avg_pool2d(self.mid(x), 3, 1, 1)))
            return out

    net: Any = Both().double().eval()
    with torch.no_grad():
        for layer in (net.first[0], net.second[0], net.mid):
            for channel in rng.permutation(len(layer.weight))[:2]:
                layer.weight[channel] *= float(rng.choice([0, 1e-9]))
                layer.bias[channel] = float(rng.choice([-8, 0]))
        net.first[0].bias[2], net.last.weight[:, 0] = -4, 0
    return net


@pytest.mark.parametrize("seed", range(8))
def test_random_networks_compute_the_same_without_their_dead(seed: int) -> None:
    program = gp.load(planted(seed), torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert len(kept(program)[-1]) <= 5  # at least the one that nothing reads
    cut(program)


def test_on_onnx_clip_and_global_pooling_are_known() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]> net (float[2,3,5,5] x) => (float[2,2] y)
        <float[4,3,1,1] w, float[4] b, float six = {6}, float zero = {0}, float[4,1,1] off, float[2,4] h> {
            c = Conv (x, w, b)
            r = Clip (c, zero, six)
            s = Sub (r, off)
            t = Relu (s)
            p = GlobalAveragePool (t)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, h)
        }"""
    )
    rng = np.random.default_rng(0)
    del model.graph.initializer[:]
    values = {"w": (4, 3, 1, 1), "b": (4,), "h": (2, 4)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in values.items()}
    arrays |= {"six": np.full((), 6, np.float32), "zero": np.zeros((), np.float32)}
    arrays["off"] = np.float32([1, 6, 5.9, 7]).reshape(4, 1, 1)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())
    program = gp.load(model)
    assert kept(program) == [[0, 2]]
    done = gp.run("group,dead,propagate", program)
    assert gp.verify(done)[1].what.startswith("pruned = original")


def test_a_false_claim_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked and pruned agree on a live channel that is gone; the original does not."""
    whole = dead._idle

    def wrong(*args: object) -> dead.Idle:
        idle = whole(*args)
        for silent in idle.silent.values():
            silent[1] = True
        return idle

    monkeypatch.setattr(dead, "_idle", wrong)
    torch.manual_seed(0)
    program = gp.load(Gate(lambda x: F.relu(x - 9.0)).eval(), torch.randn(4, 1, dtype=torch.float64))
    done = gp.run("group,dead,propagate", program)
    with pytest.raises(VerificationError, match=r"differs from the original by .*: a channel that was cut as counting"):
        gp.verify(done)


def test_what_was_cut_for_other_reasons_is_not_held_to_the_original() -> None:
    done = gp.run("group,score{by=l1},mask{channels=0.5x},propagate", chain(bias=1))
    assert [check.what.partition(",")[0] for check in gp.verify(done)] == [
        "pruned = masked",
        "as read = as given",
        "plan replayed = weights",
    ]


RESTORED = "group,dead{constant=true},propagate,compensate{by=mean}"


def constants(dtype: torch.dtype = torch.float64) -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)).to(dtype).eval()
    with torch.no_grad():
        net[0].weight[:3], net[0].bias[:3] = 0, torch.tensor([-1.0, 0.5, 3.0])
    x = torch.randn(16, 4, dtype=dtype)
    return gp.load(net, x, data=x.numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_constants_whose_means_are_added_are_held_to_the_original(dtype: torch.dtype) -> None:
    done = gp.run(RESTORED, constants(dtype))
    assert {len(at) for at in done.plan["steps"][0]["keep"].values()} == {3}
    check = gp.verify(done)[1]
    assert check.what.startswith("pruned = original") and check.error <= (1e-12 if dtype == torch.float64 else 1e-6)


def test_constants_whose_part_is_lost_are_told() -> None:
    done = gp.run("group,dead{constant=true},propagate", constants())
    assert any("is lost unless `compensate{by=mean}` follows" in note for note in done.notes)
    assert not any("original" in check.what for check in gp.verify(done))


def test_a_false_claim_of_a_constant_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dead._idle

    def wrong(*args: Any) -> dead.Idle:
        idle = whole(*args)
        for silent in idle.silent.values():
            silent[-1] = True
        return idle

    monkeypatch.setattr(dead, "_idle", wrong)
    done = gp.run(RESTORED, constants())
    with pytest.raises(VerificationError, match="differs from the original by"):
        gp.verify(done)
