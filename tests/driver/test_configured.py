"""Networks of the transformers library: a folder in, a folder out that the library loads, and modules cut in place."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from alone import WITHOUT
from click.testing import CliRunner
from safetensors import safe_open
from torch.overrides import TorchFunctionMode

import graphprune as gp
from graphprune.cli import main
from graphprune.cost import static as costs
from graphprune.coupling.groups import find_groups
from graphprune.errors import BudgetError, DataError, ModelError, RecipeError
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.pretrained import example_of
from graphprune.ir.facts import Groups, Keep, Scores
from graphprune.ir.program import Program
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.replay import replay

hf = pytest.importorskip("transformers")

SMALL = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
IDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
GQA = dict(SMALL, num_key_value_heads=2, max_position_embeddings=64, **IDS)
TEXT = dict(SMALL, max_position_embeddings=64)
IMAGE = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8
)
TOWERS = dict(
    text_config=dict(TEXT, **IDS),
    vision_config=dict(IMAGE),
)
SEQUENCE = dict(vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4)
SEQUENCE |= dict(decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, **IDS)

PICTURED = dict(vision_config=dict(IMAGE), image_token_id=45)
READS = dict(GQA, model_type="llama", head_dim=8)

FIRST = {
    "LlamaForCausalLM": GQA,
}
"""Class and configuration, small."""
MORE = {
    "GPT2LMHeadModel": dict(vocab_size=50, **IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "BertForMaskedLM": TEXT,
    "ViTForImageClassification": IMAGE,
    "Qwen2ForCausalLM": GQA,
    "Qwen3ForCausalLM": dict(GQA, head_dim=8),
    "GemmaForCausalLM": dict(GQA, head_dim=8),
    "Gemma2ForCausalLM": dict(GQA, head_dim=8),
    "MistralForCausalLM": GQA,
    "PhiForCausalLM": GQA,
    "Phi3ForCausalLM": GQA,
    "OlmoForCausalLM": GQA,
    "Olmo2ForCausalLM": GQA,
    "GPTNeoXForCausalLM": dict(SMALL, max_position_embeddings=64, **IDS),
    "OPTForCausalLM": dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
                           max_position_embeddings=64, word_embed_proj_dim=32, **IDS),
    "FalconForCausalLM": dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                              ffn_hidden_size=48, bos_token_id=1, eos_token_id=2),
    "CohereForCausalLM": GQA,
    "SmolLM3ForCausalLM": GQA,
    "RobertaForMaskedLM": dict(TEXT, **IDS),
    "DebertaV2ForMaskedLM": TEXT,
    "ModernBertForMaskedLM": dict(TEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    "BertModel": TEXT,
    "T5ForConditionalGeneration": dict(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                                       decoder_start_token_id=0),
    "BartForConditionalGeneration": dict(SEQUENCE, decoder_start_token_id=2, forced_eos_token_id=None),
    "WhisperForConditionalGeneration": dict(
        SEQUENCE, num_mel_bins=8, max_source_positions=16, max_target_positions=32, decoder_start_token_id=1
    ),
    "DeiTForImageClassification": IMAGE,
    "Dinov2ForImageClassification": IMAGE,
    "BloomForCausalLM": dict(vocab_size=50, hidden_size=32, n_layer=2, n_head=4, **IDS),
    "ConvNextForImageClassification": dict(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, image_size=32),
    "LlavaForConditionalGeneration": dict(
        PICTURED, vision_config=dict(IMAGE, model_type="clip_vision_model", projection_dim=32), text_config=READS
    ),
    "PaliGemmaForConditionalGeneration": dict(
        PICTURED, vision_config=dict(IMAGE, model_type="siglip_vision_model"), image_token_index=45, projection_dim=32,
        text_config=dict(READS, model_type="gemma"),
    ),
    "Idefics3ForConditionalGeneration": dict(PICTURED, text_config=READS, scale_factor=2),
    "CLIPModel": TOWERS,
    "SiglipModel": TOWERS,
}  # fmt: skip
SPARSE = dict(GQA, num_experts_per_tok=2)
EXPERTS = {
    "OlmoeForCausalLM": dict(SPARSE, num_experts=6),
    "MixtralForCausalLM": dict(SPARSE, num_local_experts=6),
    "Qwen2MoeForCausalLM": dict(SPARSE, num_experts=6, moe_intermediate_size=20, shared_expert_intermediate_size=24),
    "Qwen3MoeForCausalLM": dict(SPARSE, num_experts=6, moe_intermediate_size=20, head_dim=8),
    "DeepseekV3ForCausalLM": dict(
        dict(SPARSE, num_key_value_heads=4), n_routed_experts=6, moe_intermediate_size=20, n_group=1, topk_group=1,
        first_k_dense_replace=0, q_lora_rank=None, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
    ),
}  # fmt: skip
"""Experts lead the search there: they are most of the parameters."""
WHOLE = ("CLIPModel", "SiglipModel", "Dinov2ForImageClassification")
"""Of which configurations say less: no widths of projections, or those of MLPs as whole multiples alone."""
UNLIKE = ("SiglipModel", "BloomForCausalLM", "ConvNextForImageClassification")
"""Of which configurations say nothing: one field for the blocks of a tower and its head, or none for their widths."""
AUTOMATIC = {
    "SiglipModel": "AutoModel",
    "BloomForCausalLM": "AutoModelForCausalLM",
    "ConvNextForImageClassification": "AutoModelForImageClassification",
    "GPT2LMHeadModel": "AutoModelForCausalLM",
    "GPTNeoXForCausalLM": "AutoModelForCausalLM",  # whose head has another name in files
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BartForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "Dinov2ForImageClassification": "AutoModelForImageClassification",
    "Qwen3ForCausalLM": "AutoModelForCausalLM",
}
"""Those of blocks that differ are loaded by these."""


def made(name, sizes):
    torch.manual_seed(0)
    kind = getattr(hf, name)
    model = kind(kind.config_class(**sizes)).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    return model


def folder(model, path):
    model.save_pretrained(path)
    (path / "tokenizer_config.json").write_text('{"carried": "along"}')
    return path


def rest(model):
    return {"use_cache": False} if hasattr(model.config.get_text_config(), "use_cache") else {}


def masked(artifact, model):
    """The user's own class with the readers of what went set to zero."""
    done = artifact.program
    exact = Program(
        host=TorchHost.export(copy.deepcopy(model), {"args": (), "kwargs": {**example_of(model), **rest(model)}}),
        source=done.source,
    )
    zeroed = replay(done.plan, exact.host, masked=True).host.model.state_dict()
    other = copy.deepcopy(model)
    own = other.state_dict()
    other.load_state_dict({name: zeroed.get(name, tensor) for name, tensor in own.items()})
    for name, router in other.named_modules():
        kept = done.plan.parameters.get(f"{name}.weight", {}).get("0") if name.endswith(".gate") else None
        if kept is not None:
            left = Left(len(router.weight), kept["keep"])
            router.register_forward_pre_hook(left.begin)
            router.register_forward_hook(left.end)
    return other


