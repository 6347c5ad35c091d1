"""Tokens dropped where layers behind know their places: rotary tables, biases of pairs, causal masks, positions."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from nets import randomise, told_apart
from torch import Tensor, nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.errors import GraphpruneError, VerificationError
from graphprune.ir.program import Program
from graphprune.pipeline import tokens as dropping
from graphprune.pipeline.compare import relative
from graphprune.pipeline.plan_file import read_plan, write_plan
from graphprune.pipeline.replay import replay

WIDTH, HEADS, IMAGE, TEXT, BLOCKS = 8, 2, 7, 3, 4
SIZE = IMAGE + TEXT
TOLERANCE = {"torch": 1e-12, "onnx": 1e-5}
GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(4, IMAGE, 5, dtype=torch.float64, generator=GENERATOR)
IDS = torch.randint(0, 11, (4, TEXT), generator=GENERATOR)
INFINITY = float("inf")


class Places(nn.Module):
    """What a decoder knows of places: how to turn queries and keys, what to add to logits, what to add to values."""

    cos: Tensor
    sin: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        angles = torch.arange(SIZE)[:, None] * torch.tensor([1.0, 0.3]).repeat(2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.pairs = nn.Parameter(torch.randn(HEADS, SIZE, SIZE))
        self.again = nn.Parameter(torch.randn(1, SIZE, WIDTH))

    def turned(self, x: Tensor, ids: Tensor) -> Tensor:
        """``ids``: (batch, tokens), the places; or none where they are all there."""
        cos, sin = (one if ids is None else one[ids][:, None] for one in (self.cos, self.sin))
        low, high = x[..., :2], x[..., 2:]
        return x * cos + torch.cat((-high, low), -1) * sin

    def bias(self, ids: Tensor | None) -> Tensor:
        hidden = torch.ones(SIZE, SIZE, dtype=torch.bool).triu(1)
        bias = torch.zeros(SIZE, SIZE, dtype=self.pairs.dtype).masked_fill(hidden, -INFINITY)
        bias = bias + self.pairs if self.kind == "pairs" else bias[None]
        if ids is None:
            return bias
        return torch.stack([bias[:, one][:, :, one] for one in ids])


class Layer(nn.Module):
    def __init__(self, places: Places) -> None:
        super().__init__()
        self.kind, self.places = places.kind, [places]
        self.norm, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def qkv(self, x: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        x = self.norm(x)
        q, k, v = (f(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.places[0].turned(q, ids), self.places[0].turned(k, ids), v

    def shares(self, q: Tensor, k: Tensor, ids: Tensor | None) -> Tensor:
        return F.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + self.places[0].bias(ids), -1)

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kind == "causal":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.kind == "masked":
            hidden = torch.ones(SIZE, SIZE, dtype=torch.bool).tril()
            return F.scaled_dot_product_attention(q, k, v, hidden)
        if self.kind == "flat":
            b, h, n, d = q.shape
            bias = self.places[0].bias(None)[None].expand(b, h, n, n).reshape(b * h, n, n)
            q, k, v = (one.reshape(b * h, n, d) for one in (q, k, v))
            return torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)) * d**-0.5 + bias, -1), v).view(b, h, n, d)
        return self.shares(q, k, None) @ v

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x, ids)
        y = self.attended(q, k, v) if ids is None else self.shares(q, k, ids) @ v
        x = x + self.o(y.transpose(1, 2).reshape(x.shape))
        x = x + self.down(F.silu(self.up(self.norm2(x))))
        if self.kind != "again":
            return x
        again = self.places[0].again
        return x + (again if ids is None else again[0][ids])


class Decoder(nn.Module):
    """[tokens of an image | text], causal; logits of the text."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.image, self.words, self.places = nn.Linear(5, WIDTH), nn.Embedding(11, WIDTH), Places(kind)
        self.layers = nn.ModuleList(Layer(self.places) for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        x = torch.cat((self.image(x), self.words(ids)), 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, -TEXT:])


KINDS = ("written", "pairs", "causal", "masked", "flat", "again")


