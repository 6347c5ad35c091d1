"""Folders of transformers with a smaller hidden size: the configuration says it, or a class of its own does."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from alone import WITHOUT
from safetensors import safe_open
from test_configured import GQA, READ, folder, made

import graphprune as gp
from graphprune.hosts.torch.own_class import NOTE
from graphprune.hosts.torch.pretrained import example_of as given

pytest.importorskip("transformers")

LARGE = dict(GQA, rms_norm_eps=0.01)
"""With an eps that is seen in what comes out."""


def check(name, sizes, path, width=24, recipe="rms,rotate,"):
    """What is loaded computes what the compiled network computes, and goes on with the same 32 tokens. Returns its
    configuration where that says all, else None."""
    model = made(name, sizes)
    source = folder(model, path / "in")
    torch.save(given(model), path / "given")
    recipe = f"{recipe}group{{places=stream}},score,mask{{width=*={width}}},propagate"
    data = {"input_ids": np.random.default_rng(0).integers(3, 50, (8, 60))}
    artifact = gp.compile(f"hf:{source}", recipe=recipe, data=data, out=path / "out", measure=False)
    own = (path / "out/modeling_pruned.py").exists()
    assert [note for note in artifact.report["notes"] if "from_pretrained" in note] == [NOTE] * own
    called = ["AutoModelForCausalLM" if own else name, str(path / "out"), str(path / "given")]
    subprocess.run([sys.executable, "-c", WITHOUT + READ, *called], check=True)
    found, ids = torch.load(path / "out/out"), given(model)["input_ids"]
    want = torch.from_numpy(artifact.program.host.run([ids.numpy()])[0])
    assert (found["logits"] - want).abs().max() <= 1e-5 * want.abs().max()
    for at in range(8, 40):  # greedily, by the compiled network, never the end; what comes behind does not count
        scores = torch.from_numpy(artifact.program.host.run([ids.numpy()])[0])[:, at - 1].clone()
        scores[:, model.config.eos_token_id] = -torch.inf
        ids[:, at] = scores.argmax(-1)
    assert torch.equal(found["tokens"], ids[:, :40])
    return None if own else json.loads((path / "out/config.json").read_text())


def test_the_configuration_says_a_smaller_hidden_size_and_the_eps_that_goes_with_it(tmp_path):
    config = check("LlamaForCausalLM", LARGE, tmp_path)
    assert (config["hidden_size"], config["head_dim"], config["intermediate_size"]) == (24, 8, 48)
    assert config["rms_norm_eps"] == pytest.approx(0.01 * 32 / 24)


@pytest.mark.parametrize("recipe, tied", [("rms{untie=true},rotate{untie=true},", False), ("", True)])
def test_embeddings_that_were_tied_are_as_long_as_they_compute_the_same(recipe, tied, tmp_path):
    config = check("LlamaForCausalLM", dict(LARGE, tie_word_embeddings=True), tmp_path, recipe=recipe)
    assert (config["hidden_size"], config["tie_word_embeddings"]) == (24, tied)
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        names = {"model.embed_tokens.weight", "lm_head.weight"} & {*file.keys()}
        assert len(names) == (1 if tied else 2)
        if not tied:
            assert not torch.equal(*(file.get_tensor(name) for name in names))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MistralForCausalLM", "Qwen2ForCausalLM"])
def test_so_do_others(name, tmp_path):
    config = check(name, LARGE, tmp_path, 26)
    assert (config["hidden_size"], config["rms_norm_eps"]) == (26, pytest.approx(0.01 * 32 / 26))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, width",
    [
        ("Qwen3ForCausalLM", 24),  # norms of queries read the same eps
        ("LlamaForCausalLM", 26),  # no multiple of the heads
    ],
)
def test_what_it_cannot_say_a_class_of_its_own_does(name, width, tmp_path):
    assert check(name, dict(LARGE, head_dim=8), tmp_path, width) is None
