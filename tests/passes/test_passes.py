"""The passes, each against what plain numpy and torch say."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import nets
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import graphprune as gp
from graphprune.allocation.problem import best
from graphprune.calibration.batches import batches
from graphprune.cost import static as costs
from graphprune.cost.budget import amount
from graphprune.coupling.groups import find_groups
from graphprune.errors import BudgetError, ModelError, RecipeError, ShapeError, VerificationError
from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.facts import Groups, Keep, Scores
from graphprune.ir.program import Program
from graphprune.passes.propagate import Propagate
from graphprune.pipeline import verify as proof
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.replay import replay
from graphprune.pipeline.run import run, run_pass

NETS = sorted(name for name, net in nets.ZOO.items() if net.prunable or net.mixed)
RECURRENT = ("Cells", "Projected", "Recurrent", "Started")
CNNS = ["Residual", "OptionA", "Depthwise", "Grouped", "Dense", "SqueezeExcite", "Transposed"]


def do(recipe, program):
    return run(Recipe.parse(recipe), program)


def load(module, *inputs, seed=0):
    host = TorchHost.export(nets.randomise(module.double().eval(), seed), inputs)
    return Program(host=host, source=host)


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_data(program, samples=6, seed=3):
    """The program with random calibration data."""
    rng = np.random.default_rng(seed)
    example = program.host.example()
    data = [
        rng.standard_normal((samples, *x.shape[1:])) if x.dtype.kind == "f" else np.tile(x, (samples // len(x), 1))
        for x in example
    ]
    return replace(program, data=batches(data, program.graph.inputs))


def kept(program):
    return {name: len(indices) for name, indices in program.fact(Keep).keep.items()}


# ---- costs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_parameters_are_counted_as_torch_counts_them_before_and_after(name):
    program = nets.program(name)
    cost = costs.params(program.graph, program.host, parts(program))
    assert cost() == pytest.approx(tensors(nets.module(name)), rel=1e-12)
    # of an LSTM as narrow as its projection one channel more stays, which `propagate` says
    masked = do(f"group,score,mask{{channels={'0.8x' if name == 'Projected' else '0.6x'}}}", program)
    keep = {group.dim: len(masked.fact(Keep).keep[group.name]) for group in masked.fact(Groups)}
    pruned = run_pass(Propagate(), masked)
    assert cost(keep) == pytest.approx(tensors(pruned.model), rel=1e-12)


def parts(program):
    """Of experts that go what only they are for goes."""
    return costs.gates(program.graph, find_groups(program.graph))


def tensors(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "name", [name for name in NETS if name not in (*RECURRENT, "Bilinear", "Unknown", "OneHot")]
)  # not counted, by either; and three operands at once, of which torch multiplies two first
def test_macs_are_counted_as_torch_counts_them_before_and_after(name):
    program = nets.program(name)
    cost = costs.macs(program.graph, program.host, parts(program))
    assert cost() == pytest.approx(macs(nets.module(name), program), rel=1e-12)
    masked = do("group,score,mask{channels=0.6x}", program)
    keep = {group.dim: len(masked.fact(Keep).keep[group.name]) for group in masked.fact(Groups)}
    pruned = run_pass(Propagate(), masked)
    assert cost(keep) == pytest.approx(macs(pruned.model, program), rel=1e-12)


def macs(model, program):
    """Per sample, by torch's own counter."""
    inputs = [torch.from_numpy(x) for x in program.host.example()]
    math = sdpa_kernel(SDPBackend.MATH)  # the fused kernel is not counted
    with FlopCounterMode(display=False) as counter, math, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() / 2 / inputs[0].shape[0]


