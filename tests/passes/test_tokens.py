"""Tokens dropped between blocks: what stays is what formulas say, the rest is as masked, what cannot be is refused."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from assert_pass import assert_pass
from nets import randomise, told_apart
from torch import Tensor, nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.axes.index import Index
from graphprune.cost.static import macs
from graphprune.errors import ModelError, RecipeError, VerificationError
from graphprune.ir.facts import Groups
from graphprune.ir.program import Program
from graphprune.pipeline import tokens as dropping
from graphprune.pipeline.compare import relative
from graphprune.pipeline.plan_file import read_plan, write_plan
from graphprune.pipeline.replay import replay

WIDTH, HEADS, PATCHES, BLOCKS = 8, 2, 9, 4
TOLERANCE = {"torch": 1e-12, "onnx": 1e-5}
X = torch.randn(5, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Block(nn.Module):
    """Attention written out, or as one op, or with heads and samples in one axis; an MLP."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kind == "fused":
            return F.scaled_dot_product_attention(q, k, v)
        if self.kind == "flat":
            b, h, n, d = q.shape
            q, k, v = (one.reshape(b * h, n, -1) for one in (q, k, v))
            return torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)) * d**-0.5, -1), v).view(b, h, n, -1)
        return F.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        y = self.attended(self.heads(self.q(y)), self.heads(self.k(y)), self.heads(self.v(y)))
        x = x + self.o(y.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Patches of an image, in front of them a class token or none; what the head reads is said by ``read``."""

    def __init__(self, kind: str = "written", first: bool = True, read: str = "first") -> None:
        super().__init__()
        self.patches, self.read = nn.Conv2d(3, WIDTH, 2, 2), read
        self.first = nn.Parameter(torch.zeros(1, 1, WIDTH)) if first else None
        self.places = nn.Parameter(torch.zeros(1, PATCHES + first, WIDTH))
        self.blocks = nn.ModuleList(Block(kind) for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)

    def embed(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.first is not None:
            x = torch.cat((self.first.expand(x.shape[0], -1, -1), x), 1)
        return x + self.places

    def pooled(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.read == "patches":
            return self.head(x[:, 1:].mean(1))
        if self.read == "first":
            return self.head(x[:, 0])
        return self.head(x.mean(1) if self.read == "mean" else x.amax(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.pooled(x)


KINDS = {
    "written": ("written", True, "first"),
    "fused": ("fused", True, "patches"),
    "flat": ("flat", True, "first"),
    "mean": ("written", False, "mean"),
    "max": ("fused", False, "max"),
}


@cache
def module(kind: str) -> Encoder:
    return told_apart(Encoder(*KINDS[kind]).double().eval())


@cache
def program(net: str) -> Program:
    kind, host = net.split()
    if host == "torch":
        return gp.load(module(kind), (X[:2],), data=[X.numpy()])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        gp.load(copy.deepcopy(module(kind)).float(), (X[:2].float(),)).host.save_onnx(path)
        return gp.load(path, data=[X.float().numpy()])


def reference(made: Encoder, x: Tensor, keep: tuple[int, ...], after: tuple[int, ...], by: str) -> Tensor:
    """The same in plain torch, token by token where that is plainer."""
    x, first, flow = made.embed(x), int(made.first is not None), None
    for number, block in enumerate(made.blocks, 1):
        y = block.norm1(x)
        q, k, v = (block.heads(layer(y)) for layer in (block.q, block.k, block.v))
        shares = F.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, -1)
        attended = (shares[:, :, 0] if first else shares.mean(2)).mean(1)[:, first:]
        score = attended / attended.sum(1, keepdim=True)
        if first:
            alike = F.softmax(torch.einsum("bhd,bhjd->bhj", v[:, :, 0], v), -1).mean(1)[:, 1:]
            score = score + alike / alike.sum(1, keepdim=True)
        score = score * v.mean(1).abs().sum(-1)[:, first:]
        flow = score if flow is None else (flow + score) / 2
        x = block(x)
        if number in after:
            best = keep[after.index(number)]
            ids = torch.stack(
                [torch.sort(torch.argsort(-one)[:best])[0] for one in (flow if by == "flow" else attended)]
            )
            x = torch.stack([torch.cat((one[:first], one[first:][at])) for one, at in zip(x, ids, strict=True)])
            flow = torch.stack([one[at] for one, at in zip(flow, ids, strict=True)])
    return made.pooled(x)


hosts = pytest.mark.parametrize("host", TOLERANCE)


STAGES = (("4", "2", "attention"), ("7|3", "1|3", "flow"))


CASES = [(host, kind, *how) for host in TOLERANCE for kind in KINDS for how in STAGES]
QUICK = (("torch", "written", *STAGES[1]), ("torch", "mean", *STAGES[0]), ("onnx", "fused", *STAGES[1]))


@pytest.mark.parametrize(
    ("host", "kind", "keep", "after", "by"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_what_stays_is_what_the_formulas_say_and_the_rest_is_as_masked(
    host: str, kind: str, keep: str, after: str, by: str
) -> None:
    given = program(f"{kind} {host}")
    done = gp.run(f"tokens{{keep={keep} after={after} by={by}}}", given)
    x = X.numpy().astype(given.host.example()[0].dtype)  # more samples than it was read with
    found, whole = done.host.run([x])[0], given.host.run([x])[0]
    counts = (tuple(map(int, text.split("|"))) for text in (keep, after))
    with torch.no_grad():
        wanted = reference(module(kind), X, *counts, by).numpy()
    assert relative(wanted, found) <= TOLERANCE[host]
    assert relative(whole, found) > 1e-3, "nothing was dropped"
    checks = {check.what.rpartition(",")[0]: check for check in gp.verify(done)}
    assert checks["opened = original, what was dropped masked"].holds


@pytest.mark.parametrize(
    ("host", "kind", "by"),
    [
        ("torch", "written", "flow"),
        ("torch", "mean", "attention"),
        ("torch", "flat", "random"),
        ("onnx", "fused", "flow"),
    ],
)
def test_all_tokens_that_stay_change_nothing(host: str, kind: str, by: str) -> None:
    given = program(f"{kind} {host}")
    done = gp.run(f"tokens{{keep=1.0x after=2 by={by}}}", given)
    x = X.numpy().astype(given.host.example()[0].dtype)
    assert relative(given.host.run([x])[0], done.host.run([x])[0]) <= TOLERANCE[host]


@pytest.mark.slow
def test_random_places_are_the_same_in_every_sample_and_go_by_the_seed() -> None:
    given = program("mean torch")
    done = [gp.run("tokens{keep=3 after=2 by=random}", replace(given, seed=seed)) for seed in (0, 0, 1)]
    ids = next(op.outputs[0].name for op in done[0].graph.ops if op.kind == "sort")
    seen = [one.host.watch([X.numpy()], [ids])[ids] for one in done]
    assert (seen[0] == seen[0][:1]).all()
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])
    gp.verify(done[2])


@hosts
def test_blocks_behind_cost_as_many_tokens_as_they_have(host: str) -> None:
    given = program(f"fused {host}")
    done = gp.run("tokens{keep=4 after=2 by=random}", given)
    n, k, d = PATCHES + 1, 5, WIDTH

    def block(n: int) -> int:
        return n * (4 * d * d + 2 * 12 * d) + 2 * n * n * d

    assert macs(given.graph, given.host)() - macs(done.graph, done.host)() == 2 * (block(n) - block(k))
    mean = next(op for op in done.graph.ops if op.kind == "reduce" and (op.outputs[0].shape or ())[1:] == (WIDTH,))
    assert mean.inputs[0] is not None
    assert mean.inputs[0].shape is not None
    assert mean.inputs[0].shape[1] == k - 1  # the class token is left out by the network itself


LATER = "group,score{by=obs},mask{macs=0.6x},propagate,compensate"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "kind", "by"),
    [
        ("torch", "written", "attention"),
        ("torch", "flat", "flow"),
        ("onnx", "fused", "attention"),
        ("onnx", "mean", "flow"),
    ],
)
def test_channels_are_cut_after_it_with_a_proof(host: str, kind: str, by: str) -> None:
    done = gp.run(f"tokens{{keep=5 after=2 by={by}}},{LATER}", program(f"{kind} {host}"))
    assert all(check.holds for check in gp.verify(done))
    assert done.plan["parameters"]
    assert sum(layer.startswith("blocks.2") for layer in done.plan["parameters"]) > 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    ["rms,rotate{untie=true},tokens{keep=5 after=2},group{places=stream}", "factor,tokens{keep=5 after=2},group"],
)
def test_what_opens_dims_may_come_before(recipe: str) -> None:
    done = gp.run(f"{recipe},score,mask{{params=0.7x}},propagate", program("mean torch"))
    assert all(check.holds for check in gp.verify(done))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["written", "fused"])
def test_a_group_found_after_it_may_be_permuted_and_no_part_of_it_left_out(kind: str) -> None:
    opened = gp.run("tokens{keep=5 after=2 by=flow},group", program(f"{kind} torch"))
    before = opened.host.run([X.numpy()])[0]
    assert len(opened.fact(Groups)) >= 5
    for group in opened.fact(Groups):
        order = Index({group.dim: np.roll(np.arange(group.size), 1)})
        for left_out in (None, *(group.members if len(group.members) > 1 else ())):
            host = opened.host.copy()
            for value in opened.graph.parameters.values():
                for axis, dim in enumerate(value.dims):
                    if order.touches(dim) and (
                        left_out is None or (value.name, axis) != (left_out.parameter, left_out.axis)
                    ):
                        host.take(value.name, axis, order(dim))
            moved = relative(before, host.run([X.numpy()])[0])
            assert moved <= 1e-12 if left_out is None else moved > 1e-9 or str(left_out).endswith("k.bias[0]"), left_out


@pytest.mark.slow
def test_a_file_made_of_it_runs_for_any_number_of_samples(tmp_path: Path) -> None:
    done = gp.run("tokens{keep=4 after=2 by=flow}", gp.load(copy.deepcopy(module("written")).float(), (X[:2].float(),)))
    done.host.save_onnx(tmp_path / "net.onnx")
    done.host.save(tmp_path / "net.pt2")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for count in (1, 2, 5):
        x = X[:count].float().numpy()
        wanted = done.host.run([x])[0]
        (found,) = session.run(None, {session.get_inputs()[0].name: x})
        assert relative(wanted, found) <= 1e-5
        assert np.array_equal(gp.load(tmp_path / "net.pt2").host.run([x])[0], wanted)


@hosts
def test_a_plan_says_it_all(host: str, tmp_path: Path) -> None:
    given = program(f"written {host}")
    done = gp.run("tokens{keep=0.75x|0.5x after=1|3 by=flow},group,score,mask{params=0.8x},propagate", given)
    write_plan(tmp_path, done.plan)
    plan = read_plan(tmp_path / "plan.json")
    assert dict(plan)["steps"][0]["keep"] == [7, 4]
    again = replay(plan, given.host)
    x = X.numpy().astype(given.host.example()[0].dtype)
    assert np.array_equal(again.host.run([x])[0], done.host.run([x])[0])


def test_a_mask_that_forgets_an_attention_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    done = gp.run("tokens{keep=4 after=2}", program("written torch"))
    masks, seen = dropping._Making.mask, []

    def forgets(self: object, reading: object, alive: str) -> None:
        seen.append(reading)
        if len(seen) != 2:
            masks(self, reading, alive)

    monkeypatch.setattr(dropping._Making, "mask", forgets)
    with pytest.raises(VerificationError, match=r"after `tokens.*differs from the original"):
        gp.verify(done)
    assert len(seen) == 2


class Joined(Block):
    """The same with one linear for queries, keys and values, taken apart by an op of three outputs."""

    def __init__(self, block: Block) -> None:
        super().__init__("fused")
        self.double()
        self.load_state_dict(block.state_dict())
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        for name, weight in self.qkv.named_parameters():
            weight.data = torch.cat([getattr(layer, name) for layer in (self.q, self.k, self.v)]).detach()

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind()
        x = x + self.o(self.attended(q, k, v).transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def test_queries_keys_and_values_of_one_linear_are_as_those_of_three() -> None:
    joined = copy.deepcopy(module("fused"))
    joined.blocks = nn.ModuleList(map(Joined, module("fused").blocks)).eval()
    recipe = "tokens{keep=4 after=2 by=flow}"
    wanted = gp.run(recipe, program("fused torch")).host.run([X.numpy()])[0]
    done = gp.run(recipe, gp.load(joined, (X[:2],), data=[X.numpy()]))
    assert relative(wanted, done.host.run([X.numpy()])[0]) <= 1e-12
    assert all(check.holds for check in gp.verify(done))


class Registers(Encoder):
    """Two registers between the class token and patches, or last, put there when places have been added."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last, self.registers = last, nn.Parameter(torch.zeros(1, 2, WIDTH))

    def embed(self, x: Tensor) -> Tensor:
        x = super().embed(x)
        registers = self.registers.expand(len(x), -1, -1)
        return torch.cat((x, registers) if self.last else (x[:, :1], registers, x[:, 1:]), 1)


@pytest.mark.parametrize("last", [False, True])
def test_registers_stay_with_a_class_token_that_has_its_place(last: bool) -> None:
    given = gp.load(randomise(Registers(last).double().eval()), (X[:2],), data=[X.numpy()])
    done = gp.run("tokens{keep=4 after=2}", given)
    shapes = [op.outputs[0].shape or () for op in done.graph.ops if op.kind == "concat"]
    assert [shape[1] for shape in shapes] == [PATCHES + 1, PATCHES + 3, 4 + 3]
    assert all(check.holds for check in gp.verify(done))


class Odd(nn.Module):
    """Two attentions of an image's tokens, the second of which, or the head, reads them in its own way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.patches, self.head = how, nn.Conv2d(3, 4, 2, 2), nn.Linear(4, 2)
        self.mix = nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + F.softmax(x @ x.transpose(1, 2), -1) @ x
        x = x + F.softmax(x @ x.transpose(1, 2), -1) @ x
        if self.how == "image":
            x = x + x.transpose(1, 2).unflatten(2, (3, 3)).amax(3).repeat(1, 1, 3).transpose(1, 2)
        if self.how == "mix":
            x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        if self.how == "sum":
            x = x + x @ (x.transpose(1, 2) @ x)
        if self.how == "samples":
            x = x - x.mean(0)
        if self.how == "all":
            return self.head(x)
        if self.how == "var":
            return self.head(x.var(1))
        return self.head(x[:, 3] if self.how == "one" else x.mean(1))


REFUSED = {
    "image": "unflatten (reshape) folds tokens back into an image, or into windows of it",
    "mix": "mix (linear) reads `mix.weight`, which has numbers of its own for every token",
    "sum": "matmul_4 (matmul) adds tokens up, and not by shares of attention",
    "all": "`linear`, an output, has all tokens",
    "one": "select (select) picks a token by its number",
    "samples": "mean (reduce) computes along samples, of which each keeps tokens of its own",
    "var": "var (reduce) computes along tokens, and is no mean, sum or maximum of them",
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_cannot_do_without_tokens_is_refused_by_name(how: str) -> None:
    given = gp.load(Odd(how).double().eval(), (X[:2],))
    with pytest.raises(ModelError) as error:
        gp.run("tokens{keep=5}", given)
    assert f"no tokens can be dropped: {REFUSED[how]}" in error.value.message


class Windows(nn.Module):
    """Swin's: two blocks attend within four windows of an image each, which are folded into samples."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, WIDTH, 1), nn.Linear(WIDTH, 2)

    def attended(self, x: Tensor) -> Tensor:
        b, n = x.shape[0], HEADS
        x = x.view(b, 2, 3, 2, 3, WIDTH).transpose(2, 3).reshape(-1, 9, n, WIDTH // n).transpose(1, 2)
        x = F.scaled_dot_product_attention(x, x, x).transpose(1, 2)
        return x.reshape(b, 2, 2, 3, 3, WIDTH).transpose(2, 3).reshape(b, 36, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.attended(x)
        return self.head((x + self.attended(x)).mean(1))


def test_windows_are_refused_as_windows() -> None:
    given = gp.load(Windows().double().eval(), (X[:2],))
    with pytest.raises(ModelError, match=r"\(attention\) attends within windows of tokens, folded into samples"):
        gp.run("tokens{keep=5}", given)


def test_tokens_are_dropped_by_one_pass() -> None:
    with pytest.raises(RecipeError, match="`tokens` comes once in a recipe") as error:
        gp.run("tokens{keep=0.7x after=1},tokens{keep=0.5x after=2}", program("written torch"))
    assert "after=3|6 keep=0.7x|0.5x" in str(error.value.hint)


def test_a_file_in_half_precision_that_says_no_types(tmp_path: Path) -> None:
    """As tools leave them that strip what can be inferred."""
    path = tmp_path / "net.onnx"
    gp.load(copy.deepcopy(module("written")).half(), (X[:2].half(),)).host.save_onnx(path)
    file = onnx.load(path)
    del file.graph.value_info[:]
    onnx.save(file, path)
    done = gp.run("tokens{keep=0.5x after=2}", gp.load(path, data=[X.half().numpy()]))
    assert all(check.holds for check in gp.verify(done))
    exact = gp.run("tokens{keep=0.5x after=2}", program("written torch"))
    apart = relative(exact.host.run([X.numpy()])[0], done.host.run([X.half().numpy()])[0])
    assert 1e-6 < apart < 0.05


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("keep=0.5x|0.2x", "1 blocks and keep=0.5x|0.2x"),
        ("after=3|2 keep=0.5x|0.2x", "after=3|2 are no blocks in order"),
        ("after=first", "after=first are no blocks in order"),
        ("keep=most", "keep=most is no share or count"),
        ("keep=1.5x", "keep=1.5x is no share or count"),
        ("by=flows", "`by` cannot be `flows`"),
        ("after=4", "block 4 is none that another comes after: there are 4 of attention"),
        ("keep=20", "keep=20 keeps 20 of 9 tokens that may go"),
        ("keep=0", "keep=0 keeps no token"),
        ("after=1|2 keep=0.5x|0.8x", "keeps 7 of the 4 tokens that are left behind block 2"),
    ],
)
def test_options_that_make_no_sense_are_one_clear_error(options: str, said: str) -> None:
    with pytest.raises(gp.GraphpruneError) as error:
        gp.run(f"tokens{{{options}}}", program("written torch"))
    assert said in error.value.message


def test_a_class_of_the_users_has_no_place_for_it() -> None:
    made = copy.deepcopy(module("written"))
    done = gp.run("tokens{keep=4}", gp.load(made, (X[:2],)))
    with pytest.raises(ModelError, match="drops tokens between blocks, which the module's own class has no place for"):
        gp.apply(done, made, (X[:2],), in_place=True)


class Bare(nn.Module):
    """Two attentions without a weight of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + torch.softmax(x @ x.transpose(1, 2), -1) @ x
        return self.head(x.mean(1))


BARE = """
input  %x:Nx3x2
weight %head.bias:2
weight %head.weight:2x2
%transpose:Nx2x3 = transpose(%x) perm=[0, 2, 1]
%matmul:Nx3x3 = matmul(%x, %transpose)
%softmax:Nx3x3 = along(%matmul) axes=[-1] function=softmax
%matmul_1:Nx3x2 = matmul(%softmax, %x)
%add:Nx3x2 = pointwise(%x, %matmul_1) function=add zero=both
%transpose_1:Nx2x3 = transpose(%add) perm=[0, 2, 1]
%matmul_2:Nx3x3 = matmul(%add, %transpose_1)
%softmax_1:Nx3x3 = along(%matmul_2) axes=[-1] function=softmax
%matmul_3:Nx3x2 = matmul(%softmax_1, %add)
%add_1:Nx3x2 = pointwise(%add, %matmul_3) function=add zero=both
%mean:Nx2 = reduce(%add_1) axes=[1] function=mean keepdim=False zero=first
%linear:Nx2 = linear(%mean, %head.weight, %head.bias)
output %linear
"""
DROPPED = """
input  %x:Nx3x2
weight %head.bias:2
weight %head.weight:2x2
%transpose:Nx2x3 = transpose(%x) perm=[0, 2, 1]
%matmul:Nx3x3 = matmul(%x, %transpose)
%softmax:Nx3x3 = along(%matmul) axes=[-1] function=softmax
%matmul_1:Nx3x2 = matmul(%softmax, %x)
%add:Nx3x2 = pointwise(%x, %matmul_1) function=add zero=both
%reshape_default:Nx1x3x3 = reshape(%softmax)
%mean_dim:Nx3 = reduce(%reshape_default) axes=[1, 2] function=mean keepdim=False zero=first
%slice_tensor:Nx3 = slice(%mean_dim) axes=[1] ends=[3] starts=[0] steps=[1]
%topk_default:Nx3, %topk_default#1:Nx3 = topk(%slice_tensor) axis=-1 best=3
%sort_default:Nx3, %sort_default#1:Nx3 = sort(%topk_default#1) axes=[-1]
%slice_tensor_1:Nx3x2 = slice(%add) axes=[1] ends=[3] starts=[0] steps=[1]
%unsqueeze_default:Nx3x1 = reshape(%sort_default)
%expand_default:Nx3x2 = expand(%unsqueeze_default)
%gather_default:Nx3x2 = take_along(%slice_tensor_1, %expand_default) axis=1
%transpose_1:Nx2x3 = transpose(%gather_default) perm=[0, 2, 1]
%matmul_2:Nx3x3 = matmul(%gather_default, %transpose_1)
%softmax_1:Nx3x3 = along(%matmul_2) axes=[-1] function=softmax
%matmul_3:Nx3x2 = matmul(%softmax_1, %gather_default)
%add_1:Nx3x2 = pointwise(%gather_default, %matmul_3) function=add zero=both
%mean:Nx2 = reduce(%add_1) axes=[1] function=mean keepdim=False zero=first
%linear:Nx2 = linear(%mean, %head.weight, %head.bias)
output %linear
"""


def test_tokens() -> None:
    x = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = gp.load(randomise(Bare().double()), (x,))
    assert_pass("tokens{keep=1.0x}", given, before=BARE, after=DROPPED, again=False)
