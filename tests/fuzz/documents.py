"""Plans and latency tables, sound and damaged: what graphprune wrote itself, and somebody edited."""

from __future__ import annotations

import json
import random
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx

import graphprune as gp
from graphprune.cost.latency.table import Table
from graphprune.cost.latency.workload import Family
from graphprune.ir.facts import Latency
from graphprune.pipeline.plan_file import write_plan

from .network import Network, Step, data, to_onnx

RECIPE = "group,score,mask{channels=0.5x},propagate,compensate{by=lsq}"
LINEAR = {"bias": True, "form": "plain"}
NET = Network(
    (("vector", (7, 6)),),
    (
        Step("linear", 0, {**LINEAR, "out": 8}, 0),
        Step("act", 1, {"f": "relu"}, 1),
        Step("linear", 2, {**LINEAR, "out": 6}, 2),
        Step("act", 3, {"f": "relu"}, 3),
        Step("linear", 4, {**LINEAR, "out": 3}, 4),
    ),
    (5,),
    3,
)
KEY = {"target": "x", "threads": 1}
NUMBERS = (b"-1", b"NaN", b"Infinity", b"1e400", b"0", b"9" * 5000, b'"1"', b"null", b"true", b"7")
FAMILIES = (Family("conv", (1, 1, 8, 3, 1)), Family("product", (7,)), Family("stream"))


@cache
def plan_files() -> dict[str, bytes]:
    """A model, its plan and the weights of the plan, without the digest by which damaged ones are told: those are to be
    read, too."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        onnx.save(to_onnx(NET), str(folder / "source.onnx"))
        program = gp.load(folder / "source.onnx", data=np.float32(data(NET, 2, batch=40)[0]))
        write_plan(folder, gp.run(RECIPE, program).plan)
        plan = json.loads((folder / "plan.json").read_text())
        for step in plan["steps"]:
            step.get("weights", {}).pop("digest", None)
        (folder / "plan.json").write_text(json.dumps(plan, indent=1))
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@cache
def table_file() -> bytes:
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "table.jsonl"
        points = {
            (family, (2**a, 2**b)): Latency(0.1 * 2 ** (a + b), 0.01, 9, 1, "x")
            for family in FAMILIES
            for a in range(4)
            for b in range(4)
        }
        Table(KEY, path).add(points)
        return path.read_bytes()


def apply_plan(folder: Path, out: Path) -> None:
    """Either refused, or what the plan says was done, and proved."""
    done = gp.apply(folder / "plan.json", folder / "source.onnx")
    gp.verify(done)
    done.host.save(out)


def use_table(path: Path) -> None:
    """Either refused, or every latency makes sense, nothing was invented, and adding to it repairs it."""
    table, lines = Table.read(path), path.read_bytes().splitlines()
    held = sum(map(len, table.points.values()))
    assert held + table.damaged <= len(lines), f"{held} points and {table.damaged} damaged of {len(lines)} lines"
    assert table.damaged == 0 or table.remark()
    for family in table.points:
        found = table.surface(family)(np.array([1, 3, 100]), np.array([1, 5, 70]))
        assert np.isfinite(found).all() and (found >= 0).all(), f"{family}: {found}"
    table.add({(FAMILIES[0], (3, 3)): Latency(1.0, 0.1, 9, 1, "x")})
    again = Table.read(path)
    assert again.damaged == 0 and again.points == table.points, "adding a point repairs the file"


def mutated_lines(content: bytes, rng: random.Random) -> bytes:
    """Lines of a table lost, doubled, cut short, or with another number or word in them."""
    lines = content.splitlines(keepends=True)
    for _ in range(rng.choice([1, 1, 3, 10])):
        k = rng.randrange(len(lines))
        how = rng.choice(["lose", "double", "cut", "number", "number", "word", "deep", "blank"])
        if how == "lose" and len(lines) > 1:
            del lines[k]
        elif how == "double":
            lines.insert(rng.randrange(len(lines) + 1), lines[k])
        elif how == "cut":
            lines[k] = lines[k][: rng.randrange(len(lines[k]))]
        elif how == "number":
            digits = [at for at, char in enumerate(lines[k]) if chr(char).isdigit()]
            at = rng.choice(digits) if digits else 0
            lines[k] = lines[k][:at] + rng.choice(NUMBERS) + lines[k][at + 1 :]
        elif how == "word":
            lines[k] = lines[k].replace(rng.choice([b"conv", b"median_ms", b"float32", b"widths"]), b"other")
        elif how == "deep":
            lines[k] = b"[" * 100_000 + b"\n"
        else:
            lines[k] = rng.choice([b"\n", b"\0\n", b"{}\n", b"\xff\xfe\n"])
    return b"".join(lines)
