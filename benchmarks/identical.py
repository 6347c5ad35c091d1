"""Whether a change of the code left every artifact as it was: plans and weights of ten networks, to the last bit.

    git worktree add ../before REV && (cd ../before && python -m benchmarks.identical record /tmp/before.json)
    python -m benchmarks.identical record /tmp/after.json
    python -m benchmarks.identical compare /tmp/before.json /tmp/after.json

What is recorded of each network, host and recipe is the plan's ``parameters`` (role and kept indices of
every axis) and a hash of every weight that comes out. Only what has always been public is used, so that the
same file runs in an old checkout.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import graphprune as gp
from tests.zoo.all import CATALOGUE
from tests.zoo.measure import load

NETWORKS = (
    "ResNet",
    "MobileNetV2",
    "EfficientNet",
    "ConvNeXt",
    "ViT",
    "Swin",
    "BERT",
    "GPT-2",
    "Llama (GQA)",
    "Diffusion U-Net",
)
RECIPES = (
    "group,score,mask{params=0.7x allocate=global},propagate,fold",
    "group,score{by=lamp},mask{channels=0.5x grain=4},propagate",
    "group,score{by=l1 combine=max},mask{channels=0.6x unconstrained=readers},reorder,propagate",
    "group,score{by=obs},mask{channels=0.7x},propagate,compensate",
)


def record() -> Iterator[tuple[str, Any]]:
    """(network, host and recipe; what came out)."""
    for name in NETWORKS:
        for host in ("torch", "onnx"):
            program = load(CATALOGUE[name], host)
            data = program.host.example()
            for recipe in RECIPES:
                yield f"{name} | {host} | {recipe}", outcome(program, data, recipe)


def outcome(program: gp.Program, data: Any, recipe: str) -> Any:
    """The plan's parameters and a hash per weight, or the words of a refusal."""
    from dataclasses import replace

    try:
        done = gp.run(recipe, replace(program, data=[data]))
    except gp.GraphpruneError as error:
        return {"refused": error.message}
    weights = {name: done.host.parameter(name) for name in sorted(done.graph.parameters)}
    return {
        "parameters": json.loads(json.dumps(done.plan["parameters"])),
        "weights": {name: digest(weight) for name, weight in weights.items()},
    }


def digest(weight: Any) -> str:
    shown = f"{weight.dtype} {weight.shape} ".encode()
    return hashlib.sha256(shown + np.ascontiguousarray(weight).tobytes()).hexdigest()[:16]


def compare(before: Path, after: Path) -> int:
    """Print what differs; the number of entries that do."""
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    for key in differing:
        print(f"differs: {key}")
    print(f"{len(old)} entries before, {len(new)} after, {len(differing)} differ")
    return len(differing)


def main(command: str, *paths: str) -> int:
    if command == "compare":
        return compare(*map(Path, paths))
    found = {}
    for key, outcome_of in record():
        found[key] = outcome_of
        print(f"{time.strftime('%H:%M:%S')} {key}", flush=True)
    Path(paths[0]).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:]), 1))
