"""Networks of the transformers library: a folder in, a folder out that the library loads, and modules cut in place."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from alone import WITHOUT
from click.testing import CliRunner

import graphprune as gp
from graphprune.cli import main
from graphprune.errors import DataError, ModelError
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.pretrained import example_of
from graphprune.ir.program import Program
from graphprune.pipeline.replay import replay

hf = pytest.importorskip("transformers")

SMALL = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
IDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
GQA = dict(SMALL, num_key_value_heads=2, max_position_embeddings=64, **IDS)
TEXT = dict(SMALL, max_position_embeddings=64)
IMAGE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8)
TOWERS = dict(
    text_config=dict(TEXT, **IDS),
    vision_config=dict(IMAGE),
)
SEQUENCE = dict(vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4)
SEQUENCE |= dict(decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, **IDS)

FAST = {
    "LlamaForCausalLM": GQA,
    "GPT2LMHeadModel": dict(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
    "BertForMaskedLM": TEXT,
    "ViTForImageClassification": IMAGE,
}
"""Class and configuration, small."""
MORE = {
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
    "SwinForImageClassification": dict(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4),
    "Dinov2ForImageClassification": IMAGE,
    "CLIPModel": TOWERS,
    "SiglipModel": TOWERS,
}  # fmt: skip


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
    return {"use_cache": False} if hasattr(model.config, "use_cache") else {}


def masked(artifact, model):
    """The user's own class with the readers of what went set to zero."""
    done = artifact.program
    exact = Program(host=TorchHost.export(copy.deepcopy(model), {"args": (), "kwargs": {**example_of(model), **rest(model)}}), source=done.source)
    zeroed = replay(done.plan, exact.host, masked=True).host.model.state_dict()
    other = copy.deepcopy(model)
    own = other.state_dict()
    other.load_state_dict({name: zeroed.get(name, tensor) for name, tensor in own.items()})
    return other


READ = """
import sys, torch, transformers
kind, folder, inputs = sys.argv[1:4]
model = getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
assert "graphprune" not in sys.modules
given = torch.load(inputs)
with torch.no_grad():
    out = {"logits": [x for x in model(**given).values() if isinstance(x, torch.Tensor)][0]}
    if model.can_generate() and "input_ids" in given:
        out["tokens"] = model.generate(given["input_ids"], max_new_tokens=32, min_new_tokens=32, do_sample=False)
torch.save(out, inputs + ".out")
"""


def check(name, sizes, tmp_path, budget="0.8x"):
    model = made(name, sizes)
    source = folder(model, tmp_path / "in")
    artifact = gp.compile(f"hf:{source}", params=budget, out=tmp_path / "out", measure=False)
    assert not artifact.report["notes"], artifact.report["notes"]
    given = example_of(model)
    torch.save(given, tmp_path / "given")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + READ, name, str(tmp_path / "out"), str(tmp_path / "given")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(f"{tmp_path / 'given'}.out")
    zeroed = masked(artifact, model)
    with torch.no_grad():
        want = [x for x in zeroed(**given).values() if isinstance(x, torch.Tensor)][0]
        whole = [x for x in model(**given).values() if isinstance(x, torch.Tensor)][0]
    assert (found["logits"] - want).abs().max() <= 1e-5 * want.abs().max()
    assert (whole - want).abs().max() > 1e-3 * want.abs().max()  # something went
    if "tokens" in found:
        tokens = zeroed.generate(given["input_ids"], max_new_tokens=32, min_new_tokens=32, do_sample=False)
        assert torch.equal(found["tokens"], tokens)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"carried": "along"}
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, getattr(hf, name).from_pretrained(tmp_path / "out")))
    assert after <= (float(budget[:-1]) + 1e-9) * before
    return artifact


@pytest.mark.parametrize("name", FAST)
def test_a_folder_becomes_a_smaller_one_of_its_kind(name, tmp_path):
    check(name, FAST[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_so_do_others(name, tmp_path):
    check(name, MORE[name], tmp_path)
