"""Models of transformers as they are made: with a key-value cache among their results, unknown to torch.export."""

import pytest
import torch

import graphprune as gp
from graphprune.errors import ModelError

transformers = pytest.importorskip("transformers")


def llama():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, intermediate_size=48, **sizes)).eval()


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


IDS = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(0))
MODELS = {
    "llama": (llama, (IDS,), "*mlp*"),
    "t5": (t5, {"args": (), "kwargs": {"input_ids": IDS, "decoder_input_ids": IDS}}, "*DenseReluDense*"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_hands_out_a_cache_is_read_without_and_generates_with_it_as_before(name, tmp_path):
    make, example, inner = MODELS[name]
    module = make()
    recipe = f"group{{only={inner}}},score,mask{{channels=0.5x}},propagate"
    artifact = gp.compile(module, example, recipe=recipe, out=tmp_path / "out", measure=False)
    assert module.config.use_cache and any("use_cache" in note for note in artifact.report["notes"])
    cut = gp.rebuild(artifact.program, make())
    assert cut.config.use_cache
    known = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False)
    tokens = cut.generate(IDS[:, :4], **known)
    assert torch.equal(tokens, cut.generate(IDS[:, :4], use_cache=False, **known))
    call = (lambda net: net(*example)) if isinstance(example, tuple) else (lambda net: net(**example["kwargs"]))
    with torch.no_grad():
        assert torch.allclose(call(cut).logits, call(artifact.model).logits, atol=1e-6)
        assert call(cut).past_key_values is not None


def test_a_cache_that_is_asked_for_is_refused_with_what_to_do():
    with pytest.raises(ModelError) as refused:
        gp.load(llama(), {"args": (), "kwargs": {"input_ids": IDS, "use_cache": True}})
    assert "use_cache=True" in refused.value.hint