@pytest.mark.parametrize(
    ("equation", "x", "weights"),
    [
        ("bi,ij->bj", (4, 6), [(6, 5)]),
        ("bi,ij,jk,kl->bl", (4, 6), [(6, 5), (5, 7), (7, 3)]),
        ("bi,ir,jr->bj", (4, 6), [(6, 2), (9, 2)]),  # of low rank
        ("bnd,de,ne->bn", (4, 3, 6), [(6, 5), (3, 5)]),
        ("bij->bi", (4, 5, 6), []),
    ],
)
def test_macs_of_products_of_several_are_those_of_one_after_the_other(equation, x, weights):
    class Product(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterList(torch.randn(shape) for shape in weights)

        def forward(self, x):
            return torch.einsum(equation, x, *self.weights)

    module = Product()
    program = gp.load(module, (torch.randn(x),))
    assert costs.macs(program.graph, program.host)() == macs(module, program)


class OwnKernels(torch.nn.Module):
    """Every sample is convolved with a kernel of its own (CondConv): groups are samples."""

    def __init__(self):
        super().__init__()
        self.routing = torch.nn.Linear(3, 4)
        self.kernels = torch.nn.Parameter(torch.randn(4, 12, 3, 3, 3))
        self.last = torch.nn.Conv2d(12, 2, 1)

    def forward(self, x):
        samples = x.size(0)
        routed = torch.sigmoid(self.routing(x.mean((2, 3))))
        kernels = (routed @ self.kernels.flatten(1)).view(samples * 12, 3, 3, 3)
        made = torch.nn.functional.conv2d(x.reshape(1, samples * 3, 8, 8), kernels, groups=samples, padding=1)
        return self.last(torch.relu(made.view(samples, 12, 8, 8)))


def test_what_is_left_of_channels_that_are_folded_into_samples_is_counted():
    torch.manual_seed(0)
    program = gp.load(OwnKernels().eval(), torch.randn(2, 3, 8, 8))
    pruned = do("group,score,mask{channels=0.5x},propagate", program)
    assert costs.macs(pruned.graph, pruned.host)() == macs(pruned.model, program) < macs(program.model, program) / 1.8


# ---- mask --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["params", "macs"])
@pytest.mark.parametrize("allocate", ["uniform", "global"])
@pytest.mark.parametrize("name", CNNS)
def test_a_budget_is_met_and_the_next_larger_choice_exceeds_it(name, unit, allocate):
    program = do("group,score", nets.program(name))
    cost = getattr(costs, unit)(program.graph, program.host)
    groups, scores = program.fact(Groups), program.fact(Scores)
    price = lambda counts: cost({group.dim: counts[group.name] for group in groups})  # noqa: E731
    if allocate == "uniform":
        thresholds = sorted({(k + 0.5) / g.size for g in groups for k in range(g.size)})
        sequence = [
            {g.name: max(1, sum(r >= (k + 0.5) / g.size for k in range(g.size))) for g in groups} for r in thresholds
        ]
    else:
        levels = np.sort(np.concatenate([scores[g] for g in groups]))[::-1]
        sequence = [{g.name: max(1, int((scores[g] >= level).sum())) for g in groups} for level in levels]
    for share_ in (0.3, 0.5, 0.8):
        counts = kept(do(f"mask{{{unit}={share_}x floor=0 allocate={allocate}}}", program))
        fitting = [choice for choice in sequence if price(choice) <= share_ * cost()]
        at = len(fitting)
        assert all(counts[g.name] >= fitting[-1][g.name] for g in groups)  # the largest that fits, and then some
        assert price(counts) <= share_ * cost()
        larger = [{**counts, g.name: sequence[at][g.name]} for g in groups if sequence[at][g.name] > counts[g.name]]
        assert larger and all(price(choice) > share_ * cost() for choice in larger)


@pytest.mark.parametrize("name", CNNS)
def test_global_keeps_the_best_scores_of_all(name):
    program = do("group,score,mask{channels=0.5x floor=0 allocate=global}", nets.program(name))
    groups, scores, keep = program.fact(Groups), program.fact(Scores), program.fact(Keep).keep
    total = sum(group.size for group in groups)
    assert sum(kept(program).values()) <= 0.5 * total
    dropped = [scores[g][k] for g in groups for k in range(g.size) if k not in keep[g.name]]
    stay = [scores[g][k] for g in groups if len(keep[g.name]) > 1 for k in keep[g.name]]
    assert max(dropped) <= min(stay)


@pytest.mark.parametrize("name", NETS)
def test_uniform_keeps_the_best_of_every_group_in_channel_order(name):
    program = do("group,score{by=l1},mask{channels=0.6x}", nets.program(name))
    sizes = [group.size for group in program.fact(Groups)]
    assert 0.6 * sum(sizes) - 1 < sum(kept(program).values()) <= 0.6 * sum(sizes)
    for group in program.fact(Groups):
        score, indices = program.fact(Scores)[group], program.fact(Keep).keep[group.name]
        assert abs(len(indices) - 0.6 * group.size) <= 1
        assert list(indices) == sorted(indices)
        rest = np.setdiff1d(np.arange(group.size), indices)
        assert len(rest) == 0 or score[rest].max() <= score[indices].min()


def test_grain_and_floor():
    program = do(
        "group,score",
        load(nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2)), randn(2, 4)),
    )
    sizes = lambda options: kept(do(f"mask{{{options}}}", program))  # noqa: E731
    assert sizes("channels=0.3x") == {"0": 6, "2": 9}
    assert sizes("channels=0.3x grain=4") == {"0": 4, "2": 8}
    assert sizes("channels=0.7x grain=16") == {"0": 16, "2": 16}
    assert sizes("channels=0.9x grain=16") == {"0": 20, "2": 16}  # not more than there are
    assert sizes("channels=0.36x floor=0.35") == {"0": 7, "2": 11}
    assert sizes("channels=0.04x floor=0") == {"0": 1, "2": 1}
    for options, least in (("0.3x floor=0.5", "0.5x"), ("0.3x grain=16", "0.64x"), ("0.03x floor=0", "0.04x")):
        with pytest.raises(BudgetError, match=f"with every group at its floor {least} remain"):
            sizes(f"channels={options}")


