"""C99 for boards beside LLVM's machine code for the same instructions (x86-64-v3), in one run.

    python -m benchmarks.c_code [MODEL.onnx ...]

Every network is written by both boards, `c` compiled as its build.sh says and once more with `-march=x86-64-v3`; their
programs then run in turns, one thread. Medians over the rounds, their quartiles, and the median of the ratios within a
round. The table goes to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import graphprune as gp
from graphprune.backends.edge.target import Edge

from .cifar import DATA
from .results import between

PAGE = Path("docs/benchmarks.md")
START, END = "<!-- c code: written by python -m benchmarks.c_code -->", "<!-- end of c code -->"
NETWORKS = ("version-RFB-320", "version-slim-320_simplified", "yunet26", "crepe_tiny")
ROUNDS, RUNS = 15, 10
AVX2 = {"CFLAGS": "-O3 -march=x86-64-v3 -ffp-contract=fast -fopenmp"}


def built(path: Path, folder: Path) -> dict[str, Path]:
    """Where each side's program is, by what it is called."""
    program = gp.load(path)
    sides = {"LLVM": ("x86_64", {}), "C": ("c", {}), "C, AVX2": ("c", AVX2)}
    for name, (board, flags) in sides.items():
        (folder / name).mkdir()
        Edge(board=board).emit(program, folder / name)
        if flags:
            subprocess.run(["sh", "build.sh"], cwd=folder / name, env={**os.environ, **flags}, check=True)
    for number, array in enumerate(program.host.example()):
        np.ascontiguousarray(array).tofile(folder / f"{number}.bin")
    return {name: folder / name for name in sides}


def milliseconds(folder: Path, inputs: list[str]) -> float:
    """The median of RUNS runs."""
    said = subprocess.run(
        ["./run", ".", "-n", str(RUNS), "-t", "1", *inputs], cwd=folder, check=True, capture_output=True, text=True
    )
    found = re.search(r"median ([\d.]+) ms", said.stdout + said.stderr)
    assert found is not None, said
    return float(found[1])


def row(path: Path) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = built(path, folder)
        inputs = [str(one) for one in sorted(folder.glob("*.bin"))]
        rounds = [{side: milliseconds(where, inputs) for side, where in sides.items()} for _ in range(ROUNDS)]
    cells = [path.stem]
    for side in sides:
        low, middle, high = np.percentile([one[side] for one in rounds], [25, 50, 75])
        cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
    cells += [f"{np.median([one[side] / one['LLVM'] for one in rounds]):.2f}x" for side in ("C", "C, AVX2")]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help=f"ONNX files (default: {', '.join(NETWORKS)})")
    options = parser.parse_args()
    lines = [
        "| network | LLVM, ms | C, ms | C with AVX2, ms | C / LLVM | C with AVX2 / LLVM |",
        "|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n", flush=True)
    for path in options.models or [DATA / "onnx" / f"{name}.onnx" for name in NETWORKS]:
        lines.append(row(path))
        print(lines[-1], flush=True)
    if not options.models:
        between(PAGE, START, END, "\n".join(lines))


if __name__ == "__main__":
    main()
