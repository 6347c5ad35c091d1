"""Buffers that a forward writes into: caches of keys and values, running positions.

What is compared is what a network computes from one state, so every run here leaves it as it was; the user's own
calls go on from one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import fx, nn

from .edit import arguments
from .functional import written_into


def written_buffers(model: fx.GraphModule) -> tuple[str, ...]:
    """The names of the stored tensors that ops of the graph write into, by whatever view of them."""
    found: dict[str, None] = {}
    for node in model.graph.nodes:
        root = written_into(node)
        while root is not None and root.op == "call_function":
            root = _viewed(root)
        if root is not None and root.op == "get_attr":
            found[str(root.target)] = None
    return tuple(found)


def _viewed(node: fx.Node) -> fx.Node | None:
    """What the op's output is a view of."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not any(value.alias_info is not None for value in schema.returns):
        return None
    named = arguments(node)
    viewed = [named[a.name] for a in schema.arguments if a.alias_info is not None]
    return next((value for value in viewed if isinstance(value, fx.Node)), None)


@contextmanager
def kept(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Within, these tensors of a module may be written into; afterwards they hold what they held."""
    held = [tensor for name in names if (tensor := _tensor(model, name)) is not None]
    copies = [tensor.detach().clone() for tensor in held]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(held, copies, strict=True):
                tensor.copy_(copy)


def _tensor(model: nn.Module, name: str) -> torch.Tensor | None:
    found: object = model
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, torch.Tensor) else None