def test_grain_counts_the_whole_axis_of_heads():
    """Two heads of width 3 are six channels: with grain 6 two heads do, and four with grain 12."""
    program = do("group{freeze=k.1|v.1},score", attention())
    assert kept(do("mask{channels=0.4x floor=0 grain=6}", program)) == {"q.0": 2}
    assert kept(do("mask{channels=0.7x floor=0 grain=12}", program)) == {"q.0": 4}
    assert kept(do("mask{channels=0.2x floor=0 grain=1}", program)) == {"q.0": 1}


def test_grain_is_carried_by_the_width_where_heads_and_widths_may_both_go():
    """Six heads of width 3 are eighteen channels; the width alone has to be a multiple of three."""
    done = do("group,score,mask{channels=0.75x grain=3}", attention())
    assert kept(done) == {"q.0": 3, "k.1": 3, "v.1": 3}
    done = do("group,score,mask{channels=0.6x grain=1}", attention())
    assert kept(done) == {"q.0": 3, "k.1": 2, "v.1": 2}


def attention():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(18, 18) for _ in range(4))

        def forward(self, x):
            q, k, v = (layer(x).view(2, 4, 6, 3).transpose(1, 2) for layer in (self.q, self.k, self.v))
            return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    return load(Heads(), randn(2, 4, 18))


def test_a_grain_moves_budgets_in_whole_steps():
    program = do(
        "group,score",
        load(nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2)), randn(2, 4)),
    )
    after = do("mask{params=0.5x grain=8}", program)
    assert set(kept(after).values()) <= {8, 16, 24}
    assert costs.params(program.graph, program.host)(
        {g.dim: kept(after)[g.name] for g in after.fact(Groups)}
    ) <= 0.5 * (24 * 31 + 2)


@pytest.mark.parametrize("text", ["0x", "1x", "0", "1", "1.5x", "-0.5x", "half", "0.5xx", "nanx", "infx", "0.0x", "x"])
@pytest.mark.parametrize("unit", ["channels", "params", "macs"])
def test_what_is_not_between_nothing_and_all_is_no_budget(unit, text):
    with pytest.raises(BudgetError, match=f"{unit}={text} is not a budget"):
        Recipe.parse(f"mask{{{unit}={text}}}")


def test_shares():
    assert [amount(text, "macs").number for text in ("0.5x", "0.5", ".25x", "1e-1x")] == [0.5, 0.5, 0.25, 0.1]


def test_budgets_that_cannot_be():
    with pytest.raises(BudgetError, match="one budget, not 0 "):
        Recipe.parse("mask")
    with pytest.raises(BudgetError, match=r"one budget, not 2 \(params, macs\)"):
        Recipe.parse("mask{params=0.5x macs=0.5x}")
    with pytest.raises(BudgetError, match=r"floor=1.5"):
        Recipe.parse("mask{macs=0.5x floor=1.5}")
    with pytest.raises(BudgetError, match="grain=0"):
        Recipe.parse("mask{macs=0.5x grain=0}")
    with pytest.raises(RecipeError, match="`allocate` cannot be `globe`") as error:
        Recipe.parse("mask{macs=0.5x allocate=globe}")
    assert "global" in error.value.hint
    for unit, word in (("params", "parameters"), ("macs", "MACs")):
        with pytest.raises(BudgetError, match=rf"a budget of 0.05x {word} cannot be met: .* 0\.\d+x remain"):
            do(f"group,score,mask{{{unit}=0.05x floor=0.5}}", nets.program("Residual"))


def test_best_breaks_ties_by_index():
    np.testing.assert_array_equal(best(np.array([1.0, 2.0, 1.0, 2.0, 1.0]), 3), [0, 1, 3])


# ---- score -------------------------------------------------------------------------------------------


def raw(program, options):
    program = do(f"group,score{{{options} normalize=none}}", program)
    return {name: np.asarray(score) for name, score in program.fact(Scores).scores.items()}


def test_norms_by_hand():
    state = {k: v.numpy() for k, v in nets.module("Residual").state_dict().items()}
    writer, reader = state["block.conv1.weight"], state["block.conv2.weight"]
    l2 = (np.sqrt((writer**2).sum((1, 2, 3))), np.sqrt((reader**2).sum((0, 2, 3))))
    l1 = (np.abs(writer).sum((1, 2, 3)), np.abs(reader).sum((0, 2, 3)))
    program = nets.program("Residual")
    for options, want in [
        ("by=l2", (l2[0] + l2[1]) / 2),
        ("by=l1", (l1[0] + l1[1]) / 2),
        ("by=l2 over=writers", l2[0]),
        ("by=l1 over=readers", l1[1]),
        ("by=l2 combine=sum", l2[0] + l2[1]),
        ("by=l1 combine=max", np.maximum(*l1)),
        ("by=bn", np.abs(state["block.bn1.weight"])),
    ]:
        np.testing.assert_allclose(raw(program, options)["block.conv1"], want, rtol=1e-12, err_msg=options)


