"""A rotated stream and its hidden size at the size of a small language model: time and memory.

    python -m benchmarks.hidden_size [--blocks 12] [--width 768] [--per stream block]

Random weights, LayerNorms, 8 samples of 128 tokens: `rms,rotate`, and with a fifth of the parameters gone from the
hidden size. Processor seconds of one thread, tracing left out; memory is the process's peak beyond what it had once the
network was loaded, as a multiple of the bytes of its weights. Each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch import nn

import graphprune as gp

TOKENS, SAMPLES, VOCABULARY = 128, 8, 8192


class Network(nn.Module):
    """Tokens and places, blocks with a norm before each part, a head of its own."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Parameter(torch.randn(1, TOKENS, width))
        layers = (
            nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.blocks = nn.ModuleList(layers)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def measured(blocks: int, width: int, per: str) -> dict[str, float]:
    torch.manual_seed(0)
    network = Network(blocks, width).eval()
    ids = torch.randint(0, VOCABULARY, (SAMPLES, TOKENS))
    program = gp.load(network, (ids[:2],), data=[ids.numpy()])
    size = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    del network
    before, start = _peak(), time.process_time()
    opened = gp.run(f"rms,rotate{{per={per}}}", program)
    turned = time.process_time() - start
    done = gp.run("group{places=stream},score{by=ifv normalize=none},mask{params=0.8x floor=0},propagate", opened)
    seconds = time.process_time() - start
    return {"bytes": size, "rotated": turned, "cut": seconds, "memory": (_peak() - before) / size, **_left(done)}


def _left(done: gp.Program) -> dict[str, float]:
    from graphprune.cost.static import params

    return {"parameters": params(done.graph, done.host)() / params(done.source.lift(), done.source)()}


def _peak() -> float:
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--per", nargs="+", default=["stream", "block"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        torch.set_num_threads(1)
        print(json.dumps(measured(args.blocks, args.width, args.child)))
        return
    print("| per | weights | rotated, s | and cut, s | memory / weights | parameters left |\n|---|---|---|---|---|---|")
    for per in args.per:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.hidden_size", "--child", per]
        command += ["--blocks", str(args.blocks), "--width", str(args.width)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise SystemExit(made.stderr[-2000:])
        one = json.loads(made.stdout.splitlines()[-1])
        print(
            f"| {per} | {one['bytes'] / 1e6:.0f} MB | {one['rotated']:.1f} | {one['cut']:.1f} | {one['memory']:.2f} "
            f"| {one['parameters']:.3f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
