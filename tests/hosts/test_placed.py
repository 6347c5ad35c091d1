"""Modules that accelerate has placed, on the disk or in memory apart, are read as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import graphprune as gp
from graphprune.errors import ModelError

accelerate = pytest.importorskip("accelerate")
hf = pytest.importorskip("transformers")

IDS = torch.from_numpy(np.random.default_rng(0).integers(3, 50, (2, 12)))
INPUTS = {"args": (), "kwargs": {"input_ids": IDS, "use_cache": False}}
SIZES = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
APART = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
APART |= {"model.norm": "disk", "lm_head": "disk"}


@pytest.fixture(scope="module")
def saved(request, tmp_path_factory):
    """A folder, and what the network in it makes of the inputs."""
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, tie_word_embeddings=getattr(request, "param", False))).eval()
    where = tmp_path_factory.mktemp("saved")
    model.save_pretrained(where)
    return where, model


def placed(how, where, path):
    if how == "device_map":
        kept = {**APART, "lm_head": "cpu"} if hf.AutoConfig.from_pretrained(where).tie_word_embeddings else APART
        return hf.LlamaForCausalLM.from_pretrained(where, device_map=kept, offload_folder=path).eval()
    model = hf.LlamaForCausalLM.from_pretrained(where).eval()
    if how == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True)
    elif how == "disk":
        accelerate.disk_offload(model, str(path), execution_device="cpu")
    else:  # no tensor is away, every layer has a hook
        accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    return model


@pytest.mark.parametrize(
    "saved, how",
    [(False, "device_map"), (False, "cpu"), (False, "hooks"), (True, "device_map"), (True, "disk")],
    indirect=["saved"],
)
def test_its_weights_are_read_from_where_they_are_and_it_stays_as_it_is(how, saved, tmp_path):
    where, plain = saved
    model = placed(how, where, tmp_path)
    before = {name: (id(part.forward), vars(part).get("_hf_hook")) for name, part in model.named_modules()}
    away = sum(tensor.is_meta for tensor in model.parameters())
    assert (away > 0) is (how != "hooks")
    program, want = gp.load(model, INPUTS), gp.load(plain, INPUTS)
    assert [len(program.graph.ops), list(program.graph.parameters)] == [
        len(want.graph.ops),
        list(want.graph.parameters),
    ]
    assert np.array_equal(program.host.run([IDS.numpy()])[0], want.host.run([IDS.numpy()])[0])
    assert any("accelerate" in note for note in program.notes) is (how != "hooks")
    recipe = "group{freeze=*attn*},score,mask{channels=0.5x},propagate"
    cut, same = gp.run(recipe, program), gp.run(recipe, want)
    gp.verify(cut)
    assert np.array_equal(cut.host.run([IDS.numpy()])[0], same.host.run([IDS.numpy()])[0])
    assert before.keys() == {name for name, _ in model.named_modules()}
    assert all(vars(model.get_submodule(name)).get("_hf_hook") is hook for name, (_, hook) in before.items())
    assert sum(tensor.is_meta for tensor in model.parameters()) == away
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, plain(IDS).logits)


def test_it_is_written_like_any_module_and_not_cut_in_place_where_tensors_are_away(saved, tmp_path):
    model = placed("disk", saved[0], tmp_path / "away")
    recipe = "group{freeze=*attn*},score,mask{channels=0.5x alike=layers},propagate"
    gp.compile(model, INPUTS, recipe=recipe, out=tmp_path / "out", measure=False)
    assert (tmp_path / "out/widths.json").exists()
    with pytest.raises(ModelError, match="parameters of LlamaForCausalLM are on the meta device"):
        gp.apply(gp.run(recipe, gp.load(model, INPUTS)), model, in_place=True)


def test_no_class_is_rebuilt_from_one_whose_tensors_are_away_and_it_stays_as_it_is(saved, tmp_path):
    model = placed("disk", saved[0], tmp_path / "away")
    before = model(IDS).logits
    done = gp.run("group{only=*up_proj*},score,mask{channels=0.5x},propagate", gp.load(model, INPUTS))
    with pytest.raises(ModelError, match="parameters of LlamaForCausalLM are on the meta device"):
        gp.rebuild(done, model)
    assert torch.equal(model(IDS).logits, before)
