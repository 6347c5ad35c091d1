"""Files that are damaged or made to do harm: ``python -m tests.fuzz.mutate --cases 2000`` reads them all.

A case is a name such as ``onnx/bytes/17``: it says what is mutated, how, and from which seed. Every
case must end in a GraphpruneError, or right: a model that is cut and proved, a plan that is applied and
proved, a table whose latencies make sense; see worker.py.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import torch
from google.protobuf.message import Message

import graphprune as gp

from . import attacks, documents
from .attacks import _members, _zip
from .network import Module, Network, Step, data, to_onnx
from .structure import mutated_structure

# ---- what is mutated ---------------------------------------------------------------------------------

_CONV = {"out": 6, "groups": 1, "kernel": 3, "stride": 1, "bias": True}
_NETS = (
    Network(
        (("image", (7, 3, 4, 4)),),
        (
            Step("conv", 0, _CONV, 0),
            Step("batch_norm", 1, {}, 1),
            Step("act", 2, {"f": "relu"}, 2),
            Step("conv", 3, {**_CONV, "groups": 2}, 3),
            Step("concat", 4, {"with": (3,), "axis": 1, "first": True}, 4),
            Step("split", 5, {"axis": 1, "sizes": (4, 8), "chunk": False}, 5),
            Step("reshape", 7, {"to": (7, 8, 16), "computed": True}, 6),
            Step("linear", 8, {"out": 3, "bias": True, "form": "plain"}, 7),
            Step("conv", 6, {**_CONV, "out": 3}, 8),
        ),
        (9, 10),
        1,
    ),
    Network(
        (("ids", (7, 4)),),
        (
            Step("embedding", 0, {"out": 6}, 0),
            Step(
                "attention",
                1,
                {
                    "heads": 2,
                    "few": 1,
                    "width": 3,
                    "value": 2,
                    "packed": True,
                    "form": "decomposed",
                    "spread": "expand",
                },
                1,
            ),
            Step("binary", 2, {"with": 1, "f": "add"}, 2),
            Step("layer_norm", 3, {"trailing": 1, "affine": True}, 3),
            Step("linear", 4, {"out": 8, "bias": True, "form": "plain"}, 4),
            Step("glu", 5, {"axis": 2}, 5),
            Step("linear", 6, {"out": 3, "bias": True, "form": "plain"}, 6),
        ),
        (7,),
        2,
    ),
)


@cache
def onnx_file(which: int) -> bytes:
    """A small model to mutate; from 2 on, the detectors among the shared data, where they are."""
    if which < len(_NETS):
        return to_onnx(_NETS[which]).SerializeToString()
    return detectors()[which - len(_NETS)].read_bytes()


@cache
def detectors() -> list[Path]:
    return sorted((Path(__file__).parents[3] / "shared" / "data" / "onnx").glob("*.onnx"))


@cache
def pt2_file(which: int) -> bytes:
    """A small program as torch.export saves it, with a batch of any size."""
    net = _NETS[which]
    inputs = tuple(torch.from_numpy(x.astype(np.float32) if x.dtype == np.float64 else x) for x in data(net))
    exported = torch.export.export(Module(net).float().eval(), inputs, dynamic_shapes=({0: torch.export.Dim.AUTO},))
    out = io.BytesIO()
    torch.export.save(exported, out)
    return out.getvalue()


# ---- how ---------------------------------------------------------------------------------------------


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes overwritten, cut off, taken out, put in or doubled."""
    out = bytearray(content)
    how = rng.choice(["flip", "flip", "overwrite", "truncate", "remove", "insert", "double"])
    a, n = rng.randrange(len(out)), rng.choice([1, 2, 8, 64])
    if how == "flip":
        for _ in range(rng.choice([1, 2, 5, 20])):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif how == "overwrite":
        out[a : a + n] = rng.choice([bytes(n), b"\xff" * n, rng.randbytes(n)])
    elif how == "truncate":
        del out[a:]
    elif how == "remove":
        del out[a : a + n]
    else:
        out[a:a] = rng.randbytes(n) if how == "insert" else out[a : a + n]
    return bytes(out)


INTS = (0, 1, -1, 2, 3, 7, 64, 1000, 2**31 - 1, 2**31, 2**40, 2**62, -(2**31), -(2**63), 2**63 - 1)
WORDS = ("", "x", "x0", "../../up", "/etc/passwd", "a" * 5000, "Loop", "Reshape", "ai.onnx", "com.microsoft", "\0", "ü")


