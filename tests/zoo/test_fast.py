"""The whole compiler on a few architectures, and on all of them where slow tests are asked for."""

from __future__ import annotations

import pytest
import torch

from .all import CATALOGUE
from .measure import RECIPES, measure
from .table import status

FAST = {
    "ResNet": ("torch", "onnx"),
    "ConvNeXt": ("onnx",),
    "Swin": ("torch",),
    "LeViT": ("torch",),
    "BERT": ("onnx",),
    "DeBERTa": ("torch",),
    "Llama (GQA)": ("torch", "onnx"),
    "BLOOM": ("torch",),
    "Qwen2-MoE": ("torch",),
    "Diffusion U-Net": ("torch", "onnx"),
}
FASTEST = [(name, host) for name, hosts in FAST.items() for host in hosts]
OTHERS = [(name, host) for name in CATALOGUE for host in ("torch", "onnx") if host not in FAST.get(name, ())]
NOTHING = {"ConvNeXtV2": "normalises across it"}  # every channel axis is normalised across


@pytest.fixture(autouse=True)
def one_thread():
    """Two pools of threads on few cores are many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name, host", FASTEST)
def test_pruned_is_masked(name, host):
    check(name, host, RECIPES[1:3])


@pytest.mark.slow
@pytest.mark.parametrize("name, host", OTHERS)
def test_pruned_is_masked_everywhere(name, host):
    check(name, host, RECIPES)


def check(name, host, recipes):
    row = measure(CATALOGUE[name], host, recipes)
    if name in NOTHING:
        assert NOTHING[name] in row["refused"]
        return
    assert status(row) == "exact", row
    assert not any("no rule for" in reason for reason in row["frozen"]), row["frozen"]
    for setting in row["settings"]:
        assert setting["moved"] > 1e-3, "the cut did not show: this proves nothing"
        assert setting["params"] < 1


def test_what_dense_weights_can_be_pruned():
    """By hand: all but the first convolution's and the classifier's axes at the ends of the residual
    stream, which LayerNorm normalises across."""
    row = measure(CATALOGUE["ViT"], "torch", ())
    assert row["fixed"] == ["model.vit.embeddings.patch_embeddings.projection.weight", "model.classifier.weight"]
    assert row["frozen"] == {"graph input": 1, "normalises across it": 1, "reaches the graph output": 1}