class Left(TorchFunctionMode):
    """Within a router, what it weighs or chooses among is minus infinity but for the experts that are kept."""

    def __init__(self, experts, kept):
        super().__init__()
        self.experts, self.drop = experts, torch.from_numpy(np.setdiff1d(np.arange(experts), kept))

    def begin(self, *_):
        self.__enter__()

    def end(self, *_):
        self.__exit__(None, None, None)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("softmax", "topk") and args[0].shape[-1] == self.experts:
            args = (args[0].index_fill(-1, self.drop, -torch.inf), *args[1:])
        return func(*args, **(kwargs or {}))


READ = """
import sys, torch, transformers
for kind, folder, inputs in zip(*[iter(sys.argv[1:])] * 3):
    own = {"trust_remote_code": True} if kind.startswith("Auto") else {}
    model = getattr(transformers, kind).from_pretrained(folder, local_files_only=True, **own)
    given = torch.load(inputs)
    with torch.no_grad():
        out = {"logits": [x for x in model(**given).values() if isinstance(x, torch.Tensor)][0]}
        if model.can_generate() and "input_ids" in given:
            start = given["input_ids"][:, :8]
            out["tokens"] = model.generate(start, max_new_tokens=32, min_new_tokens=32, do_sample=False)
    torch.save(out | {"parameters": sum(p.numel() for p in model.parameters())}, folder + "/out")
assert "graphprune" not in sys.modules
"""


