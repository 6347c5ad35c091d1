"""Time and memory of networks that are large beside the machine: a folder of transformers, ONNX with external data.

    python -m benchmarks.large [--work build/large] [CASE ...]

Weights are random, bfloat16 of Llamas with grouped queries, float32 of the ONNX file; each case is made, run in a
process of its own, and removed. Memory is the most that the process held: ``anonymous`` is what only it has (sampled
from /proc/PID/status every few milliseconds), ``resident`` counts the pages of mapped files too, which the system
takes back when it needs them.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LLAMAS: dict[str, dict[str, int]] = {
    "0.6 GB": dict(hidden_size=1024, num_hidden_layers=19, intermediate_size=4096, num_attention_heads=16),
    "1.1 B": dict(hidden_size=2048, num_hidden_layers=22, intermediate_size=5632, num_attention_heads=32),
    "6 GB": dict(hidden_size=3072, num_hidden_layers=27, intermediate_size=8192, num_attention_heads=24),
}
VOCABULARY = {"0.6 GB": 8000, "1.1 B": 32000, "6 GB": 32000}
SHARD_BYTES = 512 << 20
EVERY_S = 0.005
GIVEN = ("--no-verify", "--no-measure")
MASK = "mask{params=0.7x allocate=global alike=layers},propagate"
WITH_DATA = f"group{{only=*gate_proj*}},score{{by=obs}},{MASK},compensate{{bias=false}}"
COMMANDS = {
    "inspect": ["inspect"],
    "l2": ["compile", "--params", "0.7x", *GIVEN],
    "l2, proof": ["compile", "--params", "0.7x", "--no-measure"],
    "obs + lsq": ["compile", "--passes", WITH_DATA, *GIVEN],
    "obs + lsq, proof": ["compile", "--passes", WITH_DATA, "--no-measure"],
}
SAMPLES, TOKENS = 64, 128


@dataclass(frozen=True)
class Held:
    """What a process took. Bytes and seconds."""

    seconds: float
    processor: float
    anonymous: int
    resident: int
    code: int


def run(command: Sequence[str], log: Path) -> Held:
    """A command in a process of its own."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    before, start, anonymous, resident = used.ru_utime + used.ru_stime, time.perf_counter(), 0, 0
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while child.poll() is None:
            now = _status(child.pid)
            anonymous = max(anonymous, now.get("RssAnon", 0))
            resident = max(resident, now.get("VmHWM", 0))
            time.sleep(EVERY_S)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = used.ru_utime + used.ru_stime - before
    return Held(time.perf_counter() - start, processor, anonymous, resident, child.returncode)


def _status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {
        key: int(value.split()[0]) << 10 for key, _, value in (line.partition(":") for line in lines) if "kB" in value
    }


def llama(folder: Path, case: str) -> None:
    """A folder as ``save_pretrained`` writes it, a shard at a time."""
    import json

    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = LLAMAS[case]
    config = LlamaConfig(
        **sizes,
        num_key_value_heads=sizes["num_attention_heads"] // 4,
        vocab_size=VOCABULARY[case],
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        tensors = LlamaForCausalLM(config).state_dict()
    made = torch.Generator().manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    index: dict[str, str] = {}

    def flush() -> None:
        name = f"model-{len(shards):05}.safetensors"
        save_file(shards[-1], folder / name, {"format": "pt"})
        index.update(dict.fromkeys(shards[-1], name))
        shards[-1] = {}

    total = 0
    for name, like in tensors.items():
        one = torch.ones(like.shape) if like.ndim == 1 else torch.randn(like.shape, generator=made) * 0.02
        if sum(x.nbytes for x in shards[-1].values()) > SHARD_BYTES:
            flush()
            shards.append({})
        shards[-1][name] = one.to(torch.bfloat16)
        total += shards[-1][name].nbytes
    flush()
    told = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(told))


def onnx(path: Path, width: int = 2048, layers: int = 16) -> None:
    """A residual perceptron, float32 with external data."""
    import onnx_ir as ir
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for k in range(layers):
        for name, shape in (("up", (width, 2 * width)), ("down", (2 * width, width))):
            array = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0]))
            weights.append(numpy_helper.from_array(array, f"{name}{k}"))
        nodes += [
            helper.make_node("MatMul", [last, f"up{k}"], [f"a{k}"]),
            helper.make_node("Relu", [f"a{k}"], [f"b{k}"]),
            helper.make_node("MatMul", [f"b{k}", f"down{k}"], [f"c{k}"]),
            helper.make_node("Add", [last, f"c{k}"], [f"y{k}"]),
        ]
        last = f"y{k}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", width]) for n in ("x", last)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    path.parent.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    ir.save(ir.from_proto(model), path, external_data="weights.bin")


def data(case: str, work: Path) -> Path:
    """Random tokens."""
    tokens = np.random.default_rng(0).integers(3, VOCABULARY[case], (SAMPLES, TOKENS))
    np.savez(work / "data.npz", input_ids=tokens)
    return work / "data.npz"


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", default=[*LLAMAS, "ONNX 1 GB"])
    parser.add_argument("--work", type=Path, default=Path("build/large"))
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS)[:3])
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    print("| network | bytes | what | s | processor s | anonymous | resident | anonymous / bytes |")
    print("|---|---|---|---|---|---|---|---|")
    for case in args.cases:
        folder = args.work / case.replace(" ", "-")
        model = f"hf:{folder}" if case in LLAMAS else str(folder / "model.onnx")
        if not folder.exists():
            make(case, folder)
        whole = size(folder)
        for what in args.commands:
            out = args.work / "out"
            command = [sys.executable, "-m", "graphprune", *COMMANDS[what][:1], model, *COMMANDS[what][1:]]
            if what != "inspect":
                command += ["-o", str(out)]
            if "obs" in what:
                command += ["--data", str(data(case, args.work))]
            held = run(command, args.work / "log.txt")
            shutil.rmtree(out, ignore_errors=True)
            times = f"{held.seconds:.1f} | {held.processor:.1f}"
            bytes_ = f"{_gb(held.anonymous)} | {_gb(held.resident)} | {held.anonymous / whole:.2f}"
            failed = f" (exit {held.code})" if held.code else ""
            print(f"| {case} | {_gb(whole)} | {what}{failed} | {times} | {bytes_} |", flush=True)
        if not args.keep:
            shutil.rmtree(folder)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def make(case: str, folder: Path) -> None:
    """In a process of its own, whose memory then is free."""
    code = f"from benchmarks import large as l; from pathlib import Path; p = Path({str(folder)!r}); "
    code += f"l.llama(p, {case!r})" if case in LLAMAS else "l.onnx(p / 'model.onnx')"
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    main()