@cache
def module(kind: str) -> Decoder:
    return told_apart(Decoder(kind).double().eval())


@cache
def program(net: str) -> Program:
    kind, host = net.split()
    if host == "torch":
        return gp.load(module(kind), (X[:2], IDS[:2]), data=[{"x": X.numpy(), "ids": IDS.numpy()}])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        gp.load(copy.deepcopy(module(kind)).float(), (X[:2].float(), IDS[:2])).host.save_onnx(path)
        return gp.load(path)


def samples(given: Program) -> list[np.ndarray]:
    return [X.numpy().astype(given.host.example()[0].dtype), IDS.numpy()]


@torch.no_grad()
def reference(made: Decoder, keep: tuple[int, ...], after: tuple[int, ...], end: int = IMAGE) -> np.ndarray:
    """The same with its places said, sample by sample: of tokens 0 to ``end`` those that the last attends to most."""
    x, ids = torch.cat((made.image(X), made.words(IDS)), 1), torch.arange(SIZE).repeat(len(X), 1)
    for number, layer in enumerate(made.layers, 1):
        q, k, _ = layer.qkv(x, ids)
        attended = layer.shares(q, k, ids)[:, :, -1].mean(1)
        x = layer(x, ids)
        if number in after:
            some, best = end - SIZE + x.shape[1], keep[after.index(number)]
            kept = [torch.sort(torch.argsort(-one[:some])[:best])[0] for one in attended]
            kept = [torch.cat((one, torch.arange(some, x.shape[1]))) for one in kept]
            x, ids = (torch.stack([a[at] for a, at in zip(b, kept, strict=True)]) for b in (x, ids))
    return made.head(x[:, -TEXT:]).numpy()


STAGES = (("3", "2"), ("5|2", "1|3"))
QUICK = {("torch", "pairs", 1), ("torch", "causal", 1), ("onnx", "pairs", 1)}


@pytest.mark.parametrize(
    ("host", "kind", "stage"),
    [
        pytest.param(host, kind, stage, marks=() if (host, kind, stage) in QUICK else pytest.mark.slow)
        for host in TOLERANCE
        for kind in KINDS
        for stage in (0, 1)
    ],
)
def test_a_token_that_stays_keeps_its_place(host: str, kind: str, stage: int) -> None:
    keep, after = STAGES[stage]
    given = program(f"{kind} {host}")
    done = gp.run(f"tokens{{keep={keep} after={after}}}", given)
    wanted = reference(module(kind), *(tuple(map(int, text.split("|"))) for text in (keep, after)))
    found, whole = done.host.run(samples(given))[0], given.host.run(samples(given))[0]
    assert relative(wanted, found) <= TOLERANCE[host]
    assert relative(whole, found) > 1e-3, "nothing was dropped"
    checks = {check.what.rpartition(",")[0]: check for check in gp.verify(done)}
    assert checks["opened = original, what was dropped masked"].holds


@pytest.mark.slow
@settings(max_examples=4, deadline=None, database=None, derandomize=True)
@drawn(st.integers(2, IMAGE), st.data())
def test_of_any_number_by_any_stages(first: int, data: st.DataObject) -> None:
    keep = (first, data.draw(st.integers(2, first)))  # 1 is all
    after = tuple(sorted(data.draw(st.sets(st.integers(1, BLOCKS - 1), min_size=2, max_size=2))))
    done = gp.run(
        f"tokens{{keep={'|'.join(map(str, keep))} after={'|'.join(map(str, after))}}}", program("pairs torch")
    )
    assert relative(reference(module("pairs"), keep, after), done.host.run(samples(done))[0]) <= 1e-12


