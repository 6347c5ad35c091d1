"""Tokens dropped behind the second of six blocks of vision transformers on digits, without training. A minute a seed.

    python -m benchmarks.tokens [--seeds 0 1 2]

Two networks: the mean of all tokens, or a class token, is what the head reads. `random` is the control: the same
places in every image. The tables are Markdown, for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import graphprune as gp
from graphprune.cost.static import macs
from graphprune.ir.host import Host

from .opened_tasks import ViT, digits, digits_right, vit

AFTER, SHARES, CHOICES = 2, (1.0, 0.75, 0.5, 0.25), ("attention", "flow", "random")


class ClassToken(ViT):
    """The same with a class token, which the head reads."""

    def __init__(self, width: int = 64, depth: int = 6) -> None:
        super().__init__(width, depth)
        self.first = torch.nn.Parameter(0.02 * torch.randn(1, 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        x = torch.cat((self.first.expand(x.shape[0], -1, -1), x), 1)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x)[:, 0])
        return logits


NETWORKS = {"mean of tokens": ViT, "class token": ClassToken}


def measured(module: ViT) -> dict[tuple[str, float], tuple[float, float]]:
    """By choice and share of tokens: percent of held-out digits that are right, and the share of MACs."""
    program = gp.load(module, (torch.from_numpy(digits()[0][:2]),))
    whole, found = macs(program.graph, program.host)(), {}
    for by in CHOICES:
        for share in SHARES:
            done = gp.run(f"tokens{{keep={share} after={AFTER} by={by}}}", program)
            right = digits_right(_first(done.host), _first(program.host))
            found[by, share] = right["accuracy"], macs(done.graph, done.host)() / whole
    return found


def _first(host: Host) -> Callable[[Sequence[Any]], Any]:
    """The first output for a batch."""
    return lambda batch: host.run(batch)[0]


def table(name: str, seeds: Mapping[int, Mapping[tuple[str, float], tuple[float, float]]]) -> str:
    """A row a choice, a column a share; mean over seeds, and the least and most."""
    lines = [f"| {name} | " + " | ".join(f"{share:g}x" for share in SHARES) + " |", "|---" * (len(SHARES) + 1) + "|"]
    for by in CHOICES:
        cells = []
        for share in SHARES:
            right = [found[by, share][0] for found in seeds.values()]
            cells.append(f"{sum(right) / len(right):.1f} ({min(right):.1f} to {max(right):.1f})")
        lines.append(f"| {by} | {' | '.join(cells)} |")
    first = next(iter(seeds.values()))
    for by in CHOICES[:2]:
        lines.append(f"| MACs, {by} | " + " | ".join(f"{first[by, share][1]:.2f}x" for share in SHARES) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args(arguments)
    for name, kind in NETWORKS.items():
        print(table(name, {seed: measured(vit(seed, kind)) for seed in args.seeds}), flush=True)


if __name__ == "__main__":
    main()
