"""What the sizes that torch.export left open come to on the example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from .casting import as_read
from .lift import spelled


def open_sizes(model: fx.GraphModule, example: Sequence[Any], floats: torch.dtype | None = None) -> Mapping[str, int]:
    """By the spelling of every open size in the graph. Most follow from the inputs' sizes by arithmetic; where
    some do not (sizes that depend on data), the model is run. ``floats``: see casting.as_read."""
    given = given_sizes(model, example)
    wanted = {str(spelled(size)): size for node in model.graph.nodes for size in _open(node.meta.get("val"))}
    symbols = {size.node.expr: number for size, number in given}
    numbers = {text: size.node.expr.subs(symbols) for text, size in wanted.items()}
    if all(number.is_Integer for number in numbers.values()):
        return {text: int(number) for text, number in numbers.items()}
    runner = _Runner(model, floats)
    with torch.no_grad():
        runner.run(*example, enable_io_processing=False)
    return {str(spelled(size)): number for size, number in (*given, *runner.found)}


def given_sizes(model: fx.GraphModule, example: Sequence[Any]) -> list[tuple[torch.SymInt, int]]:
    """The open sizes of inputs, with what they are in an example."""
    holes = [node for node in model.graph.nodes if node.op == "placeholder"]
    return [pair for node, value in zip(holes, example, strict=True) for pair in _pairs(node.meta.get("val"), value)]


class _Runner(fx.Interpreter):
    """Runs the graph and notes what open sizes come to."""

    def __init__(self, model: fx.GraphModule, floats: torch.dtype | None) -> None:
        super().__init__(model)
        self.floats = floats
        self.found: list[tuple[torch.SymInt, int]] = []

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return as_read(super().get_attr(target, args, kwargs), self.floats)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.found += _pairs(n.meta.get("val"), value)
        return value


def _open(val: Any) -> Iterator[torch.SymInt]:
    """The open sizes in what a node stands for, and open numbers themselves."""
    for leaf in pytree.tree_leaves(val):
        for size in leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,):
            if isinstance(size, torch.SymInt) and isinstance(spelled(size), str):
                yield size


def _pairs(val: Any, actual: Any) -> Iterator[tuple[torch.SymInt, int]]:
    """The open sizes of a node with what they are in an actual value."""
    for old, new in zip(pytree.tree_leaves(val), pytree.tree_leaves(actual), strict=False):
        shaped = isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor)
        for size, number in zip(old.shape, new.shape, strict=True) if shaped else ((old, new),):
            if isinstance(size, torch.SymInt) and isinstance(spelled(size), str):
                yield size, int(number)
