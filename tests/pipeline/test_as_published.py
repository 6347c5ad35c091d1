"""What each recipe chooses is what its paper says, by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import nets
import numpy as np
import torch
from residual import Transformer, transformer
from torch import nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.cost.static import params
from graphprune.coupling.branches import residuals
from graphprune.ir.facts import Scores
from graphprune.ir.program import Program
from graphprune.pipeline.bypass import Bypass
from graphprune.pipeline.edits import Cut
from graphprune.pipeline.factoring import ranks
from graphprune.pipeline.published import published
from graphprune.pipeline.recipe import Recipe

DEPTH = 4
MODULE, X = transformer(DEPTH)
DATA = np.random.default_rng(5).standard_normal((48, 4, 5))
PROGRAM = gp.load(MODULE, (X,), data=[DATA])
Array = np.ndarray[Any, Any]


def made(name: str, share: str, steps: int | None = None, **changes: str) -> Program:
    """The network after a recipe, or the first steps of it."""
    text = published()[name].recipe("params", share).text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return gp.run(Recipe(Recipe.parse(text).steps[:steps]), PROGRAM)


def blocks(program: Program) -> set[str]:
    return {name.split(".")[1] for name in program.graph.parameters if name.startswith("blocks.")}


def stream() -> list[Array]:
    """The stream before every block, and behind the last."""
    assert isinstance(MODULE, Transformer)
    with torch.no_grad():
        x = [MODULE.stem(torch.from_numpy(DATA))]
        for block in MODULE.blocks:
            x.append(block(x[-1]))
    return [one.numpy() for one in x]


def angle(a: Array, b: Array) -> float:
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return float(np.arccos(cosine).mean())


def kl(program: Program) -> float:
    """Of the next class, from that of the whole network."""
    p, q = (F.log_softmax(torch.from_numpy(one.run([DATA])[0]), -1) for one in (PROGRAM.host, program.host))
    return float((p.exp() * (p - q)).sum(-1).mean())


def shortest(program: Program, distance: Callable[[Program], float], attends: bool | None = None) -> Program:
    """Without the branch whose absence is least far away."""
    found = [one for one in residuals(program.graph)[0] if attends is None or one.attends == attends]
    return min((Bypass((one.branch,)).apply(program) for one in found), key=distance)


def size(program: Program) -> float:
    return params(program.graph, program.host)()


def test_shortgpt_takes_the_block_that_turns_the_stream_least() -> None:
    x = stream()
    least = min(range(DEPTH), key=lambda k: angle(x[k], x[k + 1]))
    assert blocks(made("shortgpt", "0.8x")) == {str(k) for k in range(DEPTH) if k != least}


def test_a_span_in_a_row_is_that_of_the_least_angle_between_its_ends() -> None:
    x = stream()
    least = min(range(DEPTH - 1), key=lambda k: angle(x[k], x[k + 2]))
    done = made("shortgpt", "0.6x", **{"of=block": "of=block span=2"})
    assert blocks(done) == {str(k) for k in range(DEPTH) if k not in (least, least + 1)}


def test_replaceme_takes_the_same_block_and_fits_the_layer_before_it() -> None:
    done, bare = made("replaceme", "0.8x"), made("shortgpt", "0.8x")
    assert blocks(done) == blocks(bare)
    (gone,) = {str(k) for k in range(DEPTH)} - blocks(done)
    before = f"blocks.{int(gone) - 1}.down.weight" if int(gone) else "stem.weight"
    assert not np.allclose(done.host.parameter(before), PROGRAM.host.parameter(before), rtol=1e-3)
    errors = [np.square(one.host.run([DATA])[0] - PROGRAM.host.run([DATA])[0]).mean() for one in (done, bare)]
    assert errors[0] < 0.7 * errors[1]


def test_finercut_takes_again_and_again_the_branch_whose_absence_changes_the_outputs_least() -> None:
    left = PROGRAM
    while size(left) > 0.8 * size(PROGRAM):
        left = shortest(left, lambda one: kl(one))
    done = made("finercut", "0.8x")
    assert {*done.graph.parameters} == {*left.graph.parameters}


def neurons() -> list[Array]:
    """What the second layer of every feed-forward part reads: (samples x tokens, neurons)."""
    seen = list[Array]()
    assert isinstance(MODULE, Transformer)
    hooks = [b.down.register_forward_hook(lambda _, x, y: seen.append(x[0].numpy())) for b in MODULE.blocks]
    with torch.no_grad():
        MODULE(torch.from_numpy(DATA))
    for hook in hooks:
        hook.remove()
    return [one.reshape(-1, one.shape[-1]) for one in seen]


def weight(k: int) -> Array:
    return PROGRAM.host.parameter(f"blocks.{k}.down.weight")


def test_2ssp_takes_neurons_by_the_norm_of_what_they_add_and_then_an_attention() -> None:
    done = made("2ssp", "0.8x")
    first, *_ = done.plan.of(Cut)
    for k, x in enumerate(neurons()):
        adds = np.square(x).mean(0) * np.square(weight(k)).sum(0)
        kept = first.keep[f"blocks.{k}.up"]
        assert 0 < len(kept) < len(adds)
        assert set(kept) == set(np.argsort(-adds)[: len(kept)])
    assert len({len(first.keep[f"blocks.{k}.up"]) for k in range(DEPTH)}) == 1  # as many of each
    cut = first.apply(PROGRAM)
    # against the network that is cut, as the second stage sees no other
    expected = cut.host.run([DATA])[0]

    def distance(one: Program) -> float:
        p, q = (F.log_softmax(torch.from_numpy(y), -1) for y in (expected, one.host.run([DATA])[0]))
        return float((p.exp() * (p - q)).sum(-1).mean())

    (bypass,) = done.plan.of(Bypass)
    left = shortest(cut, distance, attends=True)
    assert len(bypass.branches) == 1
    assert {*done.graph.parameters} == {*left.graph.parameters}


def test_flap_scores_by_fluctuation_and_adds_what_is_gone_on_the_average_to_biases() -> None:
    scores = made("flap", "0.8x", 2).fact(Scores)
    xs = neurons()
    for k, x in enumerate(xs):
        plain = x.var(0) * np.square(weight(k)).sum(0)
        ours = scores.scores[f"blocks.{k}.up"]
        assert np.allclose(ours, (plain - plain.mean()) / plain.std(), rtol=1e-5, atol=1e-7)
    done = made("flap", "0.6x")
    (cut,) = done.plan.of(Cut)
    assert len({len(cut.keep[f"blocks.{k}.up"]) for k in range(DEPTH)}) > 1  # one threshold for all layers
    worst_kept = min(scores.scores[f"blocks.{k}.up"][list(cut.keep[f"blocks.{k}.up"])].min() for k in range(DEPTH))
    for k, x in enumerate(xs):
        kept = cut.keep[f"blocks.{k}.up"]
        gone = [j for j in range(x.shape[1]) if j not in kept]
        assert len(kept) == 1 or all(scores.scores[f"blocks.{k}.up"][j] <= worst_kept for j in gone)
        change = done.host.parameter(f"blocks.{k}.down.bias") - PROGRAM.host.parameter(f"blocks.{k}.down.bias")
        assert np.allclose(change, weight(k)[:, gone] @ x.mean(0)[gone], rtol=1e-4, atol=1e-6)


def test_multipruner_takes_blocks_then_neurons_then_heads_44_52_and_4_of_100() -> None:
    text = published()["multipruner"].recipe("params", "0.5x").text()
    left = [float(part.split("x")[0]) for part in text.split("params=")[1:]]
    goes = [1 - left[0], *(a - b for a, b in itertools.pairwise(left))]
    assert np.allclose(np.array(goes) / 0.5, [0.44, 0.52, 0.04])
    done = made("multipruner", "0.45x")
    kinds = [type(edit).__name__ for edit in done.plan.edits]
    assert kinds[0] == "Bypass" and kinds[1:] in (["Cut"], ["Cut", "Cut"])
    (bypass,) = done.plan.of(Bypass)
    assert len(bypass.branches) % 2 == 0  # whole blocks
    first, *rest = done.plan.of(Cut)
    assert all(name.endswith(".up") for name, kept in first.keep.items() if len(kept) < 10)
    assert not any(name.endswith(".up") for cut in rest for name in cut.keep)


def test_slicegpt_keeps_the_principal_directions_of_the_stream() -> None:
    """Of a stream with most of its energy in few directions, those."""
    torch.manual_seed(0)
    module = nets.randomise(Transformer(2).double().eval())
    with torch.no_grad():  # without means, so that variance and second moment say the same
        scale = torch.linspace(3, 0.05, 12, dtype=torch.float64)
        turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
        for layer in (module.stem, *(part for b in module.blocks for part in (b.proj, b.down))):
            layer.weight.copy_(turn * scale @ torch.linalg.pinv(turn) @ layer.weight)
            layer.bias.zero_()
    program = gp.load(module, (X,), data=[DATA])
    done = gp.run(published()["slicegpt"].recipe("params", "0.7x"), program)
    (cut,) = done.plan.of(Cut)
    (kept,) = cut.keep.values()
    assert 0 < len(kept) < 12
    assert list(kept) == list(range(len(kept)))  # principal directions fall


def test_alds_has_the_least_largest_relative_error_of_all_ranks() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 9), nn.Linear(9, 8), nn.Linear(8, 10)]
    net = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).double().eval()
    with torch.no_grad():
        for k, layer in enumerate(layers):
            u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
            layer.weight.copy_(u * (s * torch.linspace(1, 0.2 + 0.2 * k, len(s), dtype=torch.float64)) @ v)
    program = gp.load(net, (torch.zeros(2, 8, dtype=torch.float64),))
    weights = [layer.weight.detach().numpy() for layer in layers]
    values = [np.linalg.svd(w, compute_uv=False) for w in weights]
    biases = sum(w.shape[0] for w in weights)
    budget = 0.7 * size(program)

    def worst(chosen: tuple[int, ...]) -> tuple[float, float]:
        """The largest error, and the size."""
        errors, total = [0.0], float(biases)
        for k, rank in enumerate(chosen):
            whole, two = weights[k].size, rank * sum(weights[k].shape)
            errors.append(values[k][rank] / values[k][0] if rank < len(values[k]) and two < whole else 0.0)
            total += min(whole, two)
        return max(errors), total

    fits = [one for one in itertools.product(range(1, 9), repeat=3) if worst(one)[1] <= budget]
    best = min(worst(one)[0] for one in fits)
    done = gp.run(published()["alds"].recipe("params", "0.7x"), program)
    assert size(done) <= budget
    found = {rank.outers[0]: int(rank.dim.size) for rank in ranks(done).values()}
    names = [op.name for op in program.graph.ops if op.kind == "linear"]
    ours = tuple(found.get(name, 8) for name in names)
    assert worst(ours)[0] <= best * (1 + 1e-9)
