"""Blocks of a network of the library that become identities: what it generates with a cache counts on its first."""

import pytest
import torch

import graphprune as gp

hf = pytest.importorskip("transformers")
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)


def network(weak: int):
    """With one block that does next to nothing."""
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=99, **SIZES)).eval()
    with torch.no_grad():
        for layer in (model.model.layers[weak].self_attn.o_proj, model.model.layers[weak].mlp.down_proj):
            layer.weight.mul_(1e-3)
    return model


def without_the_weakest(model, ids, options=""):
    program = gp.load(model, (ids,), data=[ids.numpy()])
    recipe = f"group,branches{{of=block alone=true{options}}},score{{branches=angular}},mask{{params=0.8x}},propagate"
    return gp.run(recipe, program)


@pytest.fixture
def ids():
    return torch.randint(0, 99, (2, 9), generator=torch.Generator().manual_seed(1))


def test_what_is_left_generates_the_same_by_every_cache(ids):
    model = network(2)
    gp.apply(without_the_weakest(model, ids), model, in_place=True)
    assert [type(block).__name__ for block in model.model.layers].index("Identity") == 2
    options = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    tokens = model.generate(ids, use_cache=False, **options)
    assert torch.equal(model.generate(ids, **options), tokens)
    assert torch.equal(model.generate(ids, cache_implementation="static", **options), tokens)


def test_the_first_block_stays_as_caches_are_counted_by_it(ids):
    model = network(0)
    was = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(gp.GraphpruneError, match=r"(?s)its first layer goes.*keep it \(`branches\{keep=first:1\}`\)"):
        gp.apply(without_the_weakest(model, ids), model, in_place=True)
    assert all(torch.equal(tensor, was[name]) for name, tensor in model.state_dict().items())
    gp.apply(without_the_weakest(model, ids, " keep=first:1"), model, in_place=True)
    assert type(model.model.layers[0]).__name__ != "Identity"