def mutated_proto(content: bytes, rng: random.Random) -> bytes:
    """One to three fields of the model changed, wherever they are."""
    model = onnx.ModelProto.FromString(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        message, name = _pick(model, rng)
        _change(message, name, rng)
    return bytes(model.SerializePartialToString())


def _pick(message: Message, rng: random.Random) -> tuple[Message, str]:
    """A field of the message, or of one within it."""
    while True:
        fields = [field for field, _ in message.ListFields()]
        field = rng.choice(fields) if fields else rng.choice(list(message.DESCRIPTOR.fields))
        inner = getattr(message, field.name)
        if field.message_type is None or not fields or rng.random() < 0.15:
            return message, field.name
        if field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED:
            inner = rng.choice(list(inner))
        message = inner


def _change(message: Message, name: str, rng: random.Random) -> None:
    field = message.DESCRIPTOR.fields_by_name[name]
    repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
    if rng.random() < 0.1 or (field.message_type is not None and not repeated):
        message.ClearField(name)
        return
    if not repeated:
        _set(message, name, rng)
        return
    items = getattr(message, name)
    how = rng.choice(["delete", "double", "swap", "set", "set"])
    if not len(items) or (how == "set" and field.message_type is not None):
        how = "delete"
    if how == "set":
        k = rng.randrange(len(items))
        items[k] = _other(items[k], rng)
    elif how == "double":
        items.append(rng.choice(list(items)))
    elif how == "swap" and len(items) > 1:
        order = list(items)
        rng.shuffle(order)
        kept = [type(x).FromString(x.SerializePartialToString()) if isinstance(x, Message) else x for x in order]
        del items[:]
        items.extend(kept)
    elif len(items):
        del items[rng.randrange(len(items))]


def _set(message: Message, name: str, rng: random.Random) -> None:
    try:
        setattr(message, name, _other(getattr(message, name), rng))
    except ValueError:  # an enum or an int of 32 bits
        setattr(message, name, rng.choice([0, 1, 2, 7, 10, 16]))


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, int):
        return rng.choice([*INTS, value + 1, value - 1, -value, value * 2]) if abs(value) < 2**61 else 0
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    if isinstance(value, bytes):
        return rng.choice([b"", value[: len(value) // 2], value + b"\0", bytes(len(value)), value * 3])
    return rng.choice([*WORDS, value + "_", value[:-1]])


def mutated_zip(content: bytes, rng: random.Random) -> bytes:
    """A member lost, cut off, renamed, doubled or mutated inside."""
    members = list(_members(content).items())
    k = rng.randrange(len(members))
    name, inner = members[k]
    how = rng.choice(["lose", "truncate", "rename", "double", "mutate", "swap"])
    if how == "lose":
        del members[k]
    elif how == "truncate":
        members[k] = (name, inner[: rng.randrange(len(inner) + 1)])
    elif how == "rename":
        members[k] = (rng.choice([name.upper(), name + "x", "../" + name, "x", name.replace("model", "other")]), inner)
    elif how == "double":
        members.append((name, inner[::-1]))
    elif how == "swap":
        other = rng.randrange(len(members))
        members[k], members[other] = (name, members[other][1]), (members[other][0], inner)
    elif inner:
        members[k] = (name, mutated_bytes(inner, rng))
    return _zip(members)


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """One of the JSON members changed."""
    members = _members(content)
    name = rng.choice([name for name in members if name.endswith(".json")])
    members[name] = mutated_text(members[name], rng)
    return _zip(members)


def mutated_text(content: bytes, rng: random.Random) -> bytes:
    """One to three numbers, words or parts of a JSON text changed."""
    tree = json.loads(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        _change_tree(tree, rng)
    return json.dumps(tree).encode()


def _change_tree(tree: Any, rng: random.Random) -> None:
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = rng.choice(keys)
        value = tree[key]
        if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
            tree = value
            continue
        how = rng.random()
        if how < 0.15:
            del tree[key]
        elif how < 0.25:
            tree[key] = rng.choice([None, [], {}, "", 0, [value], {"as_int": 3}, True])
        elif isinstance(value, bool):
            tree[key] = not value
        elif isinstance(value, (int, float, str)):
            tree[key] = _other(value, rng)
        elif isinstance(value, list):
            tree[key] = value + value
        return


# ---- cases -------------------------------------------------------------------------------------------

WAYS = {
    "onnx": {"bytes": mutated_bytes, "proto": mutated_proto, "structure": mutated_structure},
    "pt2": {"bytes": mutated_bytes, "zip": mutated_zip, "json": mutated_json},
    "plan": {"bytes": mutated_bytes, "json": mutated_text, "weights": mutated_bytes},
    "table": {"bytes": mutated_bytes, "lines": documents.mutated_lines},
}
OUTPUTS = {"out/model.onnx", "out/model.onnx.data", "out/model.pt2"}


def files(case: str) -> dict[str, bytes]:
    """The files of a case by name, one of them damaged."""
    host, way, _ = case.split("/")
    if host in ("onnx", "pt2"):
        return {f"model.{host}": content(case)}
    sound = documents.plan_files() if host == "plan" else {"table.jsonl": documents.table_file()}
    damaged = {"plan": "plan.safetensors" if way == "weights" else "plan.json", "table": "table.jsonl"}[host]
    return {**sound, damaged: WAYS[host][way](sound[damaged], random.Random(case))}


def use(case: str, folder: Path, out: Path) -> None:
    """What a user does with the files of a case, and the proof that it is right."""
    host = case.partition("/")[0]
    if host == "plan":
        documents.apply_plan(folder, out / "model.onnx")
    elif host == "table":
        documents.use_table(folder / "table.jsonl")
    else:
        program = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(folder / f"model.{host}"))
        gp.verify(program)
        program.host.save(out / f"model.{host}")


def content(case: str) -> bytes:
    """The model of a case."""
    host, way, which = case.split("/")
    if way == "attack":
        if host == "pt2":
            return attacks.PT2_ATTACKS[which](pt2_file(0))
        made = attacks.ONNX_ATTACKS[which]()
        return made if isinstance(made, bytes) else made.SerializeToString()
    if way == "sound":
        return pt2_file(int(which)) if host == "pt2" else onnx_file(int(which))
    rng = random.Random(case)
    if host == "pt2":
        return WAYS[host][way](pt2_file(int(which) % len(_NETS)), rng)
    several = len(_NETS) + len(detectors())
    base = int(which) % len(_NETS) if int(which) % 10 else int(which) // 10 % several  # the detectors are slow
    return WAYS[host][way](onnx_file(base), rng)


def attack_cases() -> list[str]:
    return [*(f"onnx/attack/{k}" for k in attacks.ONNX_ATTACKS), *(f"pt2/attack/{k}" for k in attacks.PT2_ATTACKS)]


def cases(count: int) -> list[str]:
    """The attacks, and mutations to make up the number."""
    out = attack_cases()
    ways = ["onnx/structure", "plan/json", "onnx/proto", "pt2/json", "onnx/structure", "table/lines", "onnx/bytes"]
    ways += ["onnx/structure", "pt2/zip", "plan/weights", "onnx/proto", "onnx/structure", "pt2/bytes", "table/bytes"]
    ways += ["onnx/structure", "plan/bytes", "onnx/proto"]
    number = 0
    while len(out) < count:
        out.append(f"{ways[number % len(ways)]}/{number}")
        number += 1
    return out


def page(results: list[dict[str, Any]], seconds: float) -> str:
    ends = Counter((r["case"].rpartition("/")[0], r["end"]) for r in results)
    columns = ("refused", "right", "WRONG")
    rows = "\n".join(
        f"| {way} | "
        + " | ".join(str(sum(n for (w, e), n in ends.items() if w == way and e.startswith(c))) for c in columns)
        + " |"
        for way in sorted({w for w, _ in ends})
    )
    said = Counter(r["error"] for r in results if r["end"] == "refused")
    wrong = [f"- `{r['case']}`: {r['end']}" for r in results if r["end"].startswith("WRONG")]
    slowest = max(results, key=lambda r: r["seconds"])
    return f"""`python -m tests.fuzz.mutate --cases {len(results)}` took {seconds / 60:.0f} minutes.
A case is *refused* with a GraphpruneError, or *right*: the model is cut to half its channels, or the plan is
applied to its model, and proved equal to the masked one; every latency of the table is finite
and none of them made up. Anything else is wrong: another exception, a process that dies, more than 10 s of processor
time, more than 2 GB of memory, a file written outside the output folder, a payload that ran.

| mutation | refused | right | wrong |
|---|---|---|---|
{rows}

Refusals: {", ".join(f"{name} {n:,}" for name, n in said.most_common())}.
The slowest case, `{slowest["case"]}`, took {slowest["seconds"]:.1f} s.

{chr(10).join(wrong)}"""


def main() -> None:
    from .run import write_section
    from .worker import read_all

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("only", nargs="*", help="these cases alone")
    options = parser.parse_args()
    start = time.monotonic()
    results = []
    for result in read_all(options.only or cases(options.cases), options.jobs):
        results.append(result)
        if result["end"].startswith("WRONG") or options.only:
            print(result["case"], result["end"], result.get("said", "")[:300], f"{result['seconds']:.1f} s", flush=True)
    if not options.only:
        write_section("Untrusted files", page(results, time.monotonic() - start))
    wrong = sum(r["end"].startswith("WRONG") for r in results)
    print(Counter((r["case"].rpartition("/")[0], r["end"][:12]) for r in results))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
