"""Folders of networks that read images and text: the example has as many tokens for parts of the image as it makes."""

import pytest
import torch

import graphprune as gp
from graphprune.errors import ModelError
from graphprune.hosts.torch.pretrained import Pretrained

transformers = pytest.importorskip("transformers")
IMAGE = 98


def llava():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    text = transformers.LlamaConfig(vocab_size=99, num_key_value_heads=2, intermediate_size=64, **sizes)
    vision = transformers.CLIPVisionConfig(intermediate_size=48, image_size=28, patch_size=7, **sizes)
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)
    return transformers.LlavaForConditionalGeneration(config).eval()


def test_a_folder_that_reads_images_and_text_becomes_a_smaller_one(tmp_path):
    llava().save_pretrained(tmp_path / "in")
    artifact = gp.compile(f"hf:{tmp_path / 'in'}", params="0.85x", out=tmp_path / "out", measure=False)
    cut = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    example = Pretrained(cut).example()["kwargs"]
    assert (example["input_ids"] == IMAGE).sum(1).tolist() == [16, 16]
    with torch.no_grad():
        assert torch.allclose(cut(**example).logits, artifact.model(**example).logits, atol=1e-5)
    assert sum(p.numel() for p in cut.parameters()) <= 0.85 * sum(p.numel() for p in llava().parameters())


def test_images_of_a_form_of_their_own_are_asked_for(monkeypatch):
    model = llava()

    def tiles(pixel_values):
        raise ValueError("a grid of patches is needed")

    monkeypatch.setattr(model, "get_image_features", tiles)
    with pytest.raises(ModelError, match="grid of patches"):
        Pretrained(model).example()