def test_norms_of_a_product_axis_by_hand():
    """One score per input of a grouped convolution, over all groups; one per group."""
    state = {k: v.numpy() for k, v in nets.module("Grouped").state_dict().items()}
    stem, grouped = state["stem.weight"].reshape(2, 3, -1), state["grouped.weight"].reshape(2, 4, 3, -1)
    scores = raw(nets.program("Grouped"), "by=l2 over=writers")
    np.testing.assert_allclose(scores["stem.1"], np.sqrt((stem**2).sum((0, 2))), rtol=1e-12)
    np.testing.assert_allclose(scores["grouped.1"], np.sqrt((grouped**2).sum((0, 2, 3))), rtol=1e-12)


def test_bn_falls_back_to_l2_where_there_is_none():
    assert np.array_equal(
        raw(nets.program("Residual"), "by=bn")["last"], raw(nets.program("Residual"), "by=l2")["last"]
    )


def test_normalisation():
    for normalize, mean, std in [("mean", 1, None), ("standard", 0, 1)]:
        program = do(f"group,score{{normalize={normalize}}}", nets.program("Residual"))
        for score in program.fact(Scores).scores.values():
            assert score.mean() == pytest.approx(mean, abs=1e-12)
            assert std is None or score.std() == pytest.approx(std)


def test_scores_do_not_grow_with_the_number_of_readers():
    class Fan(nn.Module):
        def __init__(self, readers):
            super().__init__()
            self.conv, self.readers = nn.Conv2d(3, 5, 1), nn.ModuleList(nn.Conv2d(5, 2, 1) for _ in range(readers))

        def forward(self, x):
            x = self.conv(x)
            return sum(reader(x) for reader in self.readers)

    def score(readers, by):
        net = Fan(readers).double()
        with torch.no_grad():
            net.conv.weight.copy_(torch.arange(1, 16).reshape(5, 3, 1, 1))
            for reader in net.readers:
                reader.weight.copy_(net.conv.weight[:, :2].transpose(0, 1) * (9 / 5) ** 0.5)
        host = TorchHost.export(net, (randn(2, 3, 4, 4),))
        return raw(with_data(Program(host=host, source=host)), f"by={by}")["conv"]

    np.testing.assert_allclose(score(4, "wifv"), score(1, "wifv"), rtol=1e-12)
    assert score(6, "l2").max() < 1.5 * score(1, "l2").max()


def test_random_is_seeded_and_apart_per_group():
    program = nets.program("Residual")
    a, b = raw(program, "by=random"), raw(program, "by=random")
    c = raw(replace(program, seed=1), "by=random")
    for name in a:
        assert np.array_equal(a[name], b[name]) and not np.array_equal(a[name], c[name])
    assert not np.array_equal(a["stem"][:4], a["last"])


def watched(name, data, layer):
    """The input of one layer of the user's module over the data, in one go."""
    seen = []
    module = copy.deepcopy(nets.module(name))
    module.get_submodule(layer).register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numpy()))
    with torch.no_grad():
        module(torch.from_numpy(np.concatenate([batch[0] for batch in data])))
    return seen[0]


def test_wifv_by_hand():
    program = with_data(nets.program("Residual"))
    x = watched("Residual", program.data, "conv3")  # `stem` is read by three layers
    weights = {k: v.numpy() for k, v in nets.module("Residual").state_dict().items()}
    variance = x.var((0, 2, 3))
    first = watched("Residual", program.data, "block.conv1").var((0, 2, 3))
    want = [
        first * (weights["block.conv1.weight"] ** 2).sum((0, 2, 3)),
        variance * (weights["down.weight"] ** 2).sum((0, 2, 3)),
        variance * (weights["conv3.weight"] ** 2).sum((0, 2, 3)),
    ]
    np.testing.assert_allclose(raw(program, "by=wifv")["stem"], np.mean(want, 0), rtol=1e-10)


def test_wifv_of_flattened_channels_by_hand():
    """A channel that became 16 features is worth what the 16 are worth together."""
    program = with_data(nets.program("Flatten"))
    x = watched("Flatten", program.data, "fc1")
    weight = nets.module("Flatten").fc1.weight.detach().numpy()
    features = (x.var(0) * (weight**2).sum(0)).reshape(9, 16).sum(1)
    scores = raw(program, "by=wifv")
    np.testing.assert_allclose(scores["a"], features[:4], rtol=1e-10)
    np.testing.assert_allclose(scores["b"], features[4:], rtol=1e-10)