@pytest.mark.parametrize("amiss", ["row", "axis"])
def test_a_wrong_place_is_noticed(amiss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a rotary table too far, or a bias of pairs whose queries are gathered alone."""
    gather, takes = dropping._Making.gather, dropping._Making.remember

    def shifted(self: dropping._Making, ids: str) -> None:
        takes(self, ids)
        own = self.ids
        self.ids = self.call("concat", *(self.part(own, a, b) for a, b in ((1, 4), (0, 1), (4, 6))), axis=1)

    def once(self: dropping._Making, reading: object) -> None:
        call = self.call

        def tampered(kind: str, *inputs: str, **attrs: object) -> str:
            if kind == "take":  # the keys': the first as many
                return call("slice", inputs[0], axis=1, start=0, end=self.size_left(reading))
            return call(kind, *inputs, **attrs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self, "call", tampered)
            gather(self, reading)

    monkeypatch.setattr(dropping._Making, *(("remember", shifted) if amiss == "row" else ("gather", once)))
    done = gp.run("tokens{keep=3 after=2}", program("pairs torch"))
    with pytest.raises(VerificationError, match=r"after `tokens.*differs from the original"):
        gp.verify(done)


def test_places_say_which_may_go(tmp_path: Path) -> None:
    given = program("causal torch")
    done = gp.run("tokens{keep=2 after=2 places=0-3}", given)
    assert relative(reference(module("causal"), (2,), (2,), 4), done.host.run(samples(given))[0]) <= 1e-12
    write_plan(tmp_path, done.plan)
    plan = read_plan(tmp_path / "plan.json")
    assert dict(plan)["steps"][0]["places"] == [0, 3]
    assert np.array_equal(replay(plan, given.host).host.run(samples(given))[0], done.host.run(samples(given))[0])


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ("0-7", "places=0-7: of 10 tokens 0-6 may go, others are class tokens, registers, text, or the last"),
        ("3-2", "places=3-2 is no range of tokens"),
        ("4", "places=4 is no range of tokens"),
    ],
)
def test_places_that_must_stay_are_refused(places: str, said: str) -> None:
    with pytest.raises(GraphpruneError) as error:
        gp.run(f"tokens{{keep=1 after=2 places={places}}}", program("causal torch"))
    assert said in error.value.message


@cache
def llama(heads: int) -> Program:
    """A decoder of transformers that is given embeddings: of an image, and of text."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    options = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**options, num_key_value_heads=heads, vocab_size=11)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder, self.image = transformers.LlamaForCausalLM(config), nn.Linear(5, 16)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            x = torch.cat((self.image(x), self.decoder.get_input_embeddings()(ids)), 1)
            return self.decoder(inputs_embeds=x, use_cache=False, logits_to_keep=TEXT).logits

    return gp.load(randomise(Model().double().eval()), (X[:2], IDS[:2]), data=[{"x": X.numpy(), "ids": IDS.numpy()}])


@pytest.mark.slow
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("by", ["attention", "flow"])
def test_a_decoder_of_transformers_with_a_proof(heads: int, by: str) -> None:
    done = gp.run(f"tokens{{keep=4|2 after=1|2 by={by}}},group,score,mask{{params=0.8x}},propagate", llama(heads))
    assert all(check.holds for check in gp.verify(done))
    assert done.plan["steps"]


def test_of_a_vision_language_model_tokens_of_the_image_go_behind_a_block_of_its_language_model() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = transformers.LlamaConfig(vocab_size=12, **sizes)
    vision = transformers.CLIPVisionConfig(image_size=12, patch_size=4, projection_dim=16, **sizes)
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=11)

    class Model(nn.Module):
        """The logits of what comes next."""

        def __init__(self) -> None:
            super().__init__()
            self.network = transformers.LlavaForConditionalGeneration(config)

        def forward(self, ids: Tensor, pixels: Tensor) -> Tensor:
            return self.network(input_ids=ids, pixel_values=pixels, logits_to_keep=1).logits

    ids = torch.tensor([[1, *[11] * 9, 4, 5, 6], [2, *[11] * 9, 7, 8, 9]])  # a token, the image, text
    program = gp.load(randomise(Model().eval()), (ids, torch.randn(2, 3, 12, 12)))
    done = gp.run("tokens{keep=3 after=1 places=1-9}", program)
    lengths = [(op.outputs[0].shape or ())[2] for op in done.graph.ops if op.kind == "attention"]
    assert lengths == [10, 10, 13, 7]  # two blocks that look at the image, with its class token, and two that read
    assert all(check.holds for check in gp.verify(done))
