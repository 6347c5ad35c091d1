"""Folders of transformers whose heads became narrower: the configuration says it, or why not is said."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from alone import WITHOUT
from test_configured import EXPERTS, GQA, MORE, READ, folder, made

import graphprune as gp
from graphprune.errors import ModelError
from graphprune.hosts.torch import head_width
from graphprune.hosts.torch.pretrained import example_of

hf = pytest.importorskip("transformers")

PAIRS = "*k_proj.1=3|*v_proj.1=6"
"""Three of four pairs of channels that turn together, alike in all layers, and six of eight channels of values."""
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=2.0, original_max_position_embeddings=32)


def compiled(name, sizes, widths, path):
    """The artifact of a folder at these widths."""
    source = folder(made(name, sizes), path / "in")
    recipe = f"group,score,mask{{width={widths}}},propagate"
    return gp.compile(f"hf:{source}", recipe=recipe, out=path / "out", measure=False)


def check(name, sizes, widths, path):
    """What is loaded computes what the compiled network computes. Returns its configuration."""
    artifact = compiled(name, sizes, widths, path)
    assert not [note for note in artifact.report["notes"] if "from_pretrained" in note]
    again, given = getattr(hf, name).from_pretrained(path / "out"), given_to(artifact)
    with torch.no_grad():
        found = again(**given).logits
    close(found, artifact, given)
    assert not (path / "out/modeling_pruned.py").exists()
    return json.loads((path / "out/config.json").read_text())


def check_alone(name, sizes, widths, path, own=False):
    """The same without graphprune, and it goes on with the same tokens. ``own``: in a class of its own, for none of the
    library's says it."""
    artifact = compiled(name, sizes, widths, path)
    ids = given_to(artifact)["input_ids"]
    torch.save({"input_ids": ids}, path / "given")
    assert (path / "out/modeling_pruned.py").exists() is own
    called = ["AutoModelForCausalLM" if own else name, str(path / "out"), str(path / "given")]
    subprocess.run([sys.executable, "-c", WITHOUT + READ, *called], check=True)
    found = torch.load(path / "out/out")
    close(found["logits"], artifact, {"input_ids": ids})
    for at in range(8, 40):  # greedily, by the compiled network, never the end
        scores = torch.from_numpy(artifact.program.host.run([ids.numpy()])[0])[:, at - 1].clone()
        scores[:, 2] = -torch.inf
        ids[:, at] = scores.argmax(-1)
    assert torch.equal(found["tokens"], ids[:, :40])
    return json.loads((path / "out/config.json").read_text())


def given_to(artifact):
    return example_of(artifact.program.source.pretrained.model)


def close(found, artifact, given):
    want = torch.from_numpy(artifact.program.host.run([x.numpy() for x in given.values()])[0])
    assert (found - want).abs().max() <= 1e-5 * want.abs().max()


def test_a_width_of_heads_and_the_angles_that_are_left_are_said(tmp_path):
    config = check_alone("LlamaForCausalLM", GQA, PAIRS, tmp_path)
    heads = ("head_dim", "num_attention_heads", "num_key_value_heads", "hidden_size")
    assert [config[field] for field in heads] == [6, 4, 2, 32]
    assert config["rope_parameters"]["rope_type"] == "longrope"
    again = hf.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        again(torch.arange(3, 13)[None])  # which computes them anew
    kept = json.loads((tmp_path / "out/plan.json").read_text())["parameters"]["model.rotary_emb.inv_freq"]["0"]["keep"]
    whole = hf.LlamaForCausalLM(hf.LlamaConfig(**GQA)).model.rotary_emb.inv_freq
    assert torch.equal(again.model.rotary_emb.inv_freq, whole[kept])


