"""A pass, a target, and a network with an op that graphprune does not know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from graphprune.allocation import Method
from graphprune.backends.target import Target
from graphprune.criteria import Criterion
from graphprune.ir.facts import Groups, Scores
from graphprune.ir.program import Program
from graphprune.pipeline.base import Pass


@dataclass(frozen=True)
class ScoreByPosition(Pass):
    """Prefer the first channels, or the last."""

    name = "score_by_position"
    needs = (Groups,)
    gives = (Scores,)

    reverse: bool = False  # prefer the last

    def run(self, program: Program) -> Program:
        sign = 1.0 if self.reverse else -1.0
        return program.learn(Scores("position", {g.name: sign * np.arange(g.size) for g in program.fact(Groups)}))


FIRST = Criterion(lambda scoring: {g.name: -1.0 * np.arange(g.size) for g in scoring.groups}, normalize="none")
"""Prefer the first channels."""
THREE = Method(lambda problem: {g.name: 3 for g in problem.groups})
"""Three of each group, whatever the budget."""


@dataclass(frozen=True)
class Tiny(Target):
    """Writes the program as text."""

    name = "tiny"

    shout: bool = False

    def emit(self, program: Program, folder: Path) -> Path:
        path = folder / "program.txt"
        text = program.graph.text()
        path.write_text(text.upper() if self.shout else text)
        return path


@torch.library.custom_op("tiny::scale", mutates_args=())
def scale(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Every channel times a number of its own."""
    return x * by[:, None, None]


@scale.register_fake
def _(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.by, self.out = (
            torch.nn.Conv2d(3, 5, 1),
            torch.nn.Parameter(torch.rand(5)),
            torch.nn.Conv2d(5, 2, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(scale(self.conv(x), self.by))
