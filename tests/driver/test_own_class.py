"""Folders with a class of their own (modeling_pruned.py), compiled again: their widths go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from alone import WITHOUT
from test_configured import EXPERTS, GQA, MORE, READ, folder, made, masked, widths_of

import graphprune as gp
from graphprune.errors import ModelError
from graphprune.hosts.torch.pretrained import example_of

hf = pytest.importorskip("transformers")

SLICED = "rms{untie=true},rotate{untie=true},group{places=stream},score{by=variance},mask{params=0.85x},propagate"
NARROW = "group,score,mask{width=*q_proj.2=3|*v_proj.1=6},propagate"
FITTED = "group{freeze=*attn*},score,mask{width=*layers.0*gate_proj=20},propagate,compensate"


def data():
    return {"input_ids": np.random.default_rng(0).integers(3, 50, (16, 60))}


def given(again):
    return {"params": again, "alike": False} if again.endswith("x") else {"recipe": again}


@pytest.mark.parametrize(
    ("name", "first", "again"),
    [
        ("LlamaForCausalLM", "0.8x", "0.85x"),  # counts of heads in each block
        pytest.param("Qwen3ForCausalLM", SLICED, SLICED, marks=pytest.mark.slow),  # eps by the channels that are left
        pytest.param("Qwen3ForCausalLM", NARROW, "0.9x", marks=pytest.mark.slow),  # angles that no checkpoint has
        pytest.param(
            "LlamaForCausalLM", FITTED, FITTED.replace("layers.0", "layers.1"), marks=pytest.mark.slow
        ),  # biases
    ],
    ids=["unlike", "eps", "angles", "biases"],
)
def test_a_folder_with_a_class_of_its_own_is_cut_again(name, first, again, tmp_path):
    source = folder(made(name, dict(GQA, head_dim=8)), tmp_path / "in")
    gp.compile(f"hf:{source}", data=data(), out=tmp_path / "once", measure=False, **given(first))
    done = gp.compile(f"hf:{tmp_path / 'once'}", data=data(), out=tmp_path / "out", measure=False, **given(again))
    ids = torch.from_numpy(done.program.host.example()[0])
    torch.save({"input_ids": ids}, tmp_path / "given")
    called = ["AutoModelForCausalLM", str(tmp_path / "out"), str(tmp_path / "given")]
    home = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", WITHOUT + READ, *called], check=True, env=home)
    found = torch.load(tmp_path / "out/out")
    want = torch.from_numpy(done.program.host.run([ids.numpy()])[0])
    assert (found["logits"] - want).abs().max() <= 1e-5 * want.abs().max()
    before = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("once", "out")]
    assert before[0]["widths"] != before[1]["widths"] and before[0]["num_attention_heads"] == 4
    if first == "0.8x":
        zeroed = masked(done, done.program.source.pretrained.model)
        tokens = zeroed.generate(ids[:, :8], max_new_tokens=32, min_new_tokens=32, do_sample=False)
        assert torch.equal(found["tokens"], tokens)
        assert any("layers need not be alike" in note for note in done.report["notes"])


def test_a_folder_of_which_weights_would_come_back_otherwise_is_not_written(tmp_path, monkeypatch):
    """The library renames the head of GPT-NeoX as it saves and loads it, but not that of a class of somebody's own."""
    source = folder(made("GPTNeoXForCausalLM", MORE["GPTNeoXForCausalLM"]), tmp_path / "in")

    def compiled(name):
        done = gp.compile(f"hf:{source}", params="0.8x", alike=False, out=tmp_path / name, measure=False)
        return [note for note in done.report["notes"] if note.startswith("nothing that from_pretrained loads")]

    assert compiled("whole") == [] and (tmp_path / "whole/config.json").exists()
    assert gp.load(f"hf:{tmp_path / 'whole'}").host.parameter("lm_head.weight").shape == (50, 32)
    save = hf.PreTrainedModel.save_pretrained
    renamed = lambda self, *args, **options: save(self, *args, **{**options, "save_original_format": True})  # noqa: E731
    monkeypatch.setattr(hf.PreTrainedModel, "save_pretrained", renamed)
    (why,) = compiled("renamed")
    assert "are not in its files" in why or "does not come back" in why
    assert {path.name for path in (tmp_path / "renamed").iterdir()} >= {"model.pt2", "widths.json"}
    assert not (tmp_path / "renamed/config.json").exists()