def test_half_the_width_of_all_heads_is_not_taken_for_half_of_them_nor_are_heads_that_go_too(tmp_path):
    config = check("LlamaForCausalLM", GQA, "*k_proj.1=2|*v_proj.1=4|*q_proj.1=1|*gate_proj=20", tmp_path)
    heads = ("head_dim", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    assert [config[field] for field in heads] == [4, 2, 2, 20]


T5 = "*Attention.k.1=5|*Attention.v.1=5"


def test_without_positions_in_a_head_its_field_is_all(tmp_path):
    config = check("T5ForConditionalGeneration", MORE["T5ForConditionalGeneration"], T5, tmp_path)
    assert (config["d_kv"], config["num_heads"], config["d_model"]) == (5, 4, 32)


@pytest.mark.slow
def test_channels_without_positions_go_where_some_turn(tmp_path):
    config = check("PhiForCausalLM", GQA, "*k_proj.2=1|*v_proj.1=5", tmp_path)
    rope = config["rope_parameters"]
    assert (config["head_dim"], int(5 * rope["partial_rotary_factor"]), rope["rope_type"]) == (5, 4, "default")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, sizes, widths",
    [
        ("MistralForCausalLM", GQA, PAIRS),
        ("Qwen2ForCausalLM", GQA, PAIRS),
        ("GemmaForCausalLM", dict(GQA, head_dim=8), PAIRS),
        ("Gemma2ForCausalLM", dict(GQA, head_dim=8), PAIRS),
        ("OlmoForCausalLM", GQA, PAIRS),
        ("SmolLM3ForCausalLM", GQA, PAIRS),
        ("MixtralForCausalLM", EXPERTS["MixtralForCausalLM"], PAIRS),
        ("PhiForCausalLM", GQA, "*k_proj.1=1|*k_proj.2=3|*v_proj.1=5"),
        ("NemotronForCausalLM", dict(GQA, head_dim=8), "*k_proj.2=3|*v_proj.1=7"),
        ("GlmForCausalLM", dict(GQA, head_dim=8), "*k_proj.3=2|*v_proj.1=6"),
        ("LlamaForCausalLM", dict(GQA, rope_parameters=LLAMA3), PAIRS),
        ("LlamaForCausalLM", dict(GQA, rope_parameters=YARN), PAIRS),
    ],
)
def test_so_do_others(name, sizes, widths, tmp_path):
    assert check(name, sizes, widths, tmp_path)["head_dim"] < 8


@pytest.mark.slow
def test_where_norms_of_queries_read_the_eps_of_all_a_class_of_its_own_says_it(tmp_path):
    sizes = dict(GQA, head_dim=8, rms_norm_eps=0.01)
    check_alone("Qwen3ForCausalLM", sizes, "*q_proj.2=3|*v_proj.1=6", tmp_path, own=True)


def test_several_widths_of_heads_are_refused_with_the_layers_that_have_them(tmp_path):
    artifact = compiled("LlamaForCausalLM", GQA, "*k_proj.1=3|*v_proj.1=4", tmp_path)
    (why,) = (note for note in artifact.report["notes"] if note.startswith("nothing that from_pretrained loads"))
    assert "heads have several widths, 4 in `model.layers.0.self_attn.o_proj.weight`, 6 in" in why
    assert "`head_dim`" in why and not (tmp_path / "out/config.json").exists()


@pytest.mark.parametrize("name", ["scaled", "_say_angles"])
def test_a_scale_or_angles_that_are_not_those_of_the_new_width_are_not_written(name, tmp_path, monkeypatch):
    """Only what the width is in a class of its own is right then."""
    monkeypatch.setattr(head_width, name, lambda first, *_: first)
    compiled("LlamaForCausalLM", GQA, PAIRS, tmp_path)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["head_dim"] == 8 and "auto_map" in config


def test_a_network_in_memory_is_rebuilt_with_the_new_width_and_does_not_save_another_scale(tmp_path):
    ids = example_of(made("LlamaForCausalLM", GQA))["input_ids"]
    recipe = "group,score,mask{width=*k_proj.1=3|*v_proj.1=6},propagate"
    model = made("LlamaForCausalLM", GQA)
    artifact = gp.compile(model, (ids,), recipe=recipe, out=tmp_path / "out", measure=False)
    want = torch.from_numpy(artifact.program.host.run([ids.numpy()])[0])
    for source in (artifact, tmp_path / "out"):
        again = gp.rebuild(source, made("LlamaForCausalLM", GQA))
        with torch.no_grad():
            assert (again(ids).logits - want).abs().max() <= 1e-5 * want.abs().max()
        with pytest.raises(ModelError, match="no configuration of LlamaForCausalLM has the widths"):
            again.save_pretrained(tmp_path / "folder")
