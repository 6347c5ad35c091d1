"""The training loop of these experiments, as a user would write it, with a progress bar and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphprune.cost.static import macs
from graphprune.ir.program import Program
from graphprune.report.progress import shown

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""Batches of one epoch, by its number: the same number, the same batches."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
clock = time.process_time if DEVICE == "cpu" else time.perf_counter  # other work must not count


@dataclass(frozen=True)
class Images:
    """To train on, and to measure on."""

    x: Tensor
    y: Tensor
    x_held: Tensor
    y_held: Tensor

    def aside(self, fifth: int = 0) -> Images:
        """A fifth of the training images to measure on, the others to train on."""
        held = torch.arange(len(self.x)) % 5 == fifth
        return Images(self.x[~held], self.y[~held], self.x[held], self.y[held])


@dataclass
class Run:
    """One training: ``epochs`` of ``length`` batches each at a one-cycle rate up to ``rate``."""

    batches: Batches
    length: int
    epochs: int
    rate: float = 0.1
    decay: float = 5e-4
    smoothing: float = 0.05

    @property
    def steps(self) -> int:
        return self.epochs * self.length

    def optimizer(self, module: nn.Module) -> torch.optim.SGD:
        return torch.optim.SGD(module.parameters(), lr=self.rate, momentum=0.9, nesterov=True, weight_decay=self.decay)

    def train(
        self,
        module: nn.Module,
        penalty: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        step: Callable[..., None] | None = None,
        checkpoint: Path | None = None,
        what: str = "train",
    ) -> float:
        """Train in place and return the seconds it took (of this process, on a CPU). ``penalty``: one of
        gp.train's. ``step``: how a batch becomes gradients, where one backward pass is not all.
        ``checkpoint``: resumed from if there, written after every epoch."""
        optimizer = optimizer or self.optimizer(module)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=self.steps)
        parts = [part for part in (module, optimizer, schedule, penalty) if part is not None]
        done, seconds = _resume(checkpoint, parts)
        module.train()
        with shown() as progress:
            for epoch in range(done, self.epochs):
                start = clock()
                torch.manual_seed(epoch)
                for number, (x, y) in enumerate(self.batches(epoch)):
                    progress(f"{what}, epoch {epoch + 1}", epoch * self.length + number, self.steps)
                    optimizer.zero_grad()
                    (step or self.gradients)(module, x, y, penalty)
                    optimizer.step()
                    schedule.step()
                    if penalty is not None:
                        penalty.step()
                seconds += clock() - start
                _save(checkpoint, parts, epoch + 1, seconds)
        module.eval()
        return seconds

    def gradients(self, module: nn.Module, x: Tensor, y: Tensor, penalty: Any) -> None:
        loss = F.cross_entropy(module(x), y, label_smoothing=self.smoothing)
        (loss if penalty is None else loss + penalty()).backward()

    def sharpness_aware(self, radius: float) -> Callable[..., None]:
        """SAM (Foret et al., 2021): the gradient at the worst point within ``radius``."""

        def step(module: nn.Module, x: Tensor, y: Tensor, penalty: Any) -> None:
            self.gradients(module, x, y, penalty)
            moved = [(p, p.grad.clone()) for p in module.parameters() if p.grad is not None]
            length = torch.stack([g.norm() for _, g in moved]).norm().clamp_min(1e-12)
            with torch.no_grad():
                for parameter, gradient in moved:
                    gradient.mul_(radius / length)
                    parameter.add_(gradient)
                    parameter.grad = None
            self.gradients(module, x, y, penalty)
            with torch.no_grad():
                for parameter, gradient in moved:
                    parameter.sub_(gradient)

        return step


@torch.no_grad()
def accuracy(module: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, batch: int = 1000) -> float:
    """Per cent."""
    right = sum(int((module(x[k : k + batch]).argmax(1) == y[k : k + batch]).sum()) for k in range(0, len(x), batch))
    return 100 * right / len(x)


def share(cut: Program, program: Program) -> float:
    """What is left of the MACs."""
    return float(macs(cut.graph, cut.host)() / macs(program.graph, program.host)())


def mean(values: list[float], places: int = 1) -> str:
    """Mean and sample standard deviation."""
    middle = sum(values) / len(values)
    spread = math.sqrt(sum((v - middle) ** 2 for v in values) / max(len(values) - 1, 1))
    return f"{middle:.{places}f} ± {spread:.{places}f}" if len(values) > 1 else f"{middle:.{places}f}"


def _resume(checkpoint: Path | None, parts: list[Any]) -> tuple[int, float]:
    if checkpoint is None or not checkpoint.exists():
        return 0, 0.0
    saved = torch.load(checkpoint, weights_only=True)
    for part, state in zip(parts, saved["parts"], strict=True):
        part.load_state_dict(state)
    return saved["epochs"], saved["seconds"]


def _save(checkpoint: Path | None, parts: list[Any], epochs: int, seconds: float) -> None:
    if checkpoint is not None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        part = checkpoint.with_suffix(".part")
        torch.save({"parts": [one.state_dict() for one in parts], "epochs": epochs, "seconds": seconds}, part)
        part.replace(checkpoint)
