"""Buffers that a forward writes into: caches of keys and values, running positions.

What is compared is what a network computes from one state, so every run here leaves it as it was; the user's own
calls go on from one another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import fx, nn

from ...errors import ModelError
from .edit import arguments
from .functional import written_into


def written_buffers(model: fx.GraphModule) -> tuple[str, ...]:
    """The names of the stored tensors that ops of the graph write into, by whatever view of them."""
    return tuple({name: None for node in model.graph.nodes if (name := _root(node))})


def _root(node: fx.Node) -> str:
    """The stored tensor that an op writes into; nothing where it does not."""
    root = written_into(node)
    while root is not None and root.op == "call_function":
        root = _viewed(root)
    return str(root.target) if root is not None and root.op == "get_attr" else ""


def _viewed(node: fx.Node) -> fx.Node | None:
    """What the op's output is a view of."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not any(value.alias_info is not None for value in schema.returns):
        return None
    named = arguments(node)
    viewed = [named[a.name] for a in schema.arguments if a.alias_info is not None]
    return next((value for value in viewed if isinstance(value, fx.Node)), None)


def refuse_unkept(model: fx.GraphModule) -> None:
    """Raises ModelError where forward writes into weights that are trained, so that no two calls compute the same, or
    has an op that no file holds."""
    for node in model.graph.nodes:
        if node.target is torch.ops.higher_order.flat_apply:
            raise ModelError(
                f"an index under vmap is in what torch.export made{_line(node)}, and no file holds that op",
                "index by torch.gather or index_select; a network of transformers that makes a mask so: leave "
                "`token_type_ids` out of the example",
            )
        if (name := _root(node)) and isinstance(_tensor(model, name), nn.Parameter) and node.target not in _SETTLED:
            raise ModelError(
                f"forward writes into its own weight `{name}`{_line(node)}, and every call changes it again",
                'leave that to training, or write into a buffer; of RWKV `"rescale_every": 0` in config.json computes '
                "the same without",
            )


_SETTLED = (torch.ops.aten.embedding_renorm_.default,)
"""What changes nothing where it was done before."""


def _line(node: fx.Node) -> str:
    """Where in the user's code, and in the library's."""
    files = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return f" at {files[-1][0]}:{files[-1][1]}" if files else ""


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
