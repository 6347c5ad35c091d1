"""The worked example of docs/architecture.md, made by running it: ``python tests/architecture.py`` rewrites it."""

from __future__ import annotations

import re
from pathlib import Path

import nets
import torch
from torch import nn

import graphprune as gp
from graphprune.ir.facts import Groups, Keep, Scores
from graphprune.ir.program import Program
from graphprune.pipeline.base import Pass
from graphprune.report.listing import describe

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
BEGIN = "<!-- made by `python tests/architecture.py`, compared by a test; edit that instead -->\n"
END = "<!-- end of what is made -->\n"
RECIPE = "group,score{by=l2},mask{channels=0.5x},propagate,fold"

SAYS = {
    "group": "`stem` and the end of the block are added, so they are one dim: `stem`. The inside of the block is "
    "another, `inner`. Of every group it is known who writes its channels, who reads them, who goes along.",
    "score": "A number a channel. The graph stays as it was, and so do the weights.",
    "mask": "The indices that survive. Nothing is cut yet.",
    "propagate": "The cut: every parameter is sliced where its axis holds a group. Facts are about the old graph, so "
    "none survives.",
    "fold": "Each BatchNorm goes into the convolution before it, which gains a bias.",
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.inner, self.bn = nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.outer = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.outer(torch.relu(self.bn(self.inner(x))))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


class Told:
    """Keeps what every pass left behind."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def before(self, step: Pass, program: Program) -> None:
        self.start = program

    def after(self, step: Pass, program: Program, seconds: float) -> None:
        text = _text(program) if step.rewrites else "\n".join(_fact(program.fact(kind)) for kind in step.gives)
        self.parts.append(f"**`{step.text()}`** {SAYS[step.name]}\n\n```\n{text}\n```\n")


def _text(program: Program) -> str:
    return re.sub(r"\bs\d+x", "Nx", program.graph.text())


def _fact(fact: object) -> str:
    if isinstance(fact, Groups):
        return describe(fact)
    if isinstance(fact, Scores):
        return "\n".join(f"{name}: {' '.join(f'{x:.2f}' for x in score)}" for name, score in fact.scores.items())
    assert isinstance(fact, Keep)
    return "\n".join(f"{name}: {' '.join(map(str, at))}" for name, at in fact.keep.items())


def example() -> str:
    """The text between the marks of the page."""
    module = nets.randomise(Block().double().eval())
    program = gp.load(module, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    told = Told()
    done = gp.run(RECIPE, program, instruments=[told])
    checks = gp.verify(done)
    start = f"As it was read:\n\n```\n{_text(program)}\n```\n"
    proof = "\n".join(f"{check.what}: within {check.tolerance:g}" for check in checks)
    return "\n".join([start, *told.parts, f"`verify` proves it:\n\n```\n{proof}\n```\n"])


def page(text: str) -> str:
    """The page with the example as it is now."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + example() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
