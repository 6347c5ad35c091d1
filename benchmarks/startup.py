"""What a command costs before it does anything.

    python -m benchmarks.startup [--repeats 11]

Wall time of whole processes: a bare interpreter, `import graphprune`, `graphprune --help`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import graphprune": [sys.executable, "-c", "import graphprune"],
    "graphprune --help": [sys.executable, "-m", "graphprune", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats + 1):  # the first round warms the disk cache
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - start)
    print("| command | median s | min-max s |\n|---|---|---|")
    for name, seconds in times.items():
        kept = seconds[1:]
        print(f"| `{name}` | {statistics.median(kept):.3f} | {min(kept):.3f}-{max(kept):.3f} |")


if __name__ == "__main__":
    main()
