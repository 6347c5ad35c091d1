"""The long run: ``python -m tests.fuzz.run --draws 2000 --seed 0``; writes its part of docs/fuzzing.md.

Draws come in chunks of their own seeds. A run that was stopped goes on where it was: finished chunks are
in ``.hypothesis/fuzz-<seed>.jsonl``. ``--replay 'Network(...)'`` checks the one network that a failure
printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

CHUNK = 25
ONNX_SHARE = 4  # one network of so many goes through ONNX as well
PAGE = Path(__file__).parents[2] / "docs" / "fuzzing.md"


def sample(seed: int, draws: int, check: Callable[[Any], Counter[str]]) -> dict[str, Any]:
    """Check ``draws`` networks. A failure is shrunk, and ends the sample."""
    import hypothesis
    from hypothesis import HealthCheck, Phase, given, settings

    from .network import networks

    checked, kinds = Counter[str](), Counter[str]()
    failing: list[Any] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=draws,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(networks())
    def test(net: Any) -> None:
        counting = not failing
        if counting:
            checked["draws"] += 1
            kinds.update(step.kind for step in net.steps)
        try:
            done = check(net)
        except Exception:
            failing.append(net)
            raise
        if counting:
            checked.update(done)

    failure = None
    try:
        test()
    except Exception as error:  # the shrunk one is the last that failed
        failure = {"error": f"{type(error).__name__}: {error}".split("\n")[0], "program": repr(failing[-1])}
    return {"checked": checked, "kinds": kinds, "failure": failure}


def in_onnx(net: Any) -> bool:
    """Told by the network alone: checked again, as it is when it fails, it must come to the same."""
    return bool(net.seed % ONNX_SHARE == 0)


def chunk(seed: int, number: int, draws: int) -> dict[str, Any]:
    """One chunk, in a process of its own."""
    import torch

    from .checks import check

    torch.set_num_threads(1)
    start = time.monotonic()
    made = sample(seed * 100003 + number, draws, lambda net: check(net, onnx_too=in_onnx(net), masks=1))
    return {"chunk": number, "draws": draws, "seconds": time.monotonic() - start, **made}


def finished(state: Path) -> Iterator[dict[str, Any]]:
    if state.exists():
        yield from map(json.loads, state.read_text().splitlines())


def run(draws: int, seed: int, jobs: int, state: Path) -> list[dict[str, Any]]:
    """All chunks, the finished ones from ``state``, to which the others are added."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    sizes = {k: min(CHUNK, draws - k * CHUNK) for k in range((draws + CHUNK - 1) // CHUNK)}
    done = {made["chunk"]: made for made in finished(state) if sizes.get(made["chunk"]) == made["draws"]}
    state.parent.mkdir(exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, disable=not sys.stderr.isatty()) as bar,
        ProcessPoolExecutor(jobs, get_context("spawn")) as pool,
    ):
        task = bar.add_task("networks", total=draws, completed=sum(made["draws"] for made in done.values()))
        futures = [pool.submit(chunk, seed, number, size) for number, size in sizes.items() if number not in done]
        for future in as_completed(futures):
            made = future.result()
            done[made["chunk"]] = made
            with state.open("a") as out:
                out.write(json.dumps(made) + "\n")
            failures = sum(made["failure"] is not None for made in done.values())
            bar.update(
                task, advance=made["draws"], description=f"networks, {failures} failures" if failures else "networks"
            )
    return [done[number] for number in sorted(done)]


def page(made: list[dict[str, Any]], seed: int) -> str:
    """What docs/fuzzing.md says of a run."""
    checked, kinds = Counter[str](), Counter[str]()
    for one in made:
        checked.update(one["checked"])
        kinds.update(one["kinds"])
    failures = [one["failure"] for one in made if one["failure"]]
    seconds = sum(one["seconds"] for one in made)
    rows = "\n".join(f"| {what} | {count:,} |" for what, count in checked.items())
    steps = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
    broken = "\n\n".join(f"`{one['error']}`\n\n```\n{one['program'].strip()}\n```" for one in failures)
    command = f"python -m tests.fuzz.run --draws {sum(one['draws'] for one in made)} --seed {seed}"
    return f"""`{command}` took {seconds / 60:.0f} minutes on one core of a busy machine.

| what | count |
|---|---|
{rows}
| **failures** | **{len(failures)}** |

Steps drawn: {steps}.
{chr(10) + broken + chr(10) if broken else ""}"""


def write_section(heading: str, text: str, path: Path = PAGE) -> None:
    """Replace one section of the page, or add it."""
    whole = path.read_text() if path.exists() else "# Fuzzing\n"
    parts = whole.split("\n## ")
    kept = [part for part in parts[1:] if part.split("\n", 1)[0] != heading]
    at = next((k for k, part in enumerate(parts[1:]) if part.split("\n", 1)[0] == heading), len(kept))
    kept.insert(at, f"{heading}\n\n{text.strip()}\n")
    path.write_text("\n## ".join([parts[0], *kept]))


def replay(text: str) -> None:
    from .checks import check
    from .network import Network, Step

    net = eval(text, {"Network": Network, "Step": Step, "__builtins__": {}})
    print(repr(net))
    print(dict(check(net, onnx_too=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--replay", metavar="NETWORK")
    options = parser.parse_args()
    if options.replay:
        replay(options.replay)
        return
    state = Path(".hypothesis") / f"fuzz-{options.seed}.jsonl"
    made = run(options.draws, options.seed, options.jobs, state)
    write_section("The last long run", page(made, options.seed))
    failures = [one["failure"] for one in made if one["failure"]]
    for failure in failures:
        print(failure["error"], failure["program"], sep="\n")
    print(f"{sum(one['checked']['draws'] for one in made)} draws, {len(failures)} failures; see {PAGE}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
