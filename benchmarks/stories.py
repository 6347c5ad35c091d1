"""The trained Llama of ../shared/data/stories260K (karpathy/tinyllamas, MIT) and stories for it, for benchmarks."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from functools import cache
from typing import Any

import numpy as np
import torch

from .cifar import DATA

LENGTH = 128
"""Tokens of a sample."""


class Logits(torch.nn.Module):
    """The network without a cache: tokens in, logits out."""

    def __init__(self, llama: torch.nn.Module) -> None:
        super().__init__()
        self.llama = llama

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.llama(ids, use_cache=False).logits
        return out


@cache
def _loader() -> Any:
    spec = importlib.util.spec_from_file_location("load_stories", DATA / "stories260K" / "load_stories.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.HERE = str(DATA / "stories260K")  # type: ignore[attr-defined]
    return module


@cache
def network() -> Logits:
    with contextlib.redirect_stdout(io.StringIO()):
        return Logits(_loader().load()).eval()


@cache
def written(count: int, seed: int) -> Any:
    """Stories that the network itself writes, sampled as it is: int64 (count, LENGTH)."""
    llama: Any = network().llama
    torch.manual_seed(seed)
    start = torch.ones(count, 1, dtype=torch.int64)
    with torch.no_grad():
        made = llama.generate(start, do_sample=True, top_k=0, min_new_tokens=LENGTH - 1, max_new_tokens=LENGTH - 1)
    return made.numpy()


@cache
def real() -> Any:
    """Stories of people's making, which were not written by it: int64 (samples, LENGTH)."""
    text = (DATA / "stories260K" / "tinystories_sample.txt").read_text(encoding="utf-8")
    encode = _loader().Tok().encode
    tokens = [token for story in text.split("<|endoftext|>") if story.strip() for token in encode(story.strip())]
    whole = len(tokens) // LENGTH * LENGTH
    return np.array(tokens[:whole]).reshape(-1, LENGTH)