@pytest.mark.parametrize(
    ("groups", "recipe", "counts"),
    [
        pytest.param((2, 1), "group{places=experts},score,mask{width=*gate.1=3},propagate", (6, 2), id="from-each"),
        pytest.param((4, 2), "group{places=experts},score,mask{width=*gate.0=3},propagate", (6, 3), id="whole"),
        pytest.param((2, 1), "stun", None, id="stun"),  # and widths of what all share: one field says both
        pytest.param(
            (4, 2),
            "group{places=experts|inner freeze=*attn*},score,mask{width=*gate.0=3|*shared*=9},propagate",
            None,
            id="whole-unsaid",
        ),
    ],
)
def test_groups_of_experts_that_tokens_choose_among_are_counted(groups, recipe, counts, tmp_path):
    """DeepSeek-V3's routers keep a number of groups, and a number of experts that they are as many shares of."""
    sizes = dict(EXPERTS["DeepseekV3ForCausalLM"], n_routed_experts=8, n_group=groups[0], topk_group=groups[1])
    source = folder(made("DeepseekV3ForCausalLM", sizes), tmp_path / "in")
    budget = {"params": "0.7x"} if recipe == "stun" else {}
    done = gp.compile(f"hf:{source}", recipe=recipe, out=tmp_path / "out", measure=False, **budget)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert ("widths" in config) is (counts is None)
    assert counts is None or (config["n_routed_experts"], config["n_group"]) == counts
    again, example = gp.load(f"hf:{tmp_path / 'out'}"), done.program.host.example()
    assert again.graph.parameters["model.layers.0.mlp.gate.weight"].shape == (6, 32)
    found, want = again.host.run(example)[0], done.program.host.run(example)[0]
    assert np.abs(found - want).max() <= 1e-5 * np.abs(want).max()


def test_groups_of_experts_go_whole_in_place_and_where_a_class_is_rebuilt(tmp_path):
    sizes = dict(EXPERTS["DeepseekV3ForCausalLM"], n_routed_experts=8, n_group=4, topk_group=2)
    model, other = (made("DeepseekV3ForCausalLM", sizes) for _ in range(2))
    ids = example_of(model)["input_ids"]
    recipe = "group{only=*gate.0},score,mask{width=*gate.0=3},propagate"
    done = gp.run(recipe, gp.load(model, (ids,)))
    gp.apply(done, model, in_place=True)
    source = folder(made("DeepseekV3ForCausalLM", sizes), tmp_path / "in")
    gp.compile(f"hf:{source}", recipe=recipe, out=tmp_path / "out", measure=False)
    of_a_folder = gp.rebuild(tmp_path / "out", made("DeepseekV3ForCausalLM", sizes))
    gp.compile(made("DeepseekV3ForCausalLM", sizes), (ids,), recipe=recipe, out=tmp_path / "own", measure=False)
    of_a_module = gp.rebuild(tmp_path / "own", made("DeepseekV3ForCausalLM", sizes))
    for number, cut in enumerate((model, gp.rebuild(done, other), of_a_folder, of_a_module)):
        assert (cut.config.n_routed_experts, cut.config.n_group) == (6, 3)
        cut.save_pretrained(tmp_path / str(number))
        again = hf.DeepseekV3ForCausalLM.from_pretrained(tmp_path / str(number))
        with torch.no_grad():
            assert torch.equal(again(ids).logits, cut(ids).logits)
            want = torch.from_numpy(done.host.run([ids.numpy()])[0])
            assert (again(ids).logits - want).abs().max() <= 1e-5 * want.abs().max()


def test_layers_with_several_counts_of_groups_of_experts_are_told_of(tmp_path):
    sizes = dict(EXPERTS["DeepseekV3ForCausalLM"], n_routed_experts=8, n_group=4, topk_group=2)
    source = folder(made("DeepseekV3ForCausalLM", sizes), tmp_path / "in")
    recipe = "group{only=*layers.0*gate.0},score,mask{width=*gate.0=3},propagate"
    done = gp.compile(f"hf:{source}", recipe=recipe, out=tmp_path / "out", measure=False)
    (why,) = [note for note in done.report["notes"] if note.startswith("nothing that from_pretrained loads")]
    assert "3 in `model.layers.0.mlp.experts.down_proj`, 4 in `model.layers.1.mlp" in why and "`n_group`" in why


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("BertForMaskedLM", True),
        pytest.param("BartForConditionalGeneration", True, marks=pytest.mark.slow),
        pytest.param("GPTNeoXForCausalLM", True, marks=pytest.mark.slow),
        ("OPTForCausalLM", False),
        pytest.param("GPT2LMHeadModel", False, marks=pytest.mark.slow),
        pytest.param("DebertaV2ForMaskedLM", False, marks=pytest.mark.slow),
    ],
)
def test_heads_that_no_field_counts_are_in_a_class_of_its_own_or_why_not_is_said(name, written, tmp_path):
    """There hidden_size is what all heads come to: classes that go by a head's width take fewer, others count them."""
    source = folder(made(name, MORE[name]), tmp_path / "in")
    heads = "group{places=heads},score,mask{channels=0.5x floor=0},propagate"
    done = gp.compile(f"hf:{source}", recipe=heads, out=tmp_path / "out", measure=False)
    why = [note for note in done.report["notes"] if note.startswith("nothing that from_pretrained loads")]
    assert bool(why) is not written and (tmp_path / "out/config.json").exists() is written
    assert all(f"{name} cannot be rebuilt" in note and "should have" in note for note in why)
    if written:
        again = gp.load(f"hf:{tmp_path / 'out'}")
        want = done.program.host.run(done.program.host.example())[0]
        found = again.host.run(done.program.host.example())[0]
        assert np.abs(found - want).max() <= 1e-5 * np.abs(want).max()


