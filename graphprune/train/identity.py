"""Branches that went, in the user's own module: a part that was nothing else becomes an identity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..ir.graph import Branch, Graph, Op
from ..ir.liveness import dead
from ..ir.program import Program
from ..ops.traits import handed_on
from ..pipeline.bypass import Bypass


class Identity(nn.Module):
    """A block without its branches: what it is given first comes out."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x


def bypassed(program: Program) -> list[Branch]:
    """The branches that a program's plan left out."""
    return [branch for edit in program.plan.of(Bypass) for branch in edit.branches]


def identities(module: nn.Module, graph: Graph, gone: list[Branch]) -> list[str]:
    """The parts of ``module`` of which nothing is left without the branches, outermost ones, by name.

    Raises ModelError where a branch is computed together with what stays.
    """
    inner = dead(graph, gone)
    names = {name for name, _ in module.named_modules() if name}
    goes = {**inner, **{op.name: op for op in graph.ops if any(op.name == branch.op for branch in gone)}}
    stay = {path for op in graph.ops if op.name not in goes and not _nothing(op) for path in _paths(op, names)}
    found: dict[str, None] = {}
    for op in goes.values():
        path = next((path for path in _paths(op, names) if path not in stay), None)
        if path is None:
            raise ModelError(
                f"{type(module).__name__} cannot be cut in place: {op.where} goes with a branch, and the forward that "
                "computes it stays",
                "only what a part of the module is whole becomes an identity (`branches{of=block}`); "
                "or train the GraphModule, `program.model`",
            )
        found[path] = None
    return list(found)


def leave_out(module: nn.Module, paths: list[str]) -> Iterator[tuple[nn.Module, str, Any]]:
    """Put identities in the place of parts; gives owner, name and what was there."""
    for path in paths:
        owner, _, leaf = path.rpartition(".")
        holder = module.get_submodule(owner)
        yield holder, leaf, getattr(holder, leaf)
        setattr(holder, leaf, Identity())


def refuse_uncounted(network: nn.Module, parts: list[str], within: nn.Module) -> None:
    """Raises ModelError where ``parts`` of ``within``, which become identities, have the layer that a network of the
    library counts by what its cache holds, the first: a cache whose places are there from the start
    (``cache_implementation="static"``) would seem empty."""
    inner = {id(part) for part in network.modules()}
    gone = (part for path in parts for part in within.get_submodule(path).modules() if id(part) in inner)
    if hasattr(network, "generate") and any(getattr(part, "layer_idx", None) == 0 for part in gone):
        raise ModelError(
            f"{type(network).__name__} cannot be cut in place: its first layer goes, by which its class counts what a "
            "cache holds",
            "keep it (`branches{keep=first:1}`), or compile the folder, whose layers are numbered anew",
        )


def _nothing(op: Op) -> bool:
    """Whether it hands on what it is given, in the same type: of a part that goes, what stays may read that."""
    if op.kind != "pointwise" or not handed_on(op, 0):
        return False
    read = op.inputs[0]
    return read is not None and read.dtype == op.outputs[0].dtype


def _paths(op: Op, names: set[str]) -> list[str]:
    """The modules that an op is in, the outermost first."""
    parts = op.origin.split(".")
    return [path for k in range(len(parts)) if (path := ".".join(parts[: k + 1])) in names]
