"""A mixture of eight experts on handwritten digits, cut to four by each score, without training. A minute a seed.

    python -m benchmarks.experts [--seeds 0 1 2]

The tables are Markdown, for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphprune as gp
from examples.digits import digits

EXPERTS, CHOSEN, WIDTH, INNER, LAYERS = 8, 2, 32, 32, 2
EPOCHS, BATCH, BALANCE = 20, 64, 0.01
LEFT = (6, 4, 3)
SCORES = ("random", "l1", "l2", "stun", "mone", "taylor", "diep")
X, Y, X_HELD, Y_HELD = digits()


class Mixture(nn.Module):
    """Each token by its two best experts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH) * WIDTH**-0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) * INNER**-0.5)
        self.uneven = torch.zeros(())  # how unevenly tokens were spread, for training

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        share = self.gate(h).softmax(-1)
        best, ids = share.topk(CHOSEN, -1)
        inner = F.relu(self.up[ids] @ h[..., None, :, None])
        made = (self.down[ids] @ inner)[..., 0]
        if self.training:  # Switch Transformers (Fedus et al. 2022), eq. 4
            used = F.one_hot(ids, EXPERTS).float().mean((0, 1, 2))
            self.uneven = EXPERTS * (used * share.mean((0, 1))).sum()
        y: Tensor = x + (best[..., None] * made).sum(-2)
        return y


class Digits(nn.Module):
    """The eight rows of an image are its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.place = nn.Linear(8, WIDTH), nn.Parameter(torch.randn(8, WIDTH) * 0.1)
        self.layers = nn.ModuleList(Mixture() for _ in range(LAYERS))
        self.mix = nn.ModuleList(nn.Linear(8, 8) for _ in range(LAYERS))  # of rows
        self.leave = nn.Linear(8 * WIDTH, 10)

    def mixtures(self) -> list[Mixture]:
        return [layer for layer in self.layers if isinstance(layer, Mixture)]

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x.squeeze(1)) + self.place
        for mixture, mix in zip(self.layers, self.mix, strict=True):
            h = mixture(h + mix(h.transpose(1, 2)).transpose(1, 2))
        out: Tensor = self.leave(h.flatten(1))
        return out


def trained(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = Digits()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.01)
    steps = EPOCHS * (len(X) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(X))[: len(X) // BATCH * BATCH].reshape(-1, BATCH):
            loss = F.cross_entropy(module(X[rows]), Y[rows])
            loss = loss + BALANCE * torch.stack([mixture.uneven for mixture in module.mixtures()]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for mixture in module.mixtures():
        mixture.uneven = torch.zeros(())
    return module.eval()


@torch.no_grad()
def accuracy(module: nn.Module) -> float:
    return 100 * float((module(X_HELD).argmax(1) == Y_HELD).float().mean())


def cut(module: nn.Module, score: str, left: int, seed: int) -> float:
    """Accuracy in percent of held-out digits with so many experts a layer."""
    program = gp.load(module, (X[:2],), data=(X[:512], Y[:512]), loss=F.cross_entropy, seed=seed)
    share = f"{left / EXPERTS}x"
    rest = f"mask{{channels={share} allocate=uniform}},propagate"
    if score == "diep":
        pruned = gp.run(rest, gp.train.diep(program, keep=left / EXPERTS))
    else:
        pruned = gp.run(f"group{{places=experts}},score{{by={score}}},{rest}", program)
    gp.verify(pruned)
    return accuracy(pruned.model)


def row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, int], list[float]] = {}
    for seed in options.seeds:
        start = time.perf_counter()
        module = trained(seed)
        found.setdefault(("", EXPERTS), []).append(accuracy(module))
        print(f"seed {seed}: trained in {time.perf_counter() - start:.0f} s", flush=True)
        for score in SCORES:
            for left in LEFT:
                found.setdefault((score, left), []).append(cut(module, score, left, seed))
    print(f"all {EXPERTS}: {_told(found['', EXPERTS])}\n")
    print(row(["score", *(f"{left} of {EXPERTS}" for left in LEFT)]))
    print(row(["---"] * (1 + len(LEFT))))
    for score in SCORES:
        print(row([f"`{score}`", *(_told(found[score, left]) for left in LEFT)]))


def _told(values: Sequence[float]) -> str:
    several = torch.tensor(values)
    spread = f" ± {float(several.std()):.1f}" if len(values) > 1 else ""
    return f"{float(several.mean()):.1f}{spread}"


if __name__ == "__main__":
    main()
