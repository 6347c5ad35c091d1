"""Training towards pruning, in one's own loop: Catalyst decides, gp.apply cuts the class in place, distillation
from the dense network finishes. About a minute.

    python -m examples.train_digits [--keep 0.5] [--seed 0]
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch.nn import functional as F

import graphprune as gp

from .digits import DigitsNet, digits

EPOCHS, TUNE, BATCH = 15, 4, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", type=float, default=0.5, help="share of every group's channels that stays")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    x, y, x_held, y_held = digits()

    module = DigitsNet(16)
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def batches() -> torch.Tensor:
        return torch.randperm(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)

    def accuracy(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return 100 * float((model(x_held).argmax(1) == y_held).float().mean())

    # The five lines: load, penalty, its term, its step, and what was learned.
    program = gp.load(module, (x[:2],))
    penalty = gp.train.Catalyst(program, module, optimizer, keep=options.keep, total_steps=steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    module.train()
    for epoch in range(EPOCHS):
        for rows in batches():
            loss = F.cross_entropy(module(x[rows]), y[rows]) + penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            penalty.step()
        print(f"epoch {epoch + 1:2}/{EPOCHS}  loss {float(loss.detach()):.3f}", flush=True)
    dense = copy.deepcopy(module).eval()
    before = accuracy(dense)
    compiled = gp.run("propagate", penalty.learned())
    penalty.remove()

    # Cut the class itself, momentum and all, and go on with the same loop.
    done = gp.apply(compiled, module, in_place=True, optimizer=optimizer)
    print(f"held out: {before:.1f}% before the cut, {accuracy(module.eval()):.1f}% after it")
    inner = gp.train.InnerDistillation(done, module, dense, at=("blocks.1", "blocks.3"))
    for group in optimizer.param_groups:
        group["lr"] = 0.005
    module.train()
    for _ in range(TUNE):
        for rows in batches():
            logits = module(x[rows])
            with torch.no_grad():
                wanted = dense(x[rows])
            loss = F.cross_entropy(logits, y[rows]) + gp.train.answers(logits, wanted) + inner(x[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    sizes = [sum(p.numel() for p in net.parameters()) for net in (dense, module)]
    print(f"fine-tuned: {accuracy(module.eval()):.1f}% with {sizes[1]:,} of {sizes[0]:,} parameters")


if __name__ == "__main__":
    main()