def check(name, sizes, tmp_path, budget="0.8x", automatic=None):
    """The folder that is written, and with ``automatic``, the library's class for it, one of blocks that differ too."""
    model = made(name, sizes)
    source = folder(model, tmp_path / "in")
    given = example_of(model)
    torch.save(given, tmp_path / "given")
    kinds = ({} if name in UNLIKE else {name: True}) | ({automatic: False} if automatic else {})
    artifacts = {
        kind: gp.compile(f"hf:{source}", params=budget, out=tmp_path / kind, measure=False, alike=alike)
        for kind, alike in kinds.items()
    }
    called = [str(part) for kind in kinds for part in (kind, tmp_path / kind, tmp_path / "given")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + READ, *called],
        capture_output=True, text=True, env={**os.environ, "HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    whole = outputs(model, given)
    for kind, artifact in artifacts.items():
        said = [note for note in artifact.report["notes"] if "from_pretrained" in note or "forward" in note]
        own = (tmp_path / kind / "modeling_pruned.py").exists()
        assert [note.partition(": ")[2].split()[0] for note in said] == own * ["modeling_pruned.py"]
        assert kind == automatic or not own
        found, zeroed = torch.load(tmp_path / kind / "out"), masked(artifact, model)
        want = outputs(zeroed, given)
        assert (found["logits"] - want).abs().max() <= 1e-5 * want.abs().max()
        assert (whole - want).abs().max() > 1e-3 * want.abs().max()  # something went
        if "tokens" in found:
            start = given["input_ids"][:, :8]
            tokens = zeroed.generate(start, max_new_tokens=32, min_new_tokens=32, do_sample=False)
            assert torch.equal(found["tokens"], tokens)
        assert json.loads((tmp_path / kind / "tokenizer_config.json").read_text()) == {"carried": "along"}
        assert found["parameters"] <= (float(budget[:-1]) + 1e-9) * sum(p.numel() for p in model.parameters())
    return artifacts


@torch.no_grad()
def outputs(model, given):
    return next(x for x in model(**given).values() if isinstance(x, torch.Tensor))


def widths_of(folder, name):
    """Of a weight in every block."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys() if key.endswith(name)}  # noqa: SIM118


@pytest.mark.parametrize("name", FIRST)
def test_a_folder_becomes_a_smaller_one_of_its_kind(name, tmp_path):
    check(name, FIRST[name], tmp_path, automatic="AutoModelForCausalLM")
    alike, unlike = (widths_of(tmp_path / kind, "k_proj.weight") for kind in (name, "AutoModelForCausalLM"))
    assert len(set(alike.values())) == 1 < len(set(unlike.values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_so_do_others(name, tmp_path):
    check(name, MORE[name], tmp_path, "0.9x" if name in WHOLE else "0.8x", AUTOMATIC.get(name))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if k else ()) for k, name in enumerate(EXPERTS)]
)
def test_experts_go_whole_and_the_configuration_counts_those_that_are_left(name, tmp_path):
    (artifact,) = check(name, EXPERTS[name], tmp_path, "0.6x").values()
    config = json.loads((tmp_path / name / "config.json").read_text())
    rows = {tuple(tensor.shape) for key, tensor in artifact.model.state_dict().items() if key.endswith(".gate.weight")}
    field = next(field for field in ("num_experts", "num_local_experts", "n_routed_experts") if field in config)
    assert rows == {(config[field], 32)} and config["num_experts_per_tok"] == 2
    whole = find_groups(artifact.program.source.lift())
    assert {group.multiple for group in whole if "experts.gate_up_proj" in group.name} == {4}  # 16 bytes
    if name in ("OlmoeForCausalLM", "DeepseekV3ForCausalLM"):
        assert 2 <= config[field] < 6


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama") / "in"
    return folder(made("LlamaForCausalLM", GQA), path)


def test_the_network_in_memory_is_called_as_the_class_is(llama, tmp_path):
    artifact = gp.compile(f"hf:{llama}", params="0.8x", out=tmp_path / "out", measure=False)
    model = hf.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.randint(3, 50, (3, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want, tolerance = model(ids).logits, 1e-5 * model(ids).logits.abs().max()
        assert (artifact.model(ids).logits - want).abs().max() <= tolerance
        assert (artifact.model(input_ids=ids).logits - want).abs().max() <= tolerance
        exported = torch.export.load(tmp_path / "out" / "model.pt2").module()
        assert (exported(input_ids=ids).logits - want).abs().max() <= tolerance


TOKENS = np.random.default_rng(0).integers(3, 50, (4, 20))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"input_ids": TOKENS.astype(np.float32)}, "input `input_ids` is int64, the calibration array is float32"),
        ({"input_ids": TOKENS.astype(str)}, "input `input_ids` is int64, the calibration array is <U21"),
        ({"input_ids": TOKENS[..., None]}, "input `input_ids` takes Nx60, the calibration array is 4x20x1"),
        ({"attention_mask": TOKENS}, "`attention_mask` is given and `input_ids` is not, which LlamaForCausalLM reads"),
    ],
    ids=["floats", "text", "axes", "mask"],
)
def test_data_that_no_token_is_in_is_told_of_where_it_is_read(llama, data, message, tmp_path):
    np.savez(tmp_path / "a.npz", **data)
    with pytest.raises(DataError, match=f"a.npz: .*{message}") as told:
        gp.load(f"hf:{llama}", data=tmp_path / "a.npz")
    assert told.value.hint


@pytest.mark.parametrize(
    ("data", "inputs"),
    [
        ({"tokens": TOKENS}, ["input_ids"]),
        ({"input_ids": TOKENS, "labels": TOKENS}, ["input_ids"]),
        ({"input_ids": TOKENS, "labels": TOKENS[:, 0]}, ["input_ids"]),
        (
            {"input_ids": TOKENS, "labels": TOKENS, "attention_mask": np.ones_like(TOKENS)},
            ["input_ids", "attention_mask"],
        ),
    ],
    ids=["another-name", "labels", "classes", "mask"],
)
def test_a_folder_is_traced_at_the_sizes_of_its_data_without_labels(llama, data, inputs, tmp_path):
    np.savez(tmp_path / "a.npz", **data)
    program = gp.load(f"hf:{llama}", data=tmp_path / "a.npz")
    assert [value.name for value in program.graph.inputs] == inputs and len(program.graph.outputs) == 1
    assert program.host.example()[0].shape[1:] == (20,) and sum(len(batch[0]) for batch in program.data) == 4


def test_a_plan_applied_to_a_folder_writes_the_folder_that_compile_does(llama, tmp_path):
    gp.compile(f"hf:{llama}", params="0.8x", out=tmp_path / "out", measure=False)
    arguments = ["apply", str(tmp_path / "out"), f"hf:{llama}", "-o", str(tmp_path / "again")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    compiled, again = ({path.name: path for path in (tmp_path / name).iterdir()} for name in ("out", "again"))
    assert again.keys() == compiled.keys() - {"report.json", "report.html"}
    same = ("config.json", "model.safetensors", "tokenizer_config.json", "generation_config.json", "widths.json")
    assert not [name for name in same if again[name].read_bytes() != compiled[name].read_bytes()]
    hf.LlamaForCausalLM.from_pretrained(tmp_path / "again")


def cut_in_place(model, recipe):
    inputs = {"args": (), "kwargs": {**example_of(model), "use_cache": False}}
    done = gp.run(recipe, gp.load(model, inputs))
    gp.apply(done, model, in_place=True)
    return done


def test_a_module_cut_in_place_has_a_configuration_that_says_so(tmp_path):
    model = made("LlamaForCausalLM", GQA)
    cut_in_place(model, "group{freeze=*v_proj.1|*k_proj.1},score,mask{width=*k_proj=1|*gate_proj=20},propagate")
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (2, 1, 20)
    ids = example_of(model)["input_ids"]
    model.save_pretrained(tmp_path)
    again = hf.LlamaForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    tokens = [m.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False) for m in (model, again)]
    assert torch.equal(*tokens)


def test_so_has_one_that_a_class_around_it_holds(tmp_path):
    class Around(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.base = torch.nn.ModuleDict({"model": inner})

        def forward(self, ids):
            return self.base["model"](ids).logits

    model = made("LlamaForCausalLM", GQA)
    around, ids = Around(model), example_of(model)["input_ids"]
    recipe = "group{freeze=*v_proj.1|*k_proj.1},score,mask{width=*k_proj=1|*gate_proj=20},propagate"
    gp.apply(gp.run(recipe, gp.load(around, (ids,))), around, in_place=True)
    assert (model.config.num_key_value_heads, model.config.intermediate_size) == (1, 20)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(hf.LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits, around(ids))


@pytest.mark.parametrize("name", ["LlamaForCausalLM", pytest.param("GPT2LMHeadModel", marks=pytest.mark.slow)])
def test_a_network_in_memory_is_kept_to_what_its_configuration_can_say(name, tmp_path):
    """By itself it is cut freely, heads by their width too."""
    model = made(name, {**FIRST, **MORE}[name])
    ids = example_of(model)["input_ids"]
    done = gp.compile(model, (ids,), params="0.8x", alike=True, measure=False)
    gp.apply(done.program, model, in_place=True)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        again, want = getattr(hf, name).from_pretrained(tmp_path)(ids).logits, done.model(ids).logits
    assert (again - want).abs().max() <= 1e-5 * want.abs().max()
    fitted = gp.compile(model, (ids,), params="0.9x", alike=True, data={"input_ids": ids.repeat(4, 1)}, measure=False)
    assert "bias=false" in fitted.report["recipe"] and "alike=layers" in fitted.report["recipe"]
    with pytest.raises(ModelError, match="configuration of a network of transformers says them, and Linear has none"):
        gp.compile(torch.nn.Linear(4, 8), torch.randn(2, 4), alike=True)


def test_one_of_unlike_layers_refuses_to_be_saved(tmp_path):
    model = made("LlamaForCausalLM", GQA)
    cut_in_place(model, "group{freeze=*attn*},score,mask{width=*layers.1*gate_proj=20},propagate")
    assert model.config.intermediate_size == 48
    with pytest.raises(ModelError, match="no configuration of LlamaForCausalLM"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_cut_that_fails_leaves_configuration_and_class_as_they_were():
    model = made("LlamaForCausalLM", GQA)
    before = (model.config.to_dict(), {name: dict(vars(m)) for name, m in model.named_modules()}.keys())
    done = gp.run(
        "group,score,mask{channels=0.5x},propagate",
        gp.load(model, {"args": (), "kwargs": {**example_of(model), "use_cache": False}}),
    )
    with pytest.raises(ModelError):
        gp.apply(done, model, in_place=True)
    assert model.config.to_dict() == before[0]
    assert "save_pretrained" not in vars(model)


@pytest.mark.slow
def test_with_data_layers_are_fitted_without_biases_that_the_class_has_no_place_for(llama, tmp_path):
    data = {"input_ids": np.random.default_rng(0).integers(3, 50, (24, 60))}
    fitted = gp.compile(f"hf:{llama}", params="0.7x", data=data, out=tmp_path / "out", measure=False)
    assert "compensate{bias=false}" in fitted.report["recipe"]
    assert not [note for note in fitted.report["notes"] if "from_pretrained" in note]
    again = hf.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.from_numpy(data["input_ids"][:4])
    with torch.no_grad():
        found, want = again(ids).logits, hf.LlamaForCausalLM.from_pretrained(llama)(ids).logits
        plain = gp.run(
            fitted.report["recipe"].replace(",compensate{bias=false}", ""), gp.load(f"hf:{llama}", data=data)
        )
        cut = torch.from_numpy(plain.host.run([ids.numpy()])[0])
    assert (found - want).norm() < 0.9 * (cut - want).norm()


def test_products_that_add_a_bias_of_their_own_take_what_a_fit_adds_to_it(tmp_path):
    """Layers of GPT-2 are addmm."""
    given = folder(made("GPT2LMHeadModel", MORE["GPT2LMHeadModel"]), tmp_path / "given")
    data = {"input_ids": np.random.default_rng(0).integers(3, 50, (8, 60))}
    fitted = gp.compile(f"hf:{given}", params="0.8x", data=data, out=tmp_path / "out", measure=False)
    assert fitted.report["after"]["params"] <= 0.8 * fitted.report["before"]["params"]
    assert not [note for note in fitted.report["notes"] if "from_pretrained" in note]
    hf.GPT2LMHeadModel.from_pretrained(tmp_path / "out")


def test_what_no_configuration_says_a_class_of_its_own_does_and_else_it_is_said(llama, tmp_path):
    def written(name, recipe):
        data = {"input_ids": np.random.default_rng(0).integers(3, 50, (8, 60))}
        gp.compile(f"hf:{llama}", recipe=recipe, data=data, out=tmp_path / name, measure=False)
        report = json.loads((tmp_path / name / "report.json").read_text())
        return tmp_path / name, [note for note in report["notes"] if "from_pretrained" in note]

    cut = "group{freeze=*attn*},score,mask{channels=0.5x alike=layers},propagate,compensate"
    biases, notes = written("biases", cut)
    assert (biases / "modeling_pruned.py").exists() and ["modeling_pruned.py" in note for note in notes] == [True]
    assert widths_of(biases, "down_proj.bias")
    factors, notes = written("factors", "factor{layers=*down_proj},group,score,mask{width=*rank=4},propagate")
    assert any(note.startswith("nothing that from_pretrained loads was written:") for note in notes)
    assert not (factors / "config.json").exists() and (factors / "model.pt2").exists()


def test_blocks_that_are_left_out_are_said_and_halves_of_them_are_not(tmp_path):
    sizes = dict(GQA, num_hidden_layers=4, use_sliding_window=True, max_window_layers=2, sliding_window=8)
    model = made("Qwen2ForCausalLM", sizes)
    source, given = folder(model, tmp_path / "in"), example_of(model)
    chosen = "score{branches=angular},mask{params=0.75x allocate=global},propagate"
    for of in ("block", "attention"):
        recipe = f"group,branches{{of={of} alone=true}},{chosen}"
        done = gp.compile(f"hf:{source}", recipe=recipe, data=given, out=tmp_path / of, measure=False)
        notes = [note for note in done.report["notes"] if "from_pretrained" in note]
        assert (bool(notes), (tmp_path / of / "config.json").exists()) == ((True, False), (False, True))[of == "block"]
        assert any("branches went whole, which its forward still adds" in note for note in done.report["notes"])
        if of == "block":
            again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / of)
            left = [k for k in range(4) if f"model.layers.{k}.mlp.up_proj.weight" in done.program.model.state_dict()]
            assert again.config.num_hidden_layers == len(left) < 4
            assert again.config.layer_types == [model.config.layer_types[k] for k in left]
            ids = given["input_ids"]
            with torch.no_grad():
                assert torch.equal(again(ids).logits, torch.from_numpy(done.program.host.run([ids.numpy()])[0]))
    fitted = f"group,branches{{of=block alone=true}},{chosen},compensate"  # biases among what is fitted
    done = gp.compile(f"hf:{source}", recipe=fitted, data=given, out=tmp_path / "fitted", measure=False)
    assert any("which a fit made" in note for note in done.report["notes"])
    assert not (tmp_path / "fitted" / "config.json").exists() and (tmp_path / "fitted" / "model.pt2").exists()


def test_layers_alike_lose_the_least_together():
    """As brute force over the counts of like layers does, of what all of them lose."""
    model = made("LlamaForCausalLM", dict(GQA, intermediate_size=6, num_attention_heads=2, num_key_value_heads=2))
    program = gp.load(model, {"args": (), "kwargs": {**example_of(model), "use_cache": False}})
    done = gp.run("group,score,mask{params=0.8x allocate=knapsack alike=layers floor=0}", program)
    groups, scores, keep = done.fact(Groups), done.fact(Scores), done.fact(Keep).keep
    kinds = {}
    for group in groups:
        kinds.setdefault(re.sub(r"layers[.][0-9]", "layers", group.name), []).append(group)
    assert {len(same) for same in kinds.values()} == {1, 2}
    assert all(len({len(keep[group.name]) for group in same}) == 1 for same in kinds.values())

    def lost(counts):
        cut = zip(kinds.values(), counts, strict=True)
        return sum(np.sort(scores[group])[: group.size - count].sum() for same, count in cut for group in same)

    cost = costs.params(program.graph, program.host)
    best = np.inf
    for counts in itertools.product(*(range(1, same[0].size + 1) for same in kinds.values())):
        at = {group.dim: count for same, count in zip(kinds.values(), counts, strict=True) for group in same}
        if lost(counts) < best and cost(at) <= 0.8 * cost():
            best = lost(counts)
    assert lost([len(keep[same[0].name]) for same in kinds.values()]) == pytest.approx(best, rel=1e-9)
    gp.verify(gp.run("propagate", done))


def test_the_likes_of_what_is_frozen_stay_whole():
    model = made("LlamaForCausalLM", GQA)
    program = gp.load(model, {"args": (), "kwargs": {**example_of(model), "use_cache": False}})
    freeze = "model.layers.0.mlp|group:model.layers.1.self_attn.q_proj.0"
    done = gp.run(f"group{{freeze={freeze}}},score,mask{{params=0.9x alike=layers floor=0}}", program)
    keep = done.fact(Keep).keep
    cut = {one.name for one in done.fact(Groups) if len(keep.get(one.name, range(one.size))) < one.size}
    assert cut == {f"model.layers.{k}.self_attn.q_proj.1" for k in (0, 1)}


def test_what_no_field_says_stays_whole_and_the_hint_says_how_it_goes(tmp_path):
    """Nor do norms across heads, whose eps is one for all norms, let heads go where the configuration says all."""
    olmo = folder(made("Olmo2ForCausalLM", GQA), tmp_path / "olmo")
    alike, unlike = (gp.compile(f"hf:{olmo}", params="0.7x", dry_run=True, alike=alike) for alike in (True, False))
    parts = [{name.split(".")[3] for name in one.program.plan.parameters} for one in (alike, unlike)]
    assert parts == [{"mlp"}, {"mlp", "self_attn"}]
    bloom = folder(made("BloomForCausalLM", MORE["BloomForCausalLM"]), tmp_path / "bloom")
    with pytest.raises(ModelError, match="nothing can be pruned") as error:
        gp.compile(f"hf:{bloom}", params="0.8x", dry_run=True)
    assert "--unlike" in error.value.hint
    with pytest.raises(BudgetError, match=r"\|\.\.\. \d+ more") as error:
        gp.compile(f"hf:{olmo}", params="0.2x", dry_run=True)
    assert "--unlike" in error.value.hint and len(error.value.message) < 400
    llama = folder(made("LlamaForCausalLM", GQA), tmp_path / "llama")  # of which nothing more would go
    with pytest.raises(BudgetError) as error:
        gp.compile(f"hf:{llama}", params="0.1x", dry_run=True)
    assert "--unlike" not in error.value.hint


def test_what_cannot_keep_layers_alike_is_refused():
    for text in ("macs=0.5x unconstrained=both", "macs=0.5x allocate=eagleeye"):
        with pytest.raises(RecipeError, match="alike"):
            Recipe.parse(f"mask{{{text} alike=layers}}")
    with pytest.raises(RecipeError, match="alike"):
        Recipe.parse("mask{macs=0.5x alike=blocks}")


def test_what_is_no_folder_of_the_library_says_so(llama, tmp_path):
    def refused(change, what):
        where = tmp_path / what.replace(" ", "_").replace("`", "")
        shutil.copytree(llama, where)
        change(where)
        with pytest.raises(ModelError, match=what):
            gp.load(f"hf:{where}")

    refused(lambda f: (f / "config.json").unlink(), "no config.json")
    refused(lambda f: (f / "config.json").write_text("{"), "JSONDecodeError|Expecting")
    refused(
        lambda f: (f / "config.json").write_text('{"architectures": ["Nobody"], "auto_map": {}}'),
        "has no class `Nobody`",
    )
    for what in (
        "[]",
        "{}",
        '{"architectures": []}',
        '{"architectures": "LlamaForCausalLM"}',
        '{"architectures": null}',
    ):
        shutil.rmtree(tmp_path / "no_class_is_named", ignore_errors=True)
        refused(lambda f, what=what: (f / "config.json").write_text(what), "no class is named")
    refused(lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no .safetensors")
    whole = (llama / "model.safetensors").read_bytes()
    refused(lambda f: (f / "model.safetensors").write_bytes(whole[:999]), r"model.safetensors: .*header")
    wider = dict(json.loads((llama / "config.json").read_text()), intermediate_size=50)
    refused(
        lambda f: (f / "config.json").write_text(json.dumps(wider)),
        r"`model.layers.0.mlp.down_proj.weight` is 32x48 in its files, and 32x50 by config.json",
    )
    refused(lambda f: (f / "config.json").rename(f / "adapter_config.json"), "an adapter")
    quantised = dict(json.loads((llama / "config.json").read_text()), quantization_config={"quant_method": "gptq"})
    refused(lambda f: (f / "config.json").write_text(json.dumps(quantised)), "weights are quantised .gptq.")
    with pytest.raises(ModelError, match="given as hf:"):
        gp.load(str(llama))
    with pytest.raises(DataError, match="no tokeniser"):
        gp.load("model.onnx", data=tmp_path / "text.txt")


def test_of_weights_in_several_files_each_is_looked_for(tmp_path):
    made("LlamaForCausalLM", GQA).save_pretrained(tmp_path, max_shard_size="20KB")
    index, shards = tmp_path / "model.safetensors.index.json", sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2 and gp.load(f"hf:{tmp_path}").graph.parameters
    gone, listed = shards[1].read_bytes(), index.read_text()
    shards[1].unlink()
    with pytest.raises(ModelError, match=f"`{shards[1].name}` is not there"):
        gp.load(f"hf:{tmp_path}")
    shards[1].write_bytes(gone[: len(gone) // 2])  # a download that was cut short
    with pytest.raises(ModelError, match=f"{shards[1].name}: .*incomplete"):
        gp.load(f"hf:{tmp_path}")
    shards[1].write_bytes(gone)
    for text in ("{", "[]", "{}", '{"weight_map": []}'):
        index.write_text(text)
        with pytest.raises(ModelError, match=r"index.json: no list of weights by their files"):
            gp.load(f"hf:{tmp_path}")
    index.write_text(listed)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaModel"]}))
    notes = gp.load(f"hf:{tmp_path}").notes
    assert f"`lm_head.weight` in {tmp_path} is left out, for which LlamaModel has no place" in notes


def test_a_folder_is_traced_on_inputs_as_large_as_its_data_or_as_is_said(llama, tmp_path):
    tokens = np.random.default_rng(0).integers(3, 50, (8, 9))
    np.savez(tmp_path / "tokens.npz", input_ids=tokens)
    for data in (tmp_path / "tokens.npz", {"input_ids": tokens}):
        assert gp.load(f"hf:{llama}", data=data).graph.inputs[0].shape[1] == 9
    assert gp.load(f"hf:{llama}", {"input_ids": (2, 7)}).graph.inputs[0].shape[1] == 7
    with pytest.raises(ModelError, match="`input_ids` is to be Nx7, and the data has Nx9") as error:
        gp.load(f"hf:{llama}", {"input_ids": (2, 7)}, data=tmp_path / "tokens.npz")
    assert "leave --input" in error.value.hint
    for wrong in (tokens[:0], tokens[0]):
        with pytest.raises(DataError):
            gp.load(f"hf:{llama}", data={"input_ids": wrong})


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("MptForCausalLM", dict(vocab_size=50, d_model=32, n_layers=1, n_heads=4, max_seq_len=64)),
        (
            "LEDForConditionalGeneration",
            {k: v for k, v in SEQUENCE.items() if k != "max_position_embeddings"}
            | dict(max_encoder_position_embeddings=64, max_decoder_position_embeddings=40, attention_window=8),
        ),
    ],
)
def test_an_example_is_no_longer_than_the_class_takes(name, sizes):
    model = made(name, sizes)
    with torch.no_grad():
        model(**example_of(model))


def test_tokens_of_another_vocabulary_are_said_to_be_that(llama, tmp_path):
    ids = np.random.default_rng(0).integers(0, 4000, (4, 9))
    with pytest.raises(ModelError, match=r"(?s)a table has no row for: tokens of another vocabulary\?$"):
        gp.compile(f"hf:{llama}", data={"input_ids": ids}, params="0.7x", out=tmp_path / "out", measure=False)
    assert not (tmp_path / "out").exists()


def test_of_a_vision_language_model_images_are_where_their_tokens_are(tmp_path):
    name = "LlavaForConditionalGeneration"
    program = gp.load(f"hf:{folder(made(name, MORE[name]), tmp_path / 'in')}")
    tokens, pixels = program.host.example()
    assert ((tokens == 45).sum(1) == 4).all() and pixels.shape == (2, 3, 16, 16)


def test_text_is_made_tokens_by_the_tokeniser_of_the_folder(llama, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    where = tmp_path / "in"
    shutil.copytree(llama, where)
    words = {f"w{k}": k for k in range(50)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(where)
    drawn = np.random.default_rng(0).integers(0, 50, 60 * 4 + 7)
    (tmp_path / "text.txt").write_text(" ".join(f"w{k}" for k in drawn))
    program = gp.load(f"hf:{where}", data=tmp_path / "text.txt")
    seen = np.concatenate([batch[0] for batch in program.data])
    assert np.array_equal(seen, drawn[:240].reshape(4, 60))
    (tmp_path / "short.txt").write_text("w1 w2")
    with pytest.raises(DataError, match="2 tokens"):
        gp.load(f"hf:{where}", data=tmp_path / "short.txt")
    (tmp_path / "latin.txt").write_bytes("w1 caf\xe9".encode("latin1"))
    with pytest.raises(DataError, match="not UTF-8, at byte 6"):
        gp.load(f"hf:{where}", data=tmp_path / "latin.txt")
    with pytest.raises(DataError, match="No such file"):
        gp.load(f"hf:{where}", data=tmp_path / "nowhere.txt")


SOUND = dict(
    SMALL, vocab_size=20, conv_dim=[8, 8], conv_kernel=[10, 3], conv_stride=[5, 2], num_feat_extract_layers=2,
    num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip
RWKV = dict(SMALL, attention_hidden_size=32, context_length=64, rescale_every=1, **IDS)


@pytest.mark.parametrize("name", [pytest.param("Wav2Vec2ForCTC"), pytest.param("HubertForCTC", marks=pytest.mark.slow)])
def test_networks_of_sound_are_folders_like_any_other(name, tmp_path):
    model = made(name, SOUND)
    source = folder(model, tmp_path / "in")
    done = gp.compile(f"hf:{source}", params="0.9x", out=tmp_path / "out", measure=False)
    waves = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 500), np.float32))
    assert done.program.host.example()[0].shape == (2, 500)
    again = getattr(hf, name).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found = again(waves).logits.numpy()
    want = done.program.host.run([waves.numpy()])[0]
    assert np.abs(found - want).max() <= 1e-5 * np.abs(want).max()
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in model.parameters())


def test_weights_that_forward_writes_into_are_refused_with_the_way_out(tmp_path):
    model = made("RwkvForCausalLM", RWKV)
    with pytest.raises(
        ModelError, match=r"writes into its own weight `rwkv.blocks.0.attention.output.weight` at .*py:"
    ):
        gp.load(model, {"input_ids": torch.randint(3, 50, (2, 9)), "use_cache": False})
    model.config.rescale_every = 0
    gp.load(model, {"input_ids": torch.randint(3, 50, (2, 9)), "use_cache": False})
    kept = torch.nn.Sequential(torch.nn.Embedding(10, 8, max_norm=1.0), torch.nn.Linear(8, 4))
    gp.load(kept, torch.randint(0, 10, (2, 3)))  # twice is as once


def test_what_cannot_be_saved_or_traced_says_why_and_what_to_do():
    vision = dict(depth=1, embed_dim=32, num_heads=4, hidden_size=32, patch_size=4, mlp_ratio=2)
    angles = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = dict(GQA, rope_parameters=angles)
    with pytest.raises(ModelError, match="reads sizes of images from a tensor, `image_grid_thw`") as error:
        example_of(made("Qwen2VLForConditionalGeneration", dict(text_config=text, vision_config=vision)))
    assert "language model alone" in error.value.hint
    sizes = dict(text_config=dict(GQA, head_dim=8), image_token_index=45, mm_tokens_per_image=4)
    sizes |= dict(vision_config=dict(IMAGE, model_type="siglip_vision_model"))
    model, ids = made("Gemma3ForConditionalGeneration", sizes), torch.randint(3, 40, (2, 9))
    gp.load(model, {"input_ids": ids})
    with pytest.raises(ModelError, match=r"an index under vmap .*gemma3.py:.*no file holds that op") as error:
        gp.load(model, {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)})
    assert "leave `token_type_ids` out" in error.value.hint


class Own(hf.PreTrainedModel):  # type: ignore[name-defined, misc]
    """Somebody's own, which a configuration alone does not make."""

    config_class = hf.PretrainedConfig

    def __init__(self, config, width):
        super().__init__(config)
        self.first, self.last = torch.nn.Linear(4, width), torch.nn.Linear(width, 3)

    def forward(self, x):
        return self.last(self.first(x).relu())


def test_a_class_that_takes_more_than_a_configuration_is_compiled_and_its_folder_refused(tmp_path):
    model, x = Own(hf.PretrainedConfig(), 16).eval(), torch.randn(2, 4)
    done = gp.compile(model, (x,), params="0.6x", out=tmp_path / "out", measure=False)
    again = gp.rebuild(tmp_path / "out", Own(hf.PretrainedConfig(), 16).eval())
    with torch.no_grad():
        assert (again(x) - done.program.model(x)).abs().max() <= 1e-6
    with pytest.raises(ModelError, match="no configuration of Own has the widths"):
        again.save_pretrained(tmp_path / "folder")