def test_wifv_of_a_grouped_convolution_by_hand():
    program = with_data(nets.program("Grouped"))
    x = watched("Grouped", program.data, "grouped").var((0, 2, 3)).reshape(2, 3)
    weight = nets.module("Grouped").grouped.weight.detach().numpy().reshape(2, 4, 3, 9)
    worth = x * (weight**2).sum((1, 3))
    scores = raw(program, "by=wifv")
    np.testing.assert_allclose(scores["stem.1"], worth.sum(0), rtol=1e-10)
    state = nets.module("Grouped").state_dict()  # whole groups are read by the next layer too
    after = watched("Grouped", program.data, "last").var((0, 2, 3)) * (state["last.weight"].numpy() ** 2).sum((0, 2, 3))
    np.testing.assert_allclose(scores["stem.0"], (worth.sum(1) + after.reshape(2, 4).sum(1)) / 2, rtol=1e-10)


def test_moments_of_many_batches_are_those_of_one_even_far_from_zero():
    from graphprune.calibration.moments import moments
    from graphprune.coupling.contractions import contractions

    program = load(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), randn(2, 4))
    rng = np.random.default_rng(0)
    x = 1e6 + rng.standard_normal((300, 4))
    found = [read for read in contractions(program.graph) if read.weight == "0.weight"]
    for chunks in (1, 7, 300):
        stats = moments(program.host, found, [[part] for part in np.array_split(x, chunks)])
        (value,) = stats.values()
        np.testing.assert_allclose(value.mean, x.mean(0), rtol=1e-14)
        np.testing.assert_allclose(value.variance, x.var(0), rtol=1e-8)


def test_unknown_criteria_suggest_the_nearest():
    with pytest.raises(RecipeError, match="`by` cannot be `wifw`") as error:
        Recipe.parse("score{by=wifw}")
    assert "wifv" in error.value.hint


# ---- group -------------------------------------------------------------------------------------------


def test_freeze_by_name():
    program = do("group{freeze=stem|block.*}", nets.program("Residual"))
    groups = program.fact(Groups)
    assert [group.name for group in groups] == ["down", "last"]
    assert {f.name: f.reason for f in groups.frozen}["block.conv1"] == "asked for by `block.*`"


def test_normalised_offers_what_a_norm_mixes_and_the_proof_refuses_it():
    program = do("group{normalised=true},score,mask{channels=0.5x},propagate", nets.program("ConvNeXt"))
    assert program.model.stem.weight.shape[0] == 3
    with pytest.raises(VerificationError, match="`stem` was pruned although a normalisation runs across it"):
        proof.verify(program)


def test_nothing_to_prune_is_an_error_that_says_why():
    with pytest.raises(ModelError, match="nothing can be pruned: all 2 dims are frozen") as error:
        do("group", load(nn.Sequential(nn.Linear(3, 4)), randn(2, 3)))
    assert "0: reaches the graph output" in str(error.value)
    assert "0.weight[1]: graph input" in str(error.value)
    with pytest.raises(ModelError, match="nothing can be pruned: the network has no weights"):
        do("group", load(nn.ReLU(), randn(2, 3)))


def test_what_options_leave_out_is_named_behind_what_no_option_can_cut():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.norm, self.a, self.b = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)
            self.last, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, x):
            x = self.emb(x)
            return self.head(self.last(x + self.b(self.a(self.norm(x)).relu())))

    program = load(Normed(), randn(2, 4))
    with pytest.raises(ModelError, match="nothing can be pruned: all 4 dims are frozen") as error:
        do("group{places=stream}", program)
    assert str(error.value).index("emb: norm (layer_norm) normalises") < str(error.value).index("a: inner: not among")
    assert "`rms` before `group`" in str(error.value)
    assert [group.size for group in do("rms,group{places=stream}", program).fact(Groups)] == [6]


# ---- propagate ---------------------------------------------------------------------------------------


HALF = "group,score{by=random},mask{channels=0.5x},propagate"


@pytest.mark.parametrize("name", NETS)
def test_plan_json_and_numpy_give_the_pruned_weights(name):
    pruned = do(HALF, nets.program(name))
    plan = json.loads(json.dumps(dict(pruned.plan)))
    tensors = rebuilt(name, plan)
    state = {**dict(pruned.model.named_parameters()), **dict(pruned.model.named_buffers())}
    normed = [g for g in find_groups(nets.program(name).graph) if any(m.across for m in g.members)]
    scaled = [member.parameter for g in normed for member in g.members if member.role == "carrier"]
    for key, tensor in state.items():
        if key in tensors and key not in scaled:  # below an RMS norm by sqrt(d / n): see test_hidden_size
            assert tensor.detach().numpy().tobytes() == tensors[key].tobytes(), key
    assert {name for name in plan["parameters"] if not re.match(r"(experts|back)\.\d", name)} <= set(state)  # or went