def test_widths_that_a_configuration_says_again_need_no_class_of_their_own(tmp_path):
    source = folder(made("LlamaForCausalLM", GQA), tmp_path / "in")
    cut = "group{freeze=*attn*},score,mask{width=*layers.0*gate_proj=20},propagate"
    gp.compile(f"hf:{source}", recipe=cut, out=tmp_path / "once", measure=False)
    even = cut.replace("layers.0*gate_proj=20", "gate_proj=16")
    done = gp.compile(f"hf:{tmp_path / 'once'}", recipe=even, out=tmp_path / "out", measure=False)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["architectures"], config["intermediate_size"]) == (["LlamaForCausalLM"], 16)
    assert not config.keys() & {"auto_map", "widths"} and not (tmp_path / "out/modeling_pruned.py").exists()
    assert set(widths_of(tmp_path / "out", "gate_proj.weight").values()) == {(16, 32)}
    assert not [note for note in done.report["notes"] if "modeling_pruned.py does" in note]
    rebuilt = json.loads((tmp_path / "out/widths.json").read_text())["tensors"]  # of the library's class
    assert {tuple(one["was"]) for name, one in rebuilt.items() if "gate_proj" in name} == {(48, 32)}


def test_a_class_that_was_changed_since_is_refused(tmp_path):
    source = folder(made("LlamaForCausalLM", GQA), tmp_path / "in")
    gp.compile(f"hf:{source}", params="0.8x", alike=False, out=tmp_path / "once", measure=False)
    written = (tmp_path / "once/modeling_pruned.py").read_text()
    (tmp_path / "once/modeling_pruned.py").write_text(written + "        self.scale = 2\n")
    with pytest.raises(ModelError, match="changed since graphprune wrote it"):
        gp.load(f"hf:{tmp_path / 'once'}")
    (tmp_path / "once/modeling_pruned.py").unlink()
    with pytest.raises(ModelError, match="py: is not there"):
        gp.load(f"hf:{tmp_path / 'once'}")
    (tmp_path / "once/modeling_pruned.py").write_text(written)
    config = json.loads((tmp_path / "once/config.json").read_text())
    config["widths"]["version"] = 7
    (tmp_path / "once/config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="of version 7, and this graphprune reads 1"):
        gp.load(f"hf:{tmp_path / 'once'}")


def test_of_recipes_for_a_folder_those_that_no_folder_can_hold_are_out(tmp_path):
    """Layers that become two have no place in the class, however near the result."""
    source = folder(made("LlamaForCausalLM", GQA), tmp_path / "in")
    ranks = "factor{by=data},group{only=*rank},score,mask{params=0.8x allocate=rd floor=0},propagate"
    widths = "group{freeze=*attn*},score,mask{params=0.8x allocate=uniform},propagate"
    done = gp.compile(f"hf:{source}", data=data(), recipe=[ranks, widths], out=tmp_path / "out", measure=False)
    contest = done.report["contest"]
    assert contest["taken"] == widths and "change" in contest["recipes"][widths]
    assert "nothing that from_pretrained loads can be written of it" in contest["recipes"][ranks]["error"]
    assert (tmp_path / "out/config.json").exists()


@pytest.mark.parametrize(
    ("name", "sizes", "recipe"),
    [
        ("Qwen3MoeForCausalLM", EXPERTS["Qwen3MoeForCausalLM"] | {"moe_intermediate_size": 24}, None),
        ("LlamaForCausalLM", GQA, "slicegpt"),
    ],
    ids=["experts", "rotated"],
)
def test_as_published_in_bfloat16(name, sizes, recipe, tmp_path):
    """Rows of experts are multiplied by an op of bfloat16 alone, and a proof is in double precision."""
    source = folder(made(name, sizes).bfloat16(), tmp_path / "in")
    done = gp.compile(f"hf:{source}", data=data(), recipe=recipe, params="0.8x", out=tmp_path / "out", measure=False)
    proof = done.report["verification"]
    assert proof["dtype"] == "float64" and proof["max_relative_error"] <= 1e-12
    assert (tmp_path / "out/config.json").exists() and done.report["budget"]["got"] <= 0.8
    assert {str(tensor.dtype) for tensor in done.model.parameters()} == {"torch.bfloat16"}


def test_sound_for_a_network_in_bfloat16_is_given_as_arrays_have_it(tmp_path):
    model = made("WhisperForConditionalGeneration", MORE["WhisperForConditionalGeneration"]).bfloat16()
    given, rng = example_of(model), np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal((12, *like.shape[1:])).astype(np.float32)
        if like.is_floating_point()
        else rng.integers(3, 50, (12, 10))  # of another length than the example, so that it is traced on these
        for name, like in given.items()
    }
    source = folder(model, tmp_path / "in")
    done = gp.compile(f"hf:{source}", data=arrays, params="0.8x", out=tmp_path / "out", measure=False)
    assert (tmp_path / "out/config.json").exists() and done.report["closeness"]["held_back"]
