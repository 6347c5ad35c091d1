"""Training towards pruning: channels seen in live parameters, and what every method has in common."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import limits
import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.axes.index import coordinates
from graphprune.coupling.groups import find_groups
from graphprune.errors import ModelError, RecipeError
from graphprune.ir.facts import Groups, Keep, Scores
from graphprune.train.channels import Channels
from graphprune.train.penalty import current, masked_by_zeros

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "Catalyst": {"total_steps": 8},
    "VAR": {},
    "OnTheFly": {},
    "Consensus": {},
    "BiP": {},
    "GroupLasso": {},
    "Slimming": {},
    "GrowingRegularization": {},
    "GReg2": {"total_steps": 8},
    "DReSS": {},
    "SMCP": {"every": 2},
    "LAPP": {},
    "Polarization": {},
    "Movement": {"total_steps": 5},
    "StochasticMasks": {"total_steps": 5},
    "Transport": {"total_steps": 5},
}
METHODS = tuple(OPTIONS)
THREE = ("Catalyst", "VAR", "BiP")


def network(seed=0):
    """Residual, BatchNorm, depthwise-free, float32: enough to train on."""
    torch.manual_seed(seed)
    return nets.Residual()


def batches(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(8, 3, 8, 8, generator=rng), torch.randint(0, 3, (8,), generator=rng)


@cache
def loaded(dtype=torch.float32):
    """One program for all modules of the class: names and shapes are what training takes from it."""
    return gp.load(network().to(dtype), torch.zeros(2, 3, 8, 8, dtype=dtype))


def made(method, module, wrapped=None, **options):
    program = loaded(module.fc.weight.dtype)
    if issubclass(getattr(gp.train, method), (gp.train.DReSS, gp.train.StochasticMasks)):
        program = gp.run("group,score,mask{channels=0.5x}", program)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    penalty = getattr(gp.train, method)(
        program, module if wrapped is None else wrapped, optimizer, **OPTIONS[method], **options
    )
    return penalty, optimizer


def train(module, penalty, optimizer, data):
    for x, y in data:
        loss = F.cross_entropy(module(x), y) + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        penalty.step()


def grouped(name):
    program = nets.program(name)
    return masked_by_zeros(program.learn(find_groups(program.graph)))


# ---- channels ----------------------------------------------------------------------------------------

NETS = [name for name, net in nets.ZOO.items() if net.prunable]


@pytest.mark.parametrize("name", NETS)
def test_norms_are_those_of_the_slices_one_by_one(name):
    """Brute force: every position of every member axis, asked for its channel."""
    for over in ("writers", "readers", "all"):
        _compare_norms(grouped(name), nets.module(name), over)


def _compare_norms(program, module, over):
    channels = Channels(program, module, over)
    norms = channels.arrays(channels.norms())
    live = dict(module.named_parameters(remove_duplicate=False))
    roles = {"writers": {"writer", "carrier"}, "readers": {"reader"}, "all": {"writer", "carrier", "reader"}}[over]
    for group in program.fact(Groups):
        trained = [m for m in group.members if m.parameter in live]
        chosen = [m for m in trained if m.role in roles or (m.zeroed and "reader" in roles)] or trained
        squares, seen = np.zeros(group.size), set()
        for member in chosen:
            tensor = live[member.parameter]
            if (id(tensor), member.axis) in seen:
                continue
            seen.add((id(tensor), member.axis))
            for at, channel in enumerate(coordinates(member.dim, group.dim)):
                if channel >= 0:
                    squares[channel] += float(tensor.detach().select(member.axis, at).abs().square().sum())
        np.testing.assert_allclose(norms[group.name], np.sqrt(squares), rtol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_masking_the_readers_is_what_the_compiler_proves_against(name):
    """The law for training: the masked module computes what the cut one does, to 1e-12."""
    program, module = grouped(name), copy.deepcopy(nets.module(name))
    channels = Channels(program, module, "readers")
    rng = np.random.default_rng(3)
    keep = {g.name: np.sort(rng.permutation(g.size)[: max(1, g.size // 2)]) for g in channels.groups}
    mask = {g.name: np.isin(np.arange(g.size), keep[g.name]).astype(float) for g in channels.groups}
    with torch.no_grad():
        for parameter, factor in channels.mask(channels.join(mask).double()).items():
            channels.tensors()[parameter].mul_(factor)
    cut = gp.run("propagate", program.learn(Keep(keep)))
    inputs = nets.ZOO[name].inputs()
    assert nets.relative_error(nets.outputs(module, inputs), nets.outputs(cut.model, inputs)) <= 1e-12


def test_leaving_one_reader_unmasked_shows():
    program, module = grouped("Residual"), copy.deepcopy(nets.module("Residual"))
    channels = Channels(program, module, "readers")
    keep = {g.name: np.arange(g.size - 1) for g in channels.groups}
    ones = channels.join({g.name: np.append(np.ones(g.size - 1), 0) for g in channels.groups}).double()
    factors = channels.mask(ones)
    factors.pop("last.weight")
    with torch.no_grad():
        for parameter, factor in factors.items():
            channels.tensors()[parameter].mul_(factor)
    cut = gp.run("propagate", program.learn(Keep(keep)))
    inputs = nets.ZOO["Residual"].inputs()
    assert nets.relative_error(nets.outputs(module, inputs), nets.outputs(cut.model, inputs)) > 1e-3


@pytest.mark.parametrize("name", ["Residual", "Flatten", "Packed", "Dense"])
def test_the_gradient_of_the_norms(name):
    program, module = grouped(name), copy.deepcopy(nets.module(name))
    channels = Channels(program, module, "all")
    tensors = [p.detach().clone().requires_grad_() for p in channels.tensors().values()]
    weights = torch.randn(channels.total, dtype=torch.float64)

    def value(*given):
        return (channels.norms(dict(zip(channels.tensors(), given, strict=True))) * weights).sum()

    assert torch.autograd.gradcheck(value, tensors)


def test_the_gradient_at_zero_is_zero():
    module = network()
    channels = made("VAR", module)[0].channels
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    channels.norms().sum().backward()
    assert all(p.grad.abs().max() == 0 for p in channels.tensors().values())


def test_a_tied_tensor_counts_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
            self.mid = nn.Linear(6, 6)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(torch.relu(self.mid(self.embed(x))))

    module = Tied()
    program = gp.run("group", gp.load(module, torch.arange(4)))
    channels = Channels(program, module, "all")
    assert len(channels.tensors()) == len({id(p) for p in channels.tensors().values()})
    wide = channels.norms().square().sum()
    mid = module.mid
    once = 2 * mid.weight.square().sum() + mid.bias.square().sum() + module.embed.weight.square().sum()
    if channels.total == 6:  # one group: the tied tensor makes both its axes the same
        torch.testing.assert_close(wide, once)
    else:
        assert wide <= 2 * once


def test_a_module_of_other_shapes_is_refused():
    program = gp.load(nets.MLP().float(), torch.zeros(2, *nets.ZOO["MLP"].inputs()[0].shape[1:]))
    other = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ModelError, match=r"Sequential has no parameter `.*`, which the program reads"):
        gp.train.VAR(program, other)
    frozen = nets.MLP().float().requires_grad_(False)
    with pytest.raises(ModelError, match="trains none of the parameters"):
        gp.train.VAR(program, frozen)
    module = nets.MLP().float()
    name, parameter = next((n, p) for n, p in module.named_parameters() if p.ndim == 2)
    owner = module.get_submodule(name.rpartition(".")[0])
    owner.weight = nn.Parameter(torch.zeros(parameter.shape[0] + 1, parameter.shape[1]))
    with pytest.raises(ModelError, match=r"in the module and .* in the program"):
        gp.train.VAR(program, module)


def test_bad_options_name_themselves():
    module = network()
    program = gp.load(module, torch.zeros(2, 3, 8, 8))
    with pytest.raises(RecipeError, match="`over` cannot be `reader`"):
        gp.train.VAR(program, module, over="reader")
    with pytest.raises(ModelError, match="BiP works through the optimizer"):
        gp.train.BiP(program, module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(RecipeError, match=r"keep=1\.5 is not a share"):
        gp.train.BiP(program, module, optimizer, keep=1.5)
    with pytest.raises(RecipeError, match=r"`keep` names `stm`, which is not there\n.*stem"):
        gp.train.BiP(program, module, optimizer, keep={"stm": 0.5})


# ---- in the loop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_was_learned_reaches_the_compiler(method):
    module = network()
    penalty, optimizer = made(method, module)
    train(module, penalty, optimizer, batches(6))
    learned = penalty.learned()
    assert learned.knows(Scores)
    torch.testing.assert_close(learned.model.get_parameter("stem.weight"), module.stem.weight)
    before = module.stem.weight.detach().clone()
    artifact = gp.compile(learned, macs="0.6x", measure=False)
    assert artifact.report["after"]["macs"] <= 0.6 * artifact.report["before"]["macs"]
    assert artifact.report["recipe"].startswith("mask{macs=0.6x")
    assert artifact.report["notes"][0] == f"channels were scored in training, by {method}"
    if learned.knows(Keep):
        decided = gp.compile(learned, measure=False)
        assert decided.report["recipe"] == "propagate"
        kept = {g["name"]: g["kept"] for g in decided.report["groups"]}
        assert kept == {name: len(own) for name, own in learned.fact(Keep).keep.items()}
    assert torch.equal(module.stem.weight, before)


def test_learned_is_a_snapshot():
    module = network()
    penalty, optimizer = made("VAR", module)
    learned = penalty.learned()
    before = learned.model.get_parameter("stem.weight").detach().clone()
    train(module, penalty, optimizer, batches(2))
    assert torch.equal(learned.model.get_parameter("stem.weight"), before)
    assert not torch.equal(module.stem.weight, before)


def test_groups_that_were_asked_for_are_those_that_are_trained():
    module = network()
    program = gp.run("group{freeze=stem*|down}", gp.load(module, torch.zeros(2, 3, 8, 8)))
    penalty = gp.train.VAR(program, module)
    assert penalty.channels.names == ("block.conv1", "last")
    assert set(penalty.learned().fact(Scores).scores) == {"block.conv1", "last"}


@pytest.mark.parametrize("method", METHODS)
def test_state_resumes_to_the_same_bits(method, tmp_path):
    data = list(batches(8))
    whole = network()
    penalty, optimizer = made(method, whole)
    train(whole, penalty, optimizer, data)

    first = network()
    one, one_optimizer = made(method, first)
    train(first, one, one_optimizer, data[:4])
    torch.save([first.state_dict(), one.state_dict(), one_optimizer.state_dict()], tmp_path / "state.pt")

    second = network(seed=1)
    two, two_optimizer = made(method, second)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for what, saved in zip((second, two, two_optimizer), state, strict=True):
        what.load_state_dict(saved)
    train(second, two, two_optimizer, data[4:])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    for group, scores in penalty.scores().scores.items():
        np.testing.assert_array_equal(scores, two.scores().scores[group])


def test_state_of_another_network_is_refused():
    penalty, _ = made("Catalyst", network())
    state = penalty.state_dict()
    state["_extra_state"] = {**state["_extra_state"], "stem": 9}
    with pytest.raises(ModelError, match="9 channels of `stem`, this network 6"):
        penalty.load_state_dict(state)


@pytest.mark.parametrize("method", METHODS)
def test_remove_leaves_the_optimizer_as_it_was(method):
    module = network()
    penalty, optimizer = made(method, module)
    train(module, penalty, optimizer, batches(2))
    penalty.remove()
    own = [id(p) for p in module.parameters()]
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == own
    assert set(map(id, optimizer.state)) <= set(own)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


# ---- mixed precision, accumulation, torch.compile, several processes ---------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_scaled_gradients_teach_what_unscaled_ones_do(method):
    """A GradScaler that multiplies by a power of two changes not one bit."""
    plain, scaled = network(), network()
    penalty, optimizer = made(method, plain)
    train(plain, penalty, optimizer, batches(4))
    penalty2, optimizer2 = made(method, scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for x, y in batches(4):
        optimizer2.zero_grad()
        scaler.scale(F.cross_entropy(scaled(x), y) + penalty2()).backward()
        scaler.step(optimizer2)
        scaler.update()
        penalty2.step()
    for a, b in zip(plain.state_dict().values(), scaled.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_that_the_scaler_skips_teaches_nothing(method):
    module = network()
    penalty, optimizer = made(method, module)
    before = copy.deepcopy(module.state_dict()), penalty.scores()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = next(batches(1))
    loss = F.cross_entropy(module.eval()(x), y) * torch.tensor(float("inf"))
    scaler.scale(loss + penalty()).backward()
    scaler.step(optimizer)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[0][name])
    for group, scores in penalty.scores().scores.items():
        np.testing.assert_array_equal(scores, before[1].scores[group])


@pytest.mark.parametrize("method", METHODS)
def test_the_penalty_keeps_its_precision_under_autocast(method):
    module = network()
    penalty, _ = made(method, module, **({} if method in ("Catalyst", "GReg2") else {"strength": 1.0}))  # two have none
    with torch.autocast("cpu", torch.bfloat16):
        inside = penalty()
    assert inside.dtype == torch.float32
    assert torch.equal(inside, penalty())


@pytest.mark.parametrize("method", METHODS)
def test_accumulated_gradients_teach_what_whole_batches_do(method):
    whole, parts = network().double(), network().double()
    penalty, optimizer = made(method, whole)
    train(whole.eval(), penalty, optimizer, [(x.double(), y) for x, y in batches(3)])
    penalty2, optimizer2 = made(method, parts)
    parts.eval()
    for x, y in batches(3):
        optimizer2.zero_grad()
        for half in (slice(0, 4), slice(4, 8)):
            (F.cross_entropy(parts(x[half].double()), y[half]) / 2 + penalty2() / 2).backward()
        optimizer2.step()
        penalty2.step()
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", THREE)
def test_a_compiled_module_trains_alike(method):
    plain, inner = network(), network()
    penalty, optimizer = made(method, plain)
    train(plain, penalty, optimizer, batches(3))
    compiled = torch.compile(inner, backend="eager")
    penalty2, optimizer2 = made(method, inner, wrapped=compiled)
    train(compiled, penalty2, optimizer2, batches(3))
    for a, b in zip(plain.state_dict().values(), inner.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_penalty_in_a_compiled_loss_trains_alike():
    """One whose value is of the compiler's own costs."""
    plain, module = network(), network()
    train(plain, *made("LAPP", plain), batches(6))
    penalty, optimizer = made("LAPP", module)
    penalty.forward = torch.compile(penalty.forward, backend="eager")
    train(module, penalty, optimizer, batches(6))
    for a, b in zip(plain.state_dict().values(), module.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


RANKS = """
import sys, torch, torch.distributed as dist
sys.path[:0] = {path!r}
import test_train as t

rank = int(sys.argv[3])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
module = t.network(seed=rank)
wrapped = torch.nn.parallel.DistributedDataParallel(module)
penalty, optimizer = t.made(sys.argv[1], module, wrapped)
t.train(wrapped, penalty, optimizer, t.batches(5, seed=10 + rank))
learned = penalty.learned()
torch.save([{{k: torch.from_numpy(v) for k, v in penalty.scores().scores.items()}},
            {{k: torch.from_numpy(v) for k, v in (penalty.keep() or t.Keep({{}})).keep.items()}},
            dict(module.named_parameters())], sys.argv[2] + "." + str(rank))
dist.destroy_process_group()
"""


SLOW = ("VAR", "BiP", "StochasticMasks")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in (*THREE, "StochasticMasks")]
)
def test_two_ranks_learn_the_same(method, tmp_path):
    code = RANKS.format(path=[str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT)])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, method, str(tmp_path / "store"), str(rank)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limits.bounded(120),  # each waits for the other, and may do so for ever
        )
        for rank in (0, 1)
    ]
    outcomes = [rank.communicate(timeout=limits.BACKSTOP_S)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outcomes
    first, second = (torch.load(tmp_path / f"store.{rank}", weights_only=True) for rank in (0, 1))
    for mine, theirs in zip(first, second, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), name
    assert first[0]


def test_current_has_the_weights_of_now_and_shares_nothing():
    module = network()
    program = gp.load(module, torch.zeros(2, 3, 8, 8))
    with torch.no_grad():
        module.bn0.running_mean.fill_(3.0)
        module.stem.weight.mul_(2)
    now = current(program, module)
    assert torch.equal(now.model.get_buffer("bn0.running_mean"), module.bn0.running_mean)
    assert now.model.get_parameter("stem.weight").data_ptr() != module.stem.weight.data_ptr()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(now.model(x), module.eval()(x))