def rebuilt(name, plan):
    """The pruned weights, from the module, the plan and numpy alone."""
    module = nets.module(name)
    tensors = {
        k: v.detach().numpy() for k, v in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    }
    for parameter, axes in plan["parameters"].items():
        for axis, entry in axes.items():
            assert entry["role"] in ("writer", "reader", "carrier")
            tensors[parameter] = np.ascontiguousarray(tensors[parameter].take(entry["keep"], int(axis)))
    return tensors


def test_roles_in_the_plan():
    plan = do(HALF, nets.program("Residual")).plan["parameters"]
    assert plan["stem.weight"].keys() == {"0"}
    assert [plan[f"{name}.weight"]["1"]["role"] for name in ("block.conv1", "down", "conv3", "last", "fc")] == [
        "reader"
    ] * 5
    assert [plan[f"{name}.weight"]["0"]["role"] for name in ("stem", "block.conv2", "down", "last")] == ["writer"] * 4
    assert {plan[f"bn0.{part}"]["0"]["role"] for part in ("weight", "bias", "running_mean", "running_var")} == {
        "carrier"
    }


def test_two_cuts_compose_in_the_plan():
    program = nets.program("Dense")
    once = do(HALF, program)
    twice = do("group,score,mask{channels=0.5x},propagate", once)
    assert twice.model.layer2.weight.shape[0] < once.model.layer2.weight.shape[0]
    tensors = rebuilt("Dense", json.loads(json.dumps(dict(twice.plan))))
    for key, tensor in twice.model.named_parameters():
        assert np.array_equal(tensor.detach().numpy(), tensors[key]), key
    assert all(check.error <= check.tolerance for check in proof.verify(twice))
    again = replay(json.loads(json.dumps(dict(twice.plan))), program.host)
    assert same_bytes(again, twice)


def same_bytes(a, b):
    x, y = a.model.state_dict(), b.model.state_dict()
    return list(x) == list(y) and all(x[k].numpy().tobytes() == y[k].numpy().tobytes() for k in x)


@pytest.mark.parametrize("name", ["Residual", "Transposed", "Attention", "Shuffle"])
def test_a_plan_replayed_gives_the_same_bytes(name):
    program = with_data(nets.program(name))
    done = do(f"{HALF},compensate{{by=mean}},fold", program)
    again = replay(json.loads(json.dumps(dict(done.plan))), program.host)
    assert same_bytes(again, done)


def test_a_plan_of_another_model_is_refused():
    plan = do(HALF, nets.program("Residual")).plan
    with pytest.raises(RecipeError, match="which this model does not have"):
        replay(plan, nets.program("MLP").host)
    plan = json.loads(json.dumps(dict(plan)))
    plan["steps"][0]["keep"]["stem"] = [0, 77]
    with pytest.raises(RecipeError, match="keeps channel 77 of `stem`, which has 6"):
        replay(plan, nets.program("Residual").host)


def test_a_literal_that_is_not_patched_is_found(monkeypatch):
    monkeypatch.setattr(TorchHost, "set_literal", lambda self, op, name, value: None)
    with pytest.raises(ShapeError, match=r"shapes disagree after the cut|its axes promise"):
        do("group{freeze=*.1|out.weight[0]},score,mask{channels=0.5x},propagate", nets.program("Attention"))


def test_a_shape_that_is_not_what_the_dims_promise_is_found(monkeypatch):
    shapes = TorchHost.shapes
    monkeypatch.setattr(TorchHost, "shapes", lambda self: {k: (*v[:-1], 99) for k, v in shapes(self).items()})
    with pytest.raises(ShapeError, match=r"stem \(conv\): the cut gives shape .*99.*, its axes promise"):
        do(HALF, nets.program("Residual"))


def test_a_wrong_cut_fails_the_proof_at_the_first_op_that_differs(monkeypatch):
    pruned = do(HALF, nets.program("Residual"))
    assert max(check.error for check in proof.verify(pruned)) <= 1e-12
    take = TorchHost.take

    def shifted(self, name, axis, keep):
        take(self, name, axis, np.roll(keep, 1) if name == "down.weight" and axis == 1 else keep)

    monkeypatch.setattr(TorchHost, "take", shifted)
    with pytest.raises(VerificationError, match=r"differs from the masked one by .* first at down \(conv\)"):
        proof.verify(pruned)


def test_weights_that_the_plan_does_not_give_fail_the_proof():
    pruned = do(HALF, nets.program("Residual"))
    host = pruned.host.copy()
    host.set_parameter("fc.bias", host.parameter("fc.bias") + 1)
    with pytest.raises(VerificationError, match=r"fc.bias: replaying the plan does not give the same weights"):
        proof.verify(replace(pruned, host=host))


