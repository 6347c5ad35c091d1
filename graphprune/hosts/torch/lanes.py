"""Ops of an fx graph that take or join single positions of an axis: see Host.take_single and Host.join."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from .edit import arguments, set_argument

_ATEN = torch.ops.aten


def take_single(node: fx.Node, at: Sequence[int]) -> None:
    """Of several positions each becomes an op of its own."""
    named = arguments(node)
    if "other" in named:
        set_argument(node, "other", at[0])
    elif "index" in named:
        set_argument(node, "index", at[0])
    elif node.target is _ATEN.slice.Tensor:
        set_argument(node, "start", at[0])
        set_argument(node, "end", at[0] + 1)
    else:
        _apart(node, at)


def _apart(node: fx.Node, at: Sequence[int]) -> None:
    """A split or unbind as slices or selections."""
    named, graph = arguments(node), node.graph
    x, axis = named["self"], named["dim"]
    one = node.target is _ATEN.unbind.int
    for user in sorted(node.users, key=lambda user: int(user.args[1])):  # type: ignore[arg-type]
        place = at[int(user.args[1])]  # type: ignore[arg-type]
        if place >= 0:
            with graph.inserting_before(user):
                made = graph.call_function(
                    _ATEN.select.int if one else _ATEN.slice.Tensor,
                    (x, axis, place) if one else (x, axis, place, place + 1),
                )
            made.meta = {key: value for key, value in node.meta.items() if key != "val"}
            made.meta["val"] = user.meta["val"]
            user.replace_all_uses_with(made)
        graph.erase_node(user)
    graph.erase_node(node)


def join(node: fx.Node, operands: Sequence[int]) -> list[fx.Node]:
    """The nodes that it reads no more."""
    before = list(arguments(node)["tensors"])
    set_argument(node, "tensors", [before[k] for k in operands])
    return [one for k, one in enumerate(before) if k not in operands]
