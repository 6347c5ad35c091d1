"""One architecture through one host: what can be pruned, what cannot, and the error at every budget."""

from __future__ import annotations

import io
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import graphprune as gp
from graphprune.axes.dim import Dim, leaves
from graphprune.cost.static import params
from graphprune.coupling.relate import role
from graphprune.errors import GraphpruneError
from graphprune.ir.facts import Groups
from graphprune.ir.graph import Graph
from graphprune.ir.program import Program
from graphprune.pipeline.compare import relative

from .catalogue import Architecture

FLOOR = 0.1
Recipe = tuple[str, float, str]
RECIPES: tuple[Recipe, ...] = (
    ("channels", 0.7, "uniform"),
    ("channels", 0.5, "uniform"),
    ("params", 0.7, "global"),
    ("params", 0.5, "global"),
)
DENSE = ("conv", "conv_transpose", "linear", "gemm", "matmul", "einsum")


def measure(architecture: Architecture, host: str, recipes: Sequence[Recipe] = RECIPES) -> dict[str, Any]:
    """Everything the table says of one row. Errors that graphprune does not raise on purpose escape."""
    start = time.perf_counter()
    program = load(architecture, host)
    row: dict[str, Any] = {"load_s": time.perf_counter() - start, "ops": len(program.graph.ops)}
    try:
        groups = gp.run("group", program).fact(Groups)
    except GraphpruneError as error:
        return {**row, "refused": error.message}
    row |= {"groups": len(groups), "channels": sum(group.size for group in groups)}
    row |= _reach(program, groups) | {"frozen": reasons(program.graph, groups)}
    row["settings"] = [_setting(program, row["least"], *recipe) for recipe in recipes]
    row["seconds"] = time.perf_counter() - start
    return row


def load(architecture: Architecture, host: str) -> Program:
    """The program, from the module itself or from the ONNX model that torch.onnx makes of it."""
    import onnx

    if host == "torch":
        return gp.load(*architecture.build())
    file, inputs = exported(architecture)
    return gp.load(onnx.load_from_string(file), inputs)


def exported(architecture: Architecture) -> tuple[bytes, list[Any]]:
    """The ONNX model that torch.onnx makes of the module, and its inputs."""
    import torch

    module, inputs = architecture.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
        except torch.onnx.OnnxExporterError:  # torch 2.13 fails on some fused attention with a bias
            module.model.set_attn_implementation("eager")
            made = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
        assert made is not None
        file = io.BytesIO()
        made.save(file)
    return file.getvalue(), [array.numpy() for array in inputs]


def _setting(program: Program, least: float, unit: str, share: float, allocate: str) -> dict[str, Any]:
    """One budget, compiled and proved. A budget that the frozen part does not allow becomes the least
    that it does."""
    if unit == "params":
        share = max(share, least + 0.01)
    recipe = f"group,score,mask{{{unit}={share:.4g}x allocate={allocate}}},propagate"
    start = time.perf_counter()
    done: dict[str, Any] = {"recipe": recipe}
    try:
        pruned = gp.run(recipe, program)
        checks = gp.verify(pruned)
        example = program.host.example()
        outputs = zip(program.host.run(example), pruned.host.run(example), strict=True)
        done["moved"] = max(relative(before, after) for before, after in outputs)
        done |= {"error": checks[0].error, "params": pruned.history[-1].params / program_params(program)}
    except GraphpruneError as error:
        done["failed"] = f"{type(error).__name__}: {error.message}"
    return done | {"seconds": time.perf_counter() - start}


def program_params(program: Program) -> float:
    return params(program.graph, program.host)()


def _reach(program: Program, groups: Groups) -> dict[str, Any]:
    """How many dense weights have a prunable channel axis, and what remains with every group at its floor."""
    free = {leaf for group in groups for leaf in leaves(group.dim)}
    weights = {name: bool(free & axes) for name, axes in dense(program.graph).items()}
    sizes = {name: program.host.parameter(name).size for name in weights}
    cost = params(program.graph, program.host)
    floors = {group.dim: max(1.0, -(-group.size * FLOOR // 1)) for group in groups}
    return {
        "dense": len(weights),
        "prunable": sum(weights.values()),
        "share": sum(sizes[name] for name, is_free in weights.items() if is_free) / max(1, sum(sizes.values())),
        "fixed": [name for name, is_free in weights.items() if not is_free],
        "least": cost(floors) / cost(),
    }


def dense(graph: Graph) -> dict[str, set[Dim]]:
    """Every parameter that a convolution or matrix product reads, with the leaves of its channel axes."""
    found: dict[str, set[Dim]] = {}
    for name, dim in _channel_axes(graph):
        found.setdefault(name, set()).update(leaf for leaf in leaves(dim) if leaf.size != 1)
    return found


def _channel_axes(graph: Graph) -> Iterator[tuple[str, Dim]]:
    from graphprune.coupling.groups import sources

    origin = sources(graph)
    for op in graph.ops:
        if op.kind not in DENSE:
            continue
        relation = graph.relations[op.name]
        for name in relation.dims:
            if relation.dims[name].size == 1 or role(op, relation, name) not in ("reader", "writer"):
                continue
            for k, axis in relation.inputs[name]:
                value = op.inputs[k]
                if value is not None and value.constant and len(value.dims) > 1:
                    for parameter in origin.get(value.name, ()):
                        if len(parameter.dims) > 1 and "float" in parameter.dtype:
                            yield parameter.name, value.dims[axis]


def reasons(graph: Graph, groups: Groups) -> dict[str, int]:
    """Why channel axes of dense weights are frozen: reason -> dims, most frequent first."""
    channels = set().union(*dense(graph).values())
    free = {leaf for group in groups for leaf in leaves(group.dim)}
    counts = Counter(short(leaf.frozen or f"{leaf.mixed} normalises across it") for leaf in channels - free)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def short(reason: str) -> str:
    """A reason without the place: the op kind and what it does."""
    for words in ("reaches the graph output", "graph input", "dynamic size", "normalises across it"):
        if words in reason:
            return words
    if "no rule for" in reason:
        return reason[reason.index("no rule for") :]
    if "reads it with a weight that is not zero" in reason:
        return "read with a weight computed from the parameter"
    found = re.search(r"\((\w+)\)(?:, rule `[^`]*`(?:, axis `[^`]*`)?)?:? (.*)$", reason)
    return f"{found[1]} {found[2]}" if found else reason