def test_an_unsliced_group_is_not_touched():
    """keep = everything leaves every tensor as it was, bit for bit, in storage of the result's own."""
    program = nets.program("Residual")
    groups = find_groups(program.graph)
    done = run_pass(Propagate(), program.learn(groups).learn(Keep({g.name: np.arange(g.size) for g in groups})))
    assert same_bytes(done, program)
    assert done.model.stem.weight.data_ptr() != program.model.stem.weight.data_ptr()


# ---- fold --------------------------------------------------------------------------------------------

NORMED = [
    "Residual",
    "OptionA",
    "Depthwise",
    "Shuffle",
    "Gate",
    "Slices",
    "Conv1d",
    "Conv3d",
    "InPlace",
    "MLP",
    "SqueezeExcite",
]


def norms(model):
    return [str(node.target) for node in model.graph.nodes if "batch_norm" in str(node.target)]


@pytest.mark.parametrize("name", NORMED)
def test_fold_is_exact_and_takes_every_norm_away(name):
    program = nets.program(name)
    folded = do("fold", program)
    assert norms(program.model) and not norms(folded.model)
    inputs = program.host.example()
    assert nets.relative_error(program.host.run(inputs), folded.host.run(inputs)) <= 1e-12
    assert not any("running" in key for key in folded.model.state_dict())
    assert all(check.error <= check.tolerance for check in proof.verify(do(f"{HALF},fold", program)))


