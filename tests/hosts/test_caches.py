"""Decoders that take their cache of keys and values as inputs, and hand it out longer: heads go with it on demand."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import ModelError
from graphprune.pipeline.replay import replay

WIDTH, HEADS, PAIRS, HEAD = 16, 4, 2, 4


class Decoder(nn.Module):
    """Two blocks of grouped queries. A cache is keys and values of each block, or one tensor for ``all`` of them."""

    def __init__(self, all_in_one):
        super().__init__()
        self.all_in_one, kv = all_in_one, PAIRS * HEAD
        self.embed, self.head = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 20)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv = nn.ModuleList(
            nn.ModuleList(nn.Linear(WIDTH, size) for size in (HEADS * HEAD, kv, kv)) for _ in range(2)
        )
        self.out = nn.ModuleList(nn.Linear(HEADS * HEAD, WIDTH) for _ in range(2))

    def forward(self, ids, *past):
        x, made = self.embed(ids), []
        for k, (norm, layers, out) in enumerate(zip(self.norms, self.qkv, self.out, strict=True)):
            h = norm(x)
            q, key, value = (layer(h).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in layers)
            before = past[0][k].unbind(0) if self.all_in_one else past[2 * k : 2 * k + 2]
            key, value = (torch.cat(pair, 2) for pair in zip(before, (key, value), strict=True))
            made += [torch.stack([key, value])] if self.all_in_one else [key, value]
            long, new = key.shape[2], ids.shape[1]
            many = (one.repeat_interleave(HEADS // PAIRS, 1) for one in (key, value))
            seen = torch.arange(long)[None] <= torch.arange(long - new, long)[:, None]
            y = nn.functional.scaled_dot_product_attention(q, *many, attn_mask=seen)
            x = x + out(y.transpose(1, 2).flatten(2))
        return (self.head(x), *([torch.stack(made)] if self.all_in_one else made))


def decoder(all_in_one):
    torch.manual_seed(0)
    model = Decoder(all_in_one).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(0.4 * torch.randn_like(tensor))
    return model


def caches(all_in_one, heads, length, width=HEAD):
    if all_in_one:
        return [torch.randn(2, 2, 2, heads, length, width)]
    return [torch.randn(2, heads, length, width) for _ in range(4)]


def loading(kind, all_in_one, path):
    model, auto = decoder(all_in_one), torch.export.Dim.AUTO
    example = (torch.randint(0, 20, (2, 3)), *caches(all_in_one, PAIRS, 5))
    open_axes = {2: auto, 4: auto} if all_in_one else {0: auto, 2: auto}
    shapes = ({0: auto, 1: auto}, tuple(open_axes for _ in example[1:]))
    if kind == "torch":
        return lambda: gp.load(model, example, dynamic_shapes=shapes)
    names = [[name, *(f"{what}.{k}" for k in range(4))] for name, what in (("ids", "past"), ("logits", "present"))]
    made = torch.onnx.export(model, example, dynamo=True, input_names=names[0], output_names=names[1],
                             dynamic_shapes=shapes, verbose=False)  # fmt: skip
    made.save(path / "decoder.onnx")
    return lambda: gp.load(path / "decoder.onnx")


def runner(host, path):
    if host.kind == "torch":
        return host.model
    host.save(path)
    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_inputs()]
    return lambda *given: [
        torch.from_numpy(out) for out in session.run(None, dict(zip(names, map(np.asarray, given), strict=True)))
    ]


@torch.no_grad()
def greedy(run, ids, past, steps=16):
    """Tokens, and all logits, each step on the cache of the one before."""
    tokens, scores = [], []
    for _ in range(steps):
        logits, *past = run(ids, *past)
        ids = logits[:, -1:].argmax(-1)
        tokens.append(ids)
        scores.append(logits[:, -1])
    return torch.cat(tokens, 1), torch.stack(scores)


@pytest.mark.parametrize(("kind", "all_in_one"), [("torch", False), ("torch", True), ("onnx", False)])
def test_key_value_heads_go_with_their_cache_where_that_is_asked_for(kind, all_in_one, tmp_path):
    load = loading(kind, all_in_one, tmp_path)
    program = load()
    past = "|".join(value.name for value in program.graph.inputs[1:])
    done = gp.run(f"group{{states={past} places=heads}},score,mask{{channels=0.5x floor=0}},propagate", program)
    gp.verify(done)
    heads = [value.shape[-3] for value in done.graph.inputs[1:]]
    assert set(heads) == {1} and any("the input" in note and "it was" in note for note in done.notes)
    masked = replay(done.plan, load().host, masked=True).host
    ids = torch.randint(0, 20, (2, 3))
    cut, zeroed = runner(done.host, tmp_path / "cut.onnx"), runner(masked, tmp_path / "masked.onnx")
    found = greedy(cut, ids, caches(all_in_one, 1, 0))
    want = greedy(zeroed, ids, caches(all_in_one, PAIRS, 0))
    assert torch.equal(found[0], want[0])
    assert (found[1] - want[1]).abs().max() <= 1e-5 * want[1].abs().max()


def test_by_themselves_heads_of_a_cache_stay_and_the_hint_says_how_they_go(tmp_path):
    with pytest.raises(ModelError, match=r"qkv.0.0.0: graph input") as error:
        gp.run("group", loading("torch", False, tmp_path)())
    assert "group{states=NAMES}" in error.value.hint