@pytest.mark.parametrize(
    ("maker", "shape"),
    [
        (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), (2, 4, 3, 3)),
        (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
        (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (2, 4, 5, 5)),
        (lambda: nn.Linear(4, 6, bias=False), (3, 4)),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_fold_into_every_kind_of_layer(maker, shape, affine):
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    program = load(nn.Sequential(maker(), norm(6, affine=affine), nn.ReLU()), randn(*shape))
    folded = do("fold", program)
    assert not norms(folded.model)
    assert (
        nets.relative_error(program.host.run(program.host.example()), folded.host.run(program.host.example())) <= 1e-12
    )


class Kept(nn.Module):
    """BatchNorms that cannot be folded: the convolution is read elsewhere; nothing comes before;
    the channels are not the linear layer's outputs; the weight is shared."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.fc, self.bn3, self.bn4 = nn.Linear(5, 5), nn.BatchNorm1d(4), nn.BatchNorm2d(3)
        self.twice, self.bn5 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(self.bn4(x))
        x = x + self.bn2(self.bn1(x).relu())
        x = self.twice(self.bn5(self.twice(x)))
        return self.bn3(self.fc(x.flatten(2)[:, :, :5]))


def test_what_cannot_be_folded_is_left_with_a_note():
    program = load(Kept(), randn(2, 3, 4, 4))
    folded = do("fold", program)
    assert len(norms(folded.model)) == 5
    assert nets.relative_error(program.host.run(program.host.example()), folded.host.run(program.host.example())) == 0
    notes = {note.partition(" (")[0]: note for note in folded.notes}
    assert notes["bn1"].endswith("not folded, the output of conv (conv) is read elsewhere too")
    assert notes["bn2"].endswith("no conv or linear comes right before it")
    assert notes["bn3"].endswith("its channels are not the linear layer's outputs")
    assert notes["bn4"].endswith("no conv or linear comes right before it")
    assert notes["bn5"].endswith("a weight of twice (conv) is shared")


def test_an_output_is_not_folded_away():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return x, self.bn(x)

    program = load(Both(), randn(2, 3, 4, 4))
    folded = do("fold", program)
    assert len(norms(folded.model)) == 1
    assert nets.relative_error(program.host.run(program.host.example()), folded.host.run(program.host.example())) == 0


# ---- compensate --------------------------------------------------------------------------------------


def inputs_mean(program, data, weight):
    """The mean over the data of what the layer before the last tanh gives; ``weight`` reads the tanh."""
    graph = program.graph
    makers = {out.name: op for op in graph.ops for out in op.outputs}
    reader = next(op for op in graph.ops if any(v is graph.parameters[weight] for v in op.inputs))
    name = makers[reader.inputs[0].name].inputs[0].name
    x = np.concatenate([program.host.watch(batch, [name])[name] for batch in data])
    return x.mean(tuple(k for k in range(x.ndim) if k != 1))


class Bare(nn.Module):
    """A matrix product, which has no bias to add to."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.ones(n, m)) for n, m in ((4, 9), (9, 5), (5, 2)))

    def forward(self, x):
        return torch.tanh(torch.relu(x @ self.a) @ self.b) @ self.c


class Bound(nn.Module):
    """A bias and a weight that are computed."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.bias = nn.Linear(4, 9), nn.Linear(5, 2), nn.Parameter(torch.ones(5))
        self.weight = nn.Parameter(torch.ones(5, 9))

    def forward(self, x):
        return self.last(torch.nn.functional.linear(self.first(x).relu(), 2 * self.weight, self.bias.exp()).tanh())


@pytest.mark.parametrize(
    ("net", "shape", "reader"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 2)), (2, 4), "2"),
        (
            lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5, bias=False), nn.Tanh(), nn.Linear(5, 2)),
            (2, 4),
            "2",
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1, groups=2), nn.Tanh(), nn.Conv2d(6, 2, 1)
            ),
            (2, 3, 8, 8),
            "2",
        ),
        (Bare, (2, 4), "matmul"),
        (Bound, (2, 4), "linear"),
    ],
)
def test_compensate_keeps_the_mean_of_a_readers_output(net, shape, reader):
    program = with_data(load(net(), randn(*shape)), samples=40)
    cut = do("group,score{by=random},mask{channels=0.5x},propagate", program)
    made = do("compensate{by=mean}", cut)
    next_reader = {"2": "4", "matmul": "c", "linear": "last"}[reader]
    axis = "0" if reader == "matmul" else "1"
    weight = next_reader if reader == "matmul" else f"{next_reader}.weight"
    keep = made.plan["parameters"][weight][axis]["keep"]  # the outputs of the one are the inputs of the next
    want = inputs_mean(program, program.data, weight)[keep]
    assert np.abs(inputs_mean(cut, program.data, weight) - want).max() > 1e-3
    np.testing.assert_allclose(inputs_mean(made, program.data, weight), want, rtol=0, atol=1e-12)
    assert all(check.error <= check.tolerance for check in proof.verify(made))


def test_compensate_in_the_wrong_place_is_an_error():
    program = with_data(nets.program("Residual"))
    for recipe in (
        "compensate",
        f"{HALF},fold,compensate",
        f"{HALF},{HALF},compensate",
        f"{HALF},compensate,compensate",
    ):
        with pytest.raises(RecipeError, match="`compensate` follows one `propagate`, here"):
            do(recipe, program)
    with pytest.raises(RecipeError, match="step 5 `compensate` needs calibration data"):
        do(f"{HALF},compensate", nets.program("Residual"))


def test_a_layer_that_is_used_twice_gets_a_bias_for_each_use():
    """Its two inputs have different means; what is added for one must not show in the other."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.shared, self.last = nn.Linear(4, 9), nn.Linear(4, 9), nn.Linear(9, 5), nn.Linear(5, 2)

        def forward(self, x):
            y = self.shared(torch.relu(self.a(x)))
            return self.last(y.tanh() + self.shared(torch.sigmoid(self.b(x))).tanh())

    program = with_data(load(Twice(), randn(2, 4)), samples=40)
    groups = find_groups(program.graph)
    keep = Keep({"a": np.arange(4), "shared": np.arange(5)})
    cut = run_pass(Propagate(), program.learn(groups).learn(keep))
    made = do("compensate{by=mean}", cut)
    names = [op.outputs[0].name for op in program.graph.ops if op.origin == "shared" and op.kind == "linear"]
    assert len(names) == 2

    def mean(one, name):
        return np.concatenate([one.host.watch(batch, [name])[name] for batch in program.data]).mean(0)

    for name in names:
        assert np.abs(mean(cut, name) - mean(program, name)).max() > 1e-3
        np.testing.assert_allclose(mean(made, name), mean(program, name), rtol=0, atol=1e-12)
    assert all(check.error <= check.tolerance for check in proof.verify(made))


@pytest.mark.parametrize("by", ["lsq", "mean"])
@pytest.mark.parametrize("name", NETS)
def test_the_whole_recipe_on_every_network(name, by):
    program = with_data(nets.program(name))
    done = do(f"group,score{{by=wifv}},mask{{channels=0.5x}},propagate,compensate{{by={by}}},fold", program)
    assert [step.name for step in done.history] == ["group", "score", "mask", "propagate", "compensate", "fold"]
    assert all(check.error <= check.tolerance for check in proof.verify(done))


class Scaled(nn.Module):
    """A product that is scaled, with a bias that is scaled otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Parameter(torch.ones(8, 3))
        self.bias = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return torch.addmm(self.bias, self.first(x), self.last, beta=0.5, alpha=3.0)


def test_the_mean_of_a_scaled_product_is_what_it_was():
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    program = gp.load(nets.randomise(Scaled()).double(), x.double(), data=[x.double().numpy()])
    done = do("group,score,mask{channels=0.5x},propagate,compensate{by=mean}", program)
    before, after = (p.host.run([x.double().numpy()])[0].mean(0) for p in (program, done))
    assert np.allclose(before, after, atol=1e-12)
